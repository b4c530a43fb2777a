"""How fast are images encoded, and in how much memory, against a transcription of VAR's published algorithm?

Claim: from features to codes at the published codebook (32,768 entries of 32 + 8, TokenFlow), and for the whole encoding with
the small networks, at least twice the images a second of the batched transcription on a CPU at levels 256 and 512, with the
same codes, in memory that does not hold rows × codes. Where a GPU is present its images/s and share of peak follow.
Run: python benchmarks/bench_tokenizer.py
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from common import Section, in_turns, ratio, report, table
from nextflow_tokenize.config import SelfCorrectionConfig, VisionTokenizerConfig
from nextflow_tokenize.schedule import LEVEL_SCALES, PIXELS_PER_TOKEN, Grid, grids, token_count
from nextflow_tokenize.vision.model import VisionTokenizer
from nextflow_tokenize.vision.quantizer import Draws, draws
from torch import Tensor
from var_transcription import transcribed

BAR = 2.0
BOOKS = {
    "published": {"codebook_size": 32_768, "semantic_dim": 32, "pixel_dim": 8, "w_dis": 1.0},
    "small": {"codebook_size": 4096, "semantic_dim": 4, "pixel_dim": 12, "w_dis": 4.0},
    "tiny": {"codebook_size": 512, "semantic_dim": 4, "pixel_dim": 4, "w_dis": 1.0},
}
"""Codebooks: TokenFlow's, the small recipe's, and one for trying this script out."""
CORRECTION = SelfCorrectionConfig(samples=1.0, tokens=0.6, top_k=10)

Case = tuple[str, int]
"""A codebook's name and a level."""


@dataclass(frozen=True)
class Work:
    """Square images of a level, their features, and the tokenizer that made them."""

    tokenizer: VisionTokenizer
    schedule: tuple[Grid, ...]
    pixels: Tensor
    features: Tensor
    drawn: Draws

    @classmethod
    def of(cls, book: str, level: int, batch: int) -> Work:
        """The small recipe's networks with random weights and random images, from a fixed seed: speed depends on neither."""
        torch.manual_seed(0)
        tokenizer = VisionTokenizer(VisionTokenizerConfig.model_validate(BOOKS[book])).eval()
        schedule = grids((64, 64), LEVEL_SCALES[level])
        h, w = schedule[-1]
        pixels = torch.rand(batch, 3, h * PIXELS_PER_TOKEN, w * PIXELS_PER_TOKEN) * 2 - 1
        with torch.inference_mode():
            features = torch.cat([tokenizer.features(image) for image in pixels.split(1)])
        # Residuals as long as a trained tokenizer's, several codes deep, so that every scale has something to do.
        features = features * (3 / features.square().mean().sqrt())
        return cls(tokenizer, schedule, pixels, features, draws(range(batch), token_count(schedule), CORRECTION))

    def quantisers(self) -> dict[str, Callable[[], Tensor]]:
        """From features to codes, by variant."""
        book, features, schedule = self.tokenizer.quantizer, self.features, self.schedule
        return {
            "VAR, one at a time": lambda: torch.cat([transcribed(book, part, schedule) for part in features.split(1)]),
            "VAR, batched": lambda: transcribed(book, features, schedule),
            "ours, one at a time": lambda: torch.cat([book.quantize(part, schedule).target for part in features.split(1)]),
            "ours, batched": lambda: book.quantize(features, schedule).target,
            "ours, drawn": lambda: book.quantize(features, schedule, self.drawn).input,
        }

    def encoders(self) -> dict[str, Callable[[], Tensor]]:
        """From pixels to codes, by variant. All run the networks image by image: on a CPU batches of them are no faster, and
        their last bits differ."""
        tokenizer, pixels, schedule = self.tokenizer, self.pixels, self.schedule
        seeds = range(len(pixels))

        @torch.inference_mode()
        def var(images: Tensor) -> Tensor:
            features = torch.cat([tokenizer.features(image) for image in images.split(1)])
            return transcribed(tokenizer.quantizer, features, schedule)

        return {
            "VAR, one at a time": lambda: torch.cat([var(part) for part in pixels.split(1)]),
            "VAR, batched": lambda: var(pixels),
            "ours, one at a time": lambda: torch.cat([tokenizer.encode(part, schedule).target for part in pixels.split(1)]),
            "ours, batched": lambda: tokenizer.encode(pixels, schedule).target,
            "ours, drawn": lambda: tokenizer.encode(pixels, schedule, seeds, CORRECTION).input,
        }


