"""What do padding, packs of fixed length and packs of equal compute cost a training, on the same documents?

As in NextFlow's table (arXiv 2601.02204, §4: 620.3, 2,109.5 and 2,517.4 tokens/s a GPU), at a 512-level mixture: texts of
64 to 1,024 tokens, most with an image of 256 or 512. Padding: four documents a pass side by side, padded to the set's
longest document, as a collate function does. Fixed length: the project's packer with a bound on slots alone. Equal compute:
its budget of FLOPs too. Each is trained on by the same data-parallel processes, which wait for the slowest at every step;
tokens are slots that are not padding. On a CPU the model is small, so attention weighs less than at 7B width and equal
compute has less to win. Run: python benchmarks/bench_packing.py [--processes 2]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from common import gpu, report, table
from nextflow_tokenize.config.pack import CostModel, PackConfig
from nextflow_tokenize.packing.pieces import DocumentShape, SegmentShape
from nextflow_tokenize.packing.plan import plan
from nextflow_tokenize.schedule import LEVEL_SCALES, grids
from spread import together, under_torchrun
from synthetic import Document, documents, layout_of

from megatron_nextflow.runtime.device import setup

if TYPE_CHECKING:
    from megatron_nextflow.sequence.batch import LayoutBatch

MAX_LENGTH = 8192
SIDE_BY_SIDE = 4
RELATIVE_COST = 0.7
"""Budget of FLOPs, as a part of what a text of MAX_LENGTH slots costs: low enough to bind more often than the slots do."""
SHAPE = {
    "cpu": {"hidden_size": 256, "layers": 4, "heads": 8, "query_groups": 2, "ffn_size": 704},
    "cuda": {"hidden_size": 3584, "layers": 4, "heads": 28, "query_groups": 4, "ffn_size": 18944},
}


def packs_of(given: Sequence[Document], config: PackConfig) -> list[list[Document]]:
    """The documents of each pack, by the project's planner."""

    def parts(one: Document) -> tuple[SegmentShape, ...]:
        final = [(grids((64, 64), LEVEL_SCALES[level])[-1], LEVEL_SCALES[level]) for level in one.levels]
        return (SegmentShape(text=one.words), *(SegmentShape(grid=grid, scales=scales) for grid, scales in final))

    shapes = [DocumentShape(str(number), parts(one)) for number, one in enumerate(given)]
    return [[given[int(piece.doc_id)] for piece in pack.pieces] for pack in plan(shapes, config).packs]


def batches(given: Sequence[Document], vocabulary: Any, cost: CostModel) -> dict[str, list[LayoutBatch]]:
    """Passes over all documents, by way of packing."""
    from megatron_nextflow.sequence.batch import collate, join

    longest = -(-max(one.slots for one in given) // 16) * 16
    groups = [given[at : at + SIDE_BY_SIDE] for at in range(0, len(given), SIDE_BY_SIDE)]
    padded = [collate([layout_of([one], vocabulary, length=longest) for one in group]) for group in groups]
    by_length = PackConfig(max_length=MAX_LENGTH, relative_cost=1e6, cost=cost)
    by_compute = PackConfig(max_length=MAX_LENGTH, relative_cost=RELATIVE_COST, cost=cost)
    packed = {
        name: [join([layout_of(pack, vocabulary)], 16) for pack in packs_of(given, config)]
        for name, config in (("packs of fixed length", by_length), ("packs of equal compute", by_compute))
    }
    return {"padding": padded, **packed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--documents", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "reports")
    options = parser.parse_args()
    processes = 1 if gpu() else options.processes
    if not under_torchrun(processes):
        return
    device = setup("auto", 1)
    import torch.distributed as dist

    from megatron_nextflow.config.train import TrainConfig
    from megatron_nextflow.sequence.vocabulary import Vocabulary
    from megatron_nextflow.step.process_groups import start_parallel
    from megatron_nextflow.step.trainer import Trainer

    shape = SHAPE[device.type]
    precision = "bf16" if device.type == "cuda" else "float32"
    tree = {"model": {**shape, "max_length": MAX_LENGTH}, "precision": precision, "data": {"global_batch_size": processes}}
    config = TrainConfig.model_validate(tree)
    start_parallel(config)
    vocabulary = Vocabulary(text=4096, codes=4096)
    trainer = Trainer(config, vocabulary, torch.nn.functional.normalize(torch.randn(4096, 40), dim=-1), device)
    trainer.set_step(1)
    given = documents(options.documents, (256, 512), seed=0, text_only=0.3)
    cost = CostModel(
        hidden_size=shape["hidden_size"], ffn_hidden_size=shape["ffn_size"], layers=shape["layers"], heads=shape["heads"],
        query_groups=shape["query_groups"], vocabulary=vocabulary.padded,
    )  # fmt: skip
    ways = {name: found[: len(found) // processes * processes] for name, found in batches(given, vocabulary, cost).items()}

    def epoch(found: list[LayoutBatch]) -> None:
        for at in range(0, len(found), processes):
            trainer.step([found[at + dist.get_rank()]])

    seconds = together({name: partial(epoch, found) for name, found in ways.items()}, options.rounds)
    rows: list[list[str]] = []
    speed: dict[str, float] = {}
    for name, found in ways.items():
        used, pairs = sum(batch.used for batch in found), np.array([batch.pairs for batch in found], dtype=float)
        held = sum(batch.token_ids.numel() for batch in found)
        speed[name] = used / float(np.median(seconds[name]))
        rows.append(
            [
                name, str(len(found)), f"{100 * used / held:.0f} %", f"{pairs.max() / pairs.mean():.2f}",
                f"{speed[name]:,.0f}", f"{speed[name] / speed['padding']:.2f}",
            ]
        )  # fmt: skip
    header = ["", "passes", "slots used", "attended pairs, max / mean", "tokens/s", "over padding"]
    remarks = ["Every way is the project's own code, its attention included, which costs little on padding."]
    if gpu() is None:
        remarks.append("No GPU was to be had: the same at 7B width on an H100 is open.")
    if dist.get_rank() == 0:
        title = f"{processes} processes, {options.documents} documents, {shape['layers']} layers of width"
        section = table(f"{title} {shape['hidden_size']}, {precision}", header, rows)
        print(report("packing", __doc__ or "", [section], remarks, options.out))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
