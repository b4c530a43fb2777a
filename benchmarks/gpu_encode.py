"""Images a second on a GPU by level, and the share of its peak FLOP/s, plain and compiled.

FLOPs are counted by torch's own counter on the plain run (products, convolutions, attention; two for a multiply-add), so a
compiled run is judged by the same work. Everything is float32 and TF32 is off, as codes must not depend on it; the peak is
that of the float32 units: multiprocessors × units each × 2 × clock. torch.compile is given the networks and the walk over
scales, whose shapes are fixed at a level (each is one graph); what pays is in the table. Written and typed where there was
no GPU to run it on: counting and compiling were tried on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import yaml
from common import Section, in_turns, table
from nextflow_tokenize.config.vision import VisionTokenizerConfig
from nextflow_tokenize.schedule import LEVEL_SCALES, PIXELS_PER_TOKEN, grids
from nextflow_tokenize.vision.model import VisionTokenizer
from torch.utils.flop_counter import FlopCounterMode

RECIPE = Path(__file__).parent.parent / "recipes" / "tokenizer_nextflow.yaml"
UNITS = {(7, 0): 64, (7, 5): 64, (8, 0): 64, (8, 6): 128, (8, 7): 128, (8, 9): 128, (9, 0): 128, (10, 0): 128, (12, 0): 128}
"""Float32 units of a multiprocessor by compute capability (CUDA C++ Programming Guide, arithmetic throughput)."""
BATCH_POSITIONS = 1 << 14
"""Final-grid positions of a batch: 64 images at level 256, 16 at 512, 4 at 1024."""


def peak_flops() -> float | None:
    """Float32 FLOP/s of the first GPU at its highest clock; None for one that is not in the table."""
    properties = torch.cuda.get_device_properties(0)
    units, kilohertz = UNITS.get((properties.major, properties.minor)), getattr(properties, "clock_rate", None)
    if units is None or kilohertz is None:
        return None
    return float(properties.multi_processor_count * units * 2 * kilohertz * 1000)


def published() -> VisionTokenizerConfig:
    """The published model's networks and codebook, with SigLIP's shape instead of its weights."""
    given = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))["vision_tokenizer"]
    settings = {name: value for name, value in given.items() if name not in ("training", "teacher_path")}
    return VisionTokenizerConfig.model_validate(settings | {"siglip": {}})


def on_gpu(quick: bool) -> list[Section]:
    """A table of quantisation alone and of the whole encoding with the published networks, random weights."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    levels = (256,) if quick else (256, 512, 1024)
    rows = [row for level in levels for row in at_level(level, rounds=2 if quick else 7)]
    header = ["", "images a batch", "TFLOPs an image", "images/s", "share of peak", "compiled, images/s", "share of peak"]
    return [table("On the GPU, published networks and codebook", header, rows)]


def at_level(level: int, rounds: int) -> list[list[str]]:
    """The two rows of a level."""
    torch.manual_seed(0)
    tokenizer = VisionTokenizer(published()).eval().cuda()
    schedule = grids((64, 64), LEVEL_SCALES[level])
    h, w = schedule[-1]
    batch = max(1, BATCH_POSITIONS // (h * w))
    pixels = torch.rand(batch, 3, h * PIXELS_PER_TOKEN, w * PIXELS_PER_TOKEN, device="cuda") * 2 - 1
    with torch.inference_mode():
        features = tokenizer.features(pixels)
    parts: dict[str, Callable[[], object]] = {
        "features to codes": lambda: tokenizer.quantizer.quantize(features, schedule),
        "whole encoding": lambda: tokenizer.encode(pixels, schedule),
    }
    flops = {name: counted(part) for name, part in parts.items()}
    plain = {name: timed(part, rounds) for name, part in parts.items()}
    tokenizer.pixel_encoder.compile()
    tokenizer.semantic_encoder.compile()
    tokenizer.quantizer.quantize = torch.compile(tokenizer.quantizer.quantize)  # type: ignore[method-assign]
    compiled = {name: timed(part, rounds) for name, part in parts.items()}
    return [
        [
            f"{name}, {level}", str(batch), f"{flops[name] / batch / 1e12:.3f}", f"{batch / plain[name]:.1f}",
            share(flops[name] / plain[name]), f"{batch / compiled[name]:.1f}", share(flops[name] / compiled[name]),
        ]
        for name in parts
    ]  # fmt: skip


def counted(part: Callable[[], object]) -> int:
    """FLOPs of a call."""
    counter = FlopCounterMode(display=False)
    with counter:
        part()
    return int(counter.get_total_flops())


def timed(part: Callable[[], object], rounds: int) -> float:
    """Seconds of a call, the work on the GPU done."""

    def call() -> None:
        part()
        torch.cuda.synchronize()

    return median(in_turns({"": call}, rounds)[""])


def share(flops: float) -> str:
    """Of the peak, in words."""
    peak = peak_flops()
    return "unknown" if peak is None else f"{100 * flops / peak:.1f} %"
