"""How fast are images encoded, and in how much memory, against a transcription of VAR's published algorithm?

Claim: from features to codes at the published codebook (32,768 entries of 32 + 8, TokenFlow), and for the whole encoding
with the small networks, at least twice the images a second of the batched transcription on a CPU at levels 256 and 512, with
the same codes, in memory that does not hold positions × codes. Where there is a GPU, its images/s and share of peak follow.
Run: python benchmarks/bench_tokenizer.py
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from common import Section, in_turns, ratio, report, table
from nextflow_tokenize.config.vision import SelfCorrectionConfig, VisionTokenizerConfig
from nextflow_tokenize.schedule import LEVEL_SCALES, PIXELS_PER_TOKEN, Grid, grids, token_count
from nextflow_tokenize.vision.codes.quantizer import MultiScaleQuantizer, draws
from nextflow_tokenize.vision.model import VisionTokenizer
from torch import Tensor
from var_transcription import transcribed

BAR = 2.0


class Book(NamedTuple):
    """A codebook's settings, in the order of `MultiScaleQuantizer`'s arguments."""

    codebook_size: int
    semantic_dim: int
    pixel_dim: int
    w_dis: float


BOOKS = {"published": Book(32_768, 32, 8, 1.0), "small": Book(4096, 4, 12, 4.0), "tiny": Book(512, 4, 4, 1.0)}
"""Codebooks: TokenFlow's, the small recipe's, and one for trying this script out."""
CORRECTION = SelfCorrectionConfig(samples=1.0, tokens=0.6, top_k=10)

VAR_ONE, VAR_BATCHED = "VAR, one", "VAR, batched"
OURS_ONE, OURS_BATCHED, OURS_DRAWN = "ours, one", "ours, batched", "ours, drawn of 10"
Variants = dict[str, Callable[[], Tensor]]
"""By name, what gives codes [B, Σhw]: one image after the other or the whole batch, and ours with self-correction."""
Case = tuple[str, int]
"""A codebook's name and a level."""


def schedule_of(level: int) -> tuple[Grid, ...]:
    """Of a square image."""
    return grids((64, 64), LEVEL_SCALES[level])


def quantisers(book: str, level: int, batch: int) -> Variants:
    """From features to codes. Codes and features are random, from a fixed seed: speed does not depend on them."""
    torch.manual_seed(0)
    schedule = schedule_of(level)
    quantizer = MultiScaleQuantizer(*BOOKS[book])
    # Several codes long, as a trained tokenizer's, so that every scale has something left to do.
    features = 3 * torch.randn(batch, sum(quantizer.dims), *schedule[-1])
    drawn = draws(range(batch), token_count(schedule), CORRECTION)
    return {
        VAR_ONE: lambda: torch.cat([transcribed(quantizer, part, schedule) for part in features.split(1)]),
        VAR_BATCHED: lambda: transcribed(quantizer, features, schedule),
        OURS_ONE: lambda: torch.cat([quantizer.quantize(part, schedule).target for part in features.split(1)]),
        OURS_BATCHED: lambda: quantizer.quantize(features, schedule).target,
        OURS_DRAWN: lambda: quantizer.quantize(features, schedule, drawn).input,
    }


def encoders(book: str, level: int, batch: int) -> Variants:
    """From pixels to codes with the small recipe's networks, random weights and images. All variants run the networks image
    by image: on a CPU batches of them are no faster, and their last bits differ."""
    torch.manual_seed(0)
    tokenizer = VisionTokenizer(VisionTokenizerConfig.model_validate(BOOKS[book]._asdict())).eval()
    schedule = schedule_of(level)
    h, w = schedule[-1]
    pixels = torch.rand(batch, 3, h * PIXELS_PER_TOKEN, w * PIXELS_PER_TOKEN) * 2 - 1

    @torch.inference_mode()
    def var(images: Tensor) -> Tensor:
        features = torch.cat([tokenizer.features(image) for image in images.split(1)])
        return transcribed(tokenizer.quantizer, features, schedule)

    return {
        VAR_ONE: lambda: torch.cat([var(part) for part in pixels.split(1)]),
        VAR_BATCHED: lambda: var(pixels),
        OURS_ONE: lambda: torch.cat([tokenizer.encode(part, schedule).target for part in pixels.split(1)]),
        OURS_BATCHED: lambda: tokenizer.encode(pixels, schedule).target,
        OURS_DRAWN: lambda: tokenizer.encode(pixels, schedule, range(batch), CORRECTION).input,
    }


def check(variants: Variants, where: str) -> None:
    """Raises SystemExit where two variants that must give the same codes do not."""
    expected = variants[VAR_BATCHED]()
    for name in (VAR_ONE, OURS_ONE, OURS_BATCHED):
        found = variants[name]()
        if not torch.equal(found, expected):
            raise SystemExit(f"{where}: {int((found != expected).sum())} of {found.numel()} codes differ: {name}")


