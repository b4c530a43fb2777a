"""Does block-range attention cost what its attended pairs deserve, and less than a dense mask?

A row is one square image of a level behind 100 text tokens, or a pack of such images and texts. Timed in turns, forward and
backward together: ours; scaled-dot-product attention with the same mask, dense; a plain causal run of the same length. What
the pairs deserve is the causal run's time times the quotient of attended pairs: a causal run of s slots attends s(s+1)/2.
On a CPU the goal is at most 1.3 times that; on an H100 at least 75 % of the TFLOP/s of causal flash attention at the 1024
level (FlexAttention there, float32 here). FLOPs are 4 · pairs · heads · width forward and 2.5 times that backward, as flash
attention's authors count them. Run: python benchmarks/bench_attention.py [--levels 256,512,1024]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from common import Section, gpu, in_turns, ratio, report, table
from nextflow_tokenize.schedule import LEVEL_SCALES, grids, token_count
from nextflow_tokenize.segments import ImageSegment, Segment, TextSegment, slots_of
from torch.nn.functional import scaled_dot_product_attention

from megatron_nextflow.runtime.device import setup

HEADS = {"cpu": (8, 2, 64), "cuda": (28, 4, 128)}
"""Query heads, key-value heads, channels of a head; on a GPU Qwen2.5-7B's."""
PREFIX = 100
PACKED = "pack of 256s"


def visible_of(name: str) -> torch.Tensor:
    """Visible ranges [2, 1, s] of the row `name`: a level, or PACKED."""
    from megatron_nextflow.sequence.batch import join
    from megatron_nextflow.sequence.pack_layout import build_pack_layout
    from megatron_nextflow.sequence.vocabulary import Vocabulary

    vocabulary = Vocabulary(text=8, codes=8)

    def document(level: int, number: int, words: int) -> list[Segment]:
        schedule, doc = grids((64, 64), LEVEL_SCALES[level]), str(number)
        grid, scales = list(schedule[-1]), len(schedule)
        return [
            TextSegment(kind="text", doc=doc, tokens=words, loss=True),
            ImageSegment(kind="image", doc=doc, sha256="", grid=grid, scales=scales, loss=True),
        ]

    if name == PACKED:
        documents = [document(256, number, 30 + 70 * (number % 3)) for number in range(4)]
    else:
        documents = [document(int(name), 0, PREFIX)]
    layouts = []
    for segments in documents:
        words = sum(s["tokens"] for s in segments if s["kind"] == "text")
        codes = sum(token_count(grids((64, 64), s["scales"])) for s in segments if s["kind"] == "image")
        ids, empty = np.zeros(words, np.int64), np.zeros(codes, np.int64)
        layouts.append(build_pack_layout(segments, ids, empty, empty, vocabulary, slots_of(segments)))
    return join(layouts).visible


def measure(name: str, rounds: int, device: torch.device) -> list[str]:
    """One row of the table."""
    from megatron.core.transformer.enums import AttnMaskType
    from megatron.core.transformer.transformer_config import TransformerConfig

    from megatron_nextflow.model.attention import BlockRangeAttention, BlockRangeParams

    heads, groups, width = HEADS[device.type]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    visible = visible_of(name)
    slots = visible.size(-1)
    pairs, causal_pairs = int((visible[1] - visible[0]).sum()), slots * (slots + 1) // 2
    shapes = [(slots, 1, n, width) for n in (heads, groups, groups)]
    qkv = [torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for shape in shapes]
    upstream = torch.randn(slots, 1, heads * width, device=device, dtype=dtype)
    config = TransformerConfig(
        num_layers=1, hidden_size=heads * width, num_attention_heads=heads, num_query_groups=groups,
        attention_dropout=0.0, apply_query_key_layer_scaling=False,
    )  # fmt: skip
    module = BlockRangeAttention(config, 1, AttnMaskType.causal, "self")
    params = BlockRangeParams.of(visible, device)
    keys = torch.arange(slots)
    dense = ((keys >= visible[0, 0, :, None]) & (keys < visible[1, 0, :, None])).to(device)

    def plain(mask: torch.Tensor | None) -> torch.Tensor:
        q, k, v = (x.permute(1, 2, 0, 3) for x in qkv)
        if mask is not None and device.type == "cuda":  # with fewer key-value heads no fused kernel takes a mask there
            k, v = (x.repeat_interleave(heads // groups, dim=1) for x in (k, v))
        out = scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True)
        return out.permute(2, 0, 1, 3).reshape(slots, 1, -1)

    def timed(forward: Callable[[], torch.Tensor]) -> Callable[[], None]:
        def call() -> None:
            torch.autograd.grad(forward(), qkv, upstream)
            if device.type == "cuda":
                torch.cuda.synchronize()

        return call

    def ours() -> torch.Tensor:
        return module(*qkv, packed_seq_params=params)

    difference = (ours() - plain(dense)).abs().max().item()
    if difference > (1e-4 if dtype == torch.float32 else 0.05):
        raise RuntimeError(f"{name}: ours and the dense mask differ by {difference}")
    seconds = in_turns(
        {"ours": timed(ours), "dense": timed(lambda: plain(dense)), "causal": timed(lambda: plain(None))}, rounds
    )
    flops = 3.5 * 4 * heads * width
    rate = {
        kind: flops * count / median(seconds[kind]) / 1e12 for kind, count in (("ours", pairs), ("causal", causal_pairs))
    }
    deserved = [value * pairs / causal_pairs for value in seconds["causal"]]
    return [
        name, f"{slots:,}", f"{pairs / causal_pairs:.3f}", f"{1e3 * median(seconds['ours']):.1f}",
        f"{1e3 * median(seconds['dense']):.1f}", f"{1e3 * median(seconds['causal']):.1f}",
        f"{ratio(seconds['dense'], seconds['ours']):.2f}", f"{ratio(seconds['ours'], deserved):.2f}",
        f"{rate['ours']:.3f}", f"{100 * rate['ours'] / rate['causal']:.0f} %",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--levels", default="256,512,1024", help="levels, separated by commas")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "reports")
    options = parser.parse_args()
    device = setup("auto", options.threads)
    torch.manual_seed(0)
    names = [*options.levels.split(","), PACKED]
    rows = [measure(name, options.rounds, device) for name in names]
    header = [
        "row", "slots", "pairs / causal pairs", "ours, ms", "dense mask, ms", "causal, ms", "dense / ours",
        "ours / what its pairs deserve", "TFLOP/s", "of causal's TFLOP/s",
    ]  # fmt: skip
    where = "GPU, bf16" if device.type == "cuda" else f"CPU, float32, {options.threads} thread(s)"
    sections: list[Section] = [table(f"Forward and backward, {where}", header, rows)]
    remarks = ["Before timing, ours and the dense mask give the same result."]
    if gpu() is None:
        remarks.append("No GPU was to be had: the goal of 75 % of causal flash attention's TFLOP/s on an H100 is open.")
    print(report("attention", __doc__ or "", sections, remarks, options.out))


if __name__ == "__main__":
    main()
