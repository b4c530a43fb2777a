"""Does training a NextFlow model cost more than training Megatron's own GPT of the same shape?

Both train on the same processes, in turns, on rows of the same number of slots, with data parallelism and the distributed
optimizer: ours with block-range attention, the connector, weights by scale and the chunked loss, on rows of documents with
256-level images, and on rows of one text, which attend as many pairs as the peer's; Megatron's GPT on random ids with a
plain causal mask, once with its own attention and once with torch's causal one. The goal on a CPU is a ratio of at least 0.9
tokens/s. On a GPU a stack of 7B width of as many layers as fit is trained in bf16 and in FP8: MFU (goal: at least 50 %) and
FP8 over bf16 (goal: at least 1.3). Model FLOPs count what each slot really attends, and the head where there is a label.
Run: python benchmarks/bench_train.py [--processes 2]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import Section, gpu, ratio, report, table
from spread import together, under_torchrun

from megatron_nextflow.runtime.device import setup

MICRO_BATCHES = 2
SLOTS = 2048
OURS = "ours, texts and images"
CODE_WIDTH = 40
WIDTH_7B = {"hidden_size": 3584, "heads": 28, "query_groups": 4, "ffn_size": 18944, "max_length": 8192}
NO_ROOM = 3
"""Exit status of a stack that does not fit into the GPU's memory."""


def ours(config: Any, vocabulary: Any, device: torch.device, slots: int) -> tuple[Callable[[], Any], Any]:
    """A step of ours on rows of `slots` slots of texts and images, and the trainer."""
    from megatron_nextflow.step.trainer import Trainer

    codebook = torch.nn.functional.normalize(torch.randn(vocabulary.codes, CODE_WIDTH), dim=-1)
    trainer = Trainer(config, vocabulary, codebook, device)
    trainer.set_step(1)
    rows = rows_of(vocabulary, slots, images=True)
    return lambda: trainer.step(rows)[0], trainer