def speed(
    title: str, variants_of: Callable[[str, int, int], Variants], cases: list[Case], batch: int, rounds: int
) -> Section:
    """Images a second of every variant, and how many times as fast ours are."""
    rows = []
    for book, level in cases:
        variants = variants_of(book, level, batch)
        check(variants, f"{title}, {book} codebook, level {level}")
        seconds = in_turns(variants, rounds)
        per_second = [f"{batch / median(seconds[name]):.2f}" for name in variants]
        alone, together = ratio(seconds[VAR_ONE], seconds[OURS_ONE]), ratio(seconds[VAR_BATCHED], seconds[OURS_BATCHED])
        rows.append([f"{book}, {level}", *per_second, f"{alone:.2f}", f"**{together:.2f}**", verdict(together)])
        print(title, *rows[-1], flush=True)
    header = ["codebook, level", *variants, "ratio, one", "ratio, batched", f"≥ {BAR:.0f}"]
    return table(f"{title}: images/s", header, rows)


def verdict(times: float) -> str:
    """Whether the bar is met."""
    return "met" if times >= BAR else "missed"


def memory(cases: list[Case], batch: int) -> Section:
    """Peak memory of each variant above what the process held before, each in a process of its own."""
    names = (VAR_ONE, VAR_BATCHED, OURS_BATCHED, OURS_DRAWN)
    rows = []
    for book, level in cases:
        h, w = schedule_of(level)[-1]
        whole = BOOKS[book].codebook_size * h * w * batch * 4 / 2**20
        rows.append([f"{book}, {level}", *(str(in_a_process(name, book, level, batch)) for name in names), f"{whole:.0f}"])
        print("memory", *rows[-1], flush=True)
    header = ["codebook, level", *names, "positions × codes"]
    return table(f"Features of {batch} images to codes: peak memory above what was held before, MiB", header, rows)


def in_a_process(variant: str, book: str, level: int, batch: int) -> int:
    """MiB of one variant, measured in a fresh process."""
    question = json.dumps([variant, book, level, batch])
    command = [sys.executable, __file__, "--measure", question]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"measuring {question} failed:\n{done.stderr}")
    return int(done.stdout.splitlines()[-1])


def measure(variant: str, book: str, level: int, batch: int) -> int:
    """MiB that one call adds to the process's peak. The peak of the process itself, not of `getrusage`, which a child begins
    with its parent's."""
    call = quantisers(book, level, batch)[variant]
    before = peak()
    call()
    return (peak() - before) >> 20


def peak() -> int:
    """Most bytes this process has held in memory (Linux)."""
    found = re.search(r"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise SystemExit("peak memory is read from /proc/self/status, which this system does not have: give --no-memory")
    return int(found[1]) << 10


def main() -> None:
    """The benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--levels", type=int, nargs="+", default=[256, 512], choices=sorted(LEVEL_SCALES))
    parser.add_argument("--books", nargs="+", default=["published", "small"], choices=sorted(BOOKS), help="codebooks")
    parser.add_argument("--batch", type=int, default=8, help="images that are quantised together")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--quick", action="store_true", help="a tiny codebook at level 128, to try the script out")
    parser.add_argument("--reports", type=Path, default=Path(__file__).parent / "reports")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.measure is not None:
        print(measure(*json.loads(given.measure)))
        return
    cases = [("tiny", 128)] if given.quick else [(book, level) for book in given.books for level in given.levels]
    rounds = 2 if given.quick else given.rounds
    sections = [
        speed("Features to codes", quantisers, cases, given.batch, rounds),
        speed("Whole encoding, small networks", encoders, cases, given.batch, rounds),
    ]
    if given.memory:
        sections.append(memory(cases, given.batch))
    remarks = [
        "The codes of all variants but the drawn one were compared and are the same; the script fails where they are not. "
        "Drawing (self-correction, 10 nearest) has no counterpart in VAR.",
        f"One thread, {given.batch} images a batch, medians of {rounds} rounds in turns, ratios taken within a round. The "
        "transcription makes one product for both branches, as fast as we can write it.",
        "The small networks, with random weights, see one image at a time in all variants: their time is in all the same, "
        "and with the small codebook it is most of the encoding.",
        "Peak memory is of one call in a process of its own. What is left of ours, kernels once made apart, is the features "
        "themselves and a few numbers a position.",
    ]
    if torch.cuda.is_available():
        from gpu_encode import on_gpu

        sections += on_gpu(given.quick)
        remarks.append("On the GPU all is float32 without TF32; share of peak is of the FLOP/s of its float32 units.")
    else:
        remarks.append(
            "No GPU was present: the GPU part of this script (gpu_encode.py) has been written and typed, not run."
        )
    print(report("tokenizer", __doc__ or "", sections, remarks, given.reports))


if __name__ == "__main__":
    main()