def check(variants: dict[str, Callable[[], Tensor]], where: str) -> None:
    """Raises SystemExit where two variants that must give the same codes do not."""
    expected = variants["VAR, batched"]()
    for name in ("VAR, one at a time", "ours, one at a time", "ours, batched"):
        found = variants[name]()
        if not torch.equal(found, expected):
            raise SystemExit(f"{where}: {int((found != expected).sum())} of {found.numel()} codes differ: {name}")


def speed(cases: list[Case], batch: int, rounds: int) -> list[Section]:
    """Images a second of quantisation alone and of the whole encoding."""
    rows: dict[str, list[list[str]]] = {"quantisers": [], "encoders": []}
    for book, level in cases:
        work = Work.of(book, level, batch)
        for part, lines in rows.items():
            variants: dict[str, Callable[[], Tensor]] = getattr(work, part)()
            check(variants, f"{book} codebook, level {level}, {part}")
            seconds = in_turns(variants, rounds)
            per_second = [f"{batch / median(seconds[name]):.2f}" for name in variants]
            times = ratio(seconds["VAR, batched"], seconds["ours, batched"])
            alone = ratio(seconds["VAR, one at a time"], seconds["ours, one at a time"])
            lines.append([f"{book}, {level}", *per_second, f"{alone:.2f}", f"**{times:.2f}**", verdict(times)])
            print(part, *lines[-1], flush=True)
    names = {"quantisers": "Features to codes, images/s", "encoders": "Whole encoding with the small networks, images/s"}
    header = [
        "codebook, level", "VAR, one at a time", "VAR, batched", "ours, one at a time", "ours, batched",
        "ours, drawn from 10 nearest", "ratio, one at a time", "ratio, batched", f"≥ {BAR:.0f}",
    ]  # fmt: skip
    return [table(names[part], header, lines) for part, lines in rows.items()]


def verdict(times: float) -> str:
    """Whether the bar is met."""
    return "met" if times >= BAR else "missed"


def memory(cases: list[Case], batch: int) -> Section:
    """Peak memory of each variant above what the process held before, each in a process of its own."""
    names = ("VAR, one at a time", "VAR, batched", "ours, batched", "ours, drawn")
    rows = []
    for book, level in cases:
        work = [str(in_a_process(name, book, level, batch)) for name in names]
        full = BOOKS[book]["codebook_size"] * grids((64, 64), LEVEL_SCALES[level])[-1][0] ** 2 * batch * 4 / 2**20
        rows.append([f"{book}, {level}", *work, f"{full:.0f}"])
        print("memory", *rows[-1], flush=True)
    header = ["codebook, level", *names, "rows × codes of the last scale"]
    return table(f"Features to codes of {batch} images: peak memory above what was held before, MiB", header, rows)


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
    call = Work.of(book, level, batch).quantisers()[variant]
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
    parser.add_argument("--batch", type=int, default=4, help="images that are quantised together")
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
    sections = speed(cases, given.batch, rounds)
    if given.memory:
        sections.append(memory(cases, given.batch))
    remarks = [
        "Codes of all variants without drawing were compared and are identical; the script fails where they are not. Drawing "
        "(self-correction with 10 nearest) has no counterpart in VAR.",
        f"One thread, {given.batch} images a batch, medians of {rounds} rounds in turns, ratios taken within a round. Memory: one "
        "call in a process of its own. The transcription's matrix is one product for both branches, as fast as we can write it.",
        "Small networks are the small recipe's, with random weights; the networks see one image at a time in all variants, so "
        "their time is the same in all, and with a small codebook it is most of the encoding.",
    ]
    if torch.cuda.is_available():
        from gpu_encode import on_gpu

        sections += on_gpu(given.quick)
        remarks.append("On the GPU all is float32 without TF32; share of peak is of the FLOP/s of its float32 units.")
    else:
        remarks.append("No GPU was present: the GPU part of this script (gpu_encode.py) has been written and typed, not run.")
    print(report("tokenizer", __doc__ or "", sections, remarks, given.reports))


if __name__ == "__main__":
    main()