def rows_of(vocabulary: Any, slots: int, images: bool) -> list[Any]:
    """The micro-batches of this process, rows of `slots` slots: documents with 256-level images, or one text."""
    import torch.distributed as dist
    from synthetic import Document, layout_of

    from megatron_nextflow.sequence.batch import join

    image = Document(60, (256,))
    pack = [image] * (slots // image.slots) if images else []
    if rest := slots - sum(one.slots for one in pack):
        pack.append(Document(rest))
    return [join([layout_of(pack, vocabulary, 10 * dist.get_rank() + n)], 16) for n in range(MICRO_BATCHES)]


def compare(processes: int, rounds: int, device: torch.device) -> Section:
    """The table against Megatron's GPT."""
    from plain_gpt import PlainGPT

    from megatron_nextflow.config.train import TrainConfig
    from megatron_nextflow.sequence.vocabulary import Vocabulary
    from megatron_nextflow.step.process_groups import start_parallel

    model: dict[str, Any] = {"hidden_size": 256, "layers": 4, "heads": 8, "query_groups": 2, "ffn_size": 704}
    if device.type == "cuda":
        model = {"hidden_size": 3584, "layers": 4, "heads": 28, "query_groups": 4, "ffn_size": 18944}
    config = TrainConfig.model_validate(
        {
            "model": {**model, "max_length": SLOTS},
            "precision": "bf16" if device.type == "cuda" else "float32",
            "data": {"global_batch_size": MICRO_BATCHES * processes},
            "optimizer": {"lr": 1e-4},
        }
    )
    start_parallel(config)
    vocabulary = Vocabulary(text=4096, codes=4096)
    step, trainer = ours(config, vocabulary, device, SLOTS)
    text = rows_of(vocabulary, SLOTS, images=False)
    mine = {OURS: step, "ours, one text a row": lambda: trainer.step(text)[0]}
    peers = {
        name: PlainGPT(config, vocabulary.padded, SLOTS, MICRO_BATCHES, sdpa, device)
        for name, sdpa in (("Megatron's GPT, torch's causal attention", True), ("Megatron's GPT, its own attention", False))
    }
    seconds = together({**mine, **{name: peer.step for name, peer in peers.items()}}, rounds)
    tokens = SLOTS * MICRO_BATCHES * processes
    attended = {name: one().pairs / (tokens * (SLOTS + 1) / 2) for name, one in mine.items()}
    rows = [
        [
            name, f"{attended.get(name, 1):.2f}", f"{tokens / median(taken):,.0f}", f"{ratio(taken, seconds[OURS]):.2f}",
            f"{ratio(taken, seconds['ours, one text a row']):.2f}",
        ]
        for name, taken in seconds.items()
    ]  # fmt: skip
    stack = f"{model['layers']} layers of width {model['hidden_size']}, {config.precision}"
    header = ["", "pairs / causal pairs", "tokens/s", "ours / this", "ours on one text / this"]
    return table(f"{processes} processes, rows of {SLOTS} slots, {stack}", header, rows)


def stack(layers: int, fp8: str | None, rounds: int, device: torch.device) -> list[str]:
    """The row of `layers` layers of 7B width, trained on this GPU alone in `fp8` or bf16."""
    from megatron_nextflow.estimate.flops import peak_tflops, step_flops
    from megatron_nextflow.step.process_groups import start_parallel

    config, vocabulary = stack_config(layers, fp8)
    start_parallel(config)
    step, trainer = ours(config, vocabulary, device, config.model.max_length)
    first = step()
    seconds = median(together({"": step}, rounds)[""])
    rate = step_flops(config.model, vocabulary, first.tokens, first.pairs, first.labels) / seconds / 1e12
    peak = peak_tflops(torch.cuda.get_device_name(device))
    share = f"{100 * rate / peak:.1f} %" if peak else "unknown"
    return [trainer.precision, str(layers), f"{first.tokens / seconds:,.0f}", f"{rate:.0f}", share]


def stack_config(layers: int, fp8: str | None) -> tuple[Any, Any]:
    """The configuration of such a stack, and its vocabulary."""
    from megatron_nextflow.config.train import TrainConfig
    from megatron_nextflow.sequence.vocabulary import Vocabulary

    data = {"global_batch_size": MICRO_BATCHES}
    model = {**WIDTH_7B, "layers": layers}
    config = TrainConfig.model_validate({"model": model, "precision": "bf16", "fp8": fp8, "data": data})
    return config, Vocabulary(text=151_936, codes=32_768)


def alone(layers: int, fp8: str | None, rounds: int) -> list[str] | None:
    """`stack` in a process of its own, because what Megatron's wrapper holds is never freed; None where it does not fit."""
    command = [sys.executable, __file__, "--stack", str(layers), "--rounds", str(rounds), *(["--fp8", fp8] if fp8 else [])]
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK")}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode not in (0, NO_ROOM):
        raise RuntimeError(f"{layers} layers ended with {done.returncode}")
    return None if done.returncode else list(json.loads(done.stdout.splitlines()[-1]))


def on_gpu(rounds: int, device: torch.device) -> Section:
    """MFU of as many layers of 7B width as fit with FP8, which needs more memory; in bf16 and FP8 alike."""
    from megatron_nextflow.estimate import flops, memory

    room = torch.cuda.get_device_properties(device).total_memory

    def fits(layers: int) -> bool:
        config, vocabulary = stack_config(layers, "auto")
        parameters = flops.parameter_count(config.model, vocabulary, CODE_WIDTH)
        return memory.estimate(config, vocabulary, 0, parameters, parameters, 1, fp8=True).total < room

    rows: list[list[str]] = []
    for layers in filter(fits, range(16, 0, -1)):
        if eight := alone(layers, "auto", rounds):
            rows = [row for row in (alone(layers, None, rounds), eight) if row]
            break
    title = f"7B width, rows of {WIDTH_7B['max_length']} slots"
    return table(title, ["", "layers", "tokens/s", "TFLOP/s", "MFU"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "reports")
    parser.add_argument("--stack", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--fp8", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stack:
        try:
            print(json.dumps(stack(options.stack, options.fp8, options.rounds, setup("auto", 1))))
        except torch.cuda.OutOfMemoryError:
            sys.exit(NO_ROOM)
        return
    processes = 1 if gpu() else options.processes
    if not under_torchrun(processes):
        return
    device = setup("auto", 1)
    import torch.distributed as dist

    torch.manual_seed(dist.get_rank())
    sections, remarks = list[Section](), list[str]()
    if device.type == "cuda":
        sections.append(on_gpu(options.rounds, device))  # first: what the comparison takes, it keeps
    else:
        remarks.append("No GPU was to be had: MFU in bf16 (goal 50 %) and FP8 over bf16 (goal 1.3) on an H100 are open.")
    sections.insert(0, compare(processes, options.rounds, device))
    if dist.get_rank() == 0:
        print(report("train", __doc__ or "", sections, remarks, options.out))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
