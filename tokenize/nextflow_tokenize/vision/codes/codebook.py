"""How codes are placed and how they move while the tokenizer trains.

A code has unit length in each branch, so its best place is the direction of the sum of the residuals that chose it,
branch by branch (spherical k-means; the residuals are summed unnormalised, so that long ones, which cost more, weigh
more). Three ways of moving were compared on the same run (benchmarks/bench_codebook.py, reports of 2026-11-25): running
means of those sums, the default; TokenFlow's gradient of the codebook loss; SimVQ's one linear map for all codes. At
4,096 codes running means end 0.2 to 0.4 dB above the others, and none collapses. At 32,768 codes and few images they
still lead, restarts of dead codes raise the perplexity by up to a half (11,776 to 16,855 from a random start), and a
k-means start only pays while there are many more residuals to place codes on than codes. The cost: sums over all
processes every step. What decides over all processes is summed over them, so any number of processes moves the codes
alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextflow_tokenize.config.vision import VisionTrainingConfig
from nextflow_tokenize.schedule import Grid
from nextflow_tokenize.vision import processes
from nextflow_tokenize.vision.codes.quantizer import MultiScaleQuantizer, Trace

CANDIDATES = 1024
"""Residuals of each micro-batch from which dead codes may start again."""
IN_USE = 0.03
"""A code counts as used while its running count of assignments a step is at least this."""


@torch.no_grad()
def place(
    quantizer: MultiScaleQuantizer,
    features: Sequence[tuple[Tensor, tuple[Grid, ...]]],
    iterations: int,
    generator: torch.Generator,
) -> None:
    """Spherical k-means on the residuals of all scales; a code that nobody chose starts again on a random residual."""
    for iteration in range(iterations):
        rows, codes = _assignments(quantizer, features)
        count, total = sums(quantizer, rows, codes)
        dead = count == 0 if iteration else torch.ones_like(count, dtype=torch.bool)
        total[dead] = rows[_random(len(rows), int(dead.sum()), generator, rows.device)]
        assign(quantizer, total)


@torch.no_grad()
def place_semantic(
    quantizer: MultiScaleQuantizer, features: Sequence[tuple[Tensor, tuple[Grid, ...]]], generator: torch.Generator
) -> None:
    """Gives each code of a pixel-only codebook the mean semantic direction of what chose it; the pixel codes stay.

    Our choice for the beginning of the joint stage: the paper hands over the pixel codebook and does not say where the
    semantic one starts. Codes that nobody chose take a random row's semantic part.
    """
    weight, quantizer.semantic_weight = quantizer.semantic_weight, 0.0
    rows, codes = _assignments(quantizer, features)
    quantizer.semantic_weight = weight
    count, total = sums(quantizer, rows, codes)
    dead = count == 0
    total[dead] = rows[_random(len(rows), int(dead.sum()), generator, rows.device)]
    quantizer.semantic.copy_(F.normalize(total[:, : quantizer.dims[0]], dim=1))


def _assignments(
    quantizer: MultiScaleQuantizer, features: Sequence[tuple[Tensor, tuple[Grid, ...]]]
) -> tuple[Tensor, Tensor]:
    traces = [quantizer.trace(batch, schedule) for batch, schedule in features]
    rows = torch.cat([row for trace in traces for row in trace.rows])
    return rows, torch.cat([code for trace in traces for code in trace.codes])


class RunningMeans(nn.Module):
    """Exponential means of the assigned residuals and counts of each code, and the codes that follow them."""

    count: Tensor
    total: Tensor

    def __init__(self, quantizer: MultiScaleQuantizer, decay: float, restart_below: float, seed: int = 0) -> None:
        super().__init__()
        # Not a submodule of this one: the tokenizer owns it.
        self._quantizer = [quantizer]
        self.decay, self.restart_below, self.seed = decay, restart_below, seed
        self.register_buffer("count", torch.ones(quantizer.semantic.shape[0], device=quantizer.semantic.device))
        self.register_buffer("total", quantizer.codebook.clone())

    def loss(self, trace: Trace) -> Tensor:
        """0: the codebook follows running means, so no gradient has to move it."""
        return self.total.new_zeros(())

    @torch.no_grad()
    def update(self, traces: Sequence[Trace], step: int = 0, moved: bool = True) -> None:
        """Takes in one step's assignments, those of all its micro-batches; `moved` False only counts them."""
        quantizer = self._quantizer[0]
        batches = [(torch.cat(trace.rows), torch.cat(trace.codes)) for trace in traces]
        found = [sums(quantizer, rows, codes) for rows, codes in batches]
        count = processes.total(torch.stack([c for c, _ in found]).sum(0))
        self.count.mul_(self.decay).add_(count, alpha=1 - self.decay)
        if not moved:
            return
        total = processes.total(torch.stack([t for _, t in found]).sum(0))
        self.total.mul_(self.decay).add_(total, alpha=1 - self.decay)
        dead = self.count < self.restart_below
        if revived := int(dead.sum()):
            self.total[dead] = self._fresh([rows for rows, _ in batches], revived, step)
            self.count[dead] = 1.0
        assign(quantizer, self.total)

    def _fresh(self, batches: Sequence[Tensor], wanted: int, step: int) -> Tensor:
        """Random residuals of the step, the same ones however its micro-batches are shared out."""
        local = []
        for index, rows in enumerate(batches):
            number = processes.rank() * len(batches) + index
            local.append(rows[_random(len(rows), CANDIDATES, seeded(self.seed, step, number), rows.device)])
        pool = processes.gathered(torch.cat(local))
        return pool[_random(len(pool), wanted, seeded(self.seed, step), pool.device)]

    def usage(self) -> float:
        """Share of codes that steps of late have chosen."""
        return float((self.count >= IN_USE).float().mean())

    def perplexity(self) -> float:
        """exp(entropy) of what steps of late have chosen: how many codes, equally used, would be as varied."""
        share = self.count[self.count > 0].double() / self.count.sum()
        return float(torch.exp(-(share * share.log()).sum()))


class GradientCodes(RunningMeans):
    """Codes moved by the gradient of TokenFlow's codebook loss: mean (code − residual)² of unit vectors, over scales.

    With `simvq` the codes are a fixed random basis times one learnt matrix a branch (arXiv 2411.02038), so all codes move
    with each gradient and none is left behind. Counts are kept as in RunningMeans, for usage and restarts (codes of `simvq`
    have no place of their own and never restart).
    """

    def __init__(
        self, quantizer: MultiScaleQuantizer, decay: float, restart_below: float, seed: int = 0, simvq: bool = False
    ) -> None:
        super().__init__(quantizer, decay, restart_below, seed)
        self.simvq = simvq
        branches = (quantizer.semantic.clone(), quantizer.pixel.clone())
        if simvq:
            for name, branch in zip(("semantic", "pixel"), branches, strict=True):
                self.register_buffer(f"{name}_basis", branch)
            self.maps = nn.ParameterList(torch.eye(branch.shape[1], device=branch.device) for branch in branches)
        else:
            self.rows = nn.ParameterList(branches)

    def codes(self) -> list[Tensor]:
        """The two codebooks with their gradients, rows of unit length."""
        if self.simvq:
            raw = [self.get_buffer(f"{name}_basis") @ m for name, m in zip(("semantic", "pixel"), self.maps, strict=True)]
        else:
            raw = list(self.rows)
        return [F.normalize(branch, dim=1) for branch in raw]

    def loss(self, trace: Trace) -> Tensor:
        """TokenFlow's codebook loss of one micro-batch."""
        quantizer, found = self._quantizer[0], []
        branches = self.codes()
        for rows, chosen in zip(trace.rows, trace.codes, strict=True):
            parts = rows.split(quantizer.dims, dim=1)
            gaps = [
                (branch[chosen] - F.normalize(part, dim=1)).square() for branch, part in zip(branches, parts, strict=True)
            ]
            found.append(torch.cat(gaps, dim=1).mean())
        return torch.stack(found).mean()

    @torch.no_grad()
    def update(self, traces: Sequence[Trace], step: int = 0, moved: bool = True) -> None:
        """Counts the assignments, restarts dead codes, and hands the moved codes to the quantiser."""
        super().update(traces, step, moved=False)
        quantizer = self._quantizer[0]
        dead = self.count < self.restart_below
        if (revived := int(dead.sum())) and not self.simvq:
            fresh = self._fresh([torch.cat(trace.rows) for trace in traces], revived, step)
            for row, part in zip(self.rows, fresh.split(quantizer.dims, dim=1), strict=True):
                row[dead] = F.normalize(part, dim=1)
            self.count[dead] = 1.0
        semantic, pixel = self.codes()
        quantizer.semantic.copy_(semantic)
        quantizer.pixel.copy_(pixel)


def seeded(*numbers: int) -> torch.Generator:
    """A generator that depends on these numbers alone."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def learner(quantizer: MultiScaleQuantizer, settings: VisionTrainingConfig) -> RunningMeans:
    """What moves the codes in a training with these settings; in the decoder stage they stay and are only counted."""
    if settings.codebook == "ema" or settings.stage == "decoder":
        return RunningMeans(quantizer, settings.ema_decay, settings.restart_below, settings.seed)
    return GradientCodes(
        quantizer, settings.ema_decay, settings.restart_below, settings.seed, simvq=settings.codebook == "simvq"
    )


def sums(quantizer: MultiScaleQuantizer, rows: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """For each code, how many rows chose it [V] and their sum [V, C]."""
    size = quantizer.semantic.shape[0]
    count = torch.bincount(codes, minlength=size).float()
    total = torch.zeros(size, rows.shape[1], device=rows.device).index_add_(0, codes, rows)
    return count, total


def assign(quantizer: MultiScaleQuantizer, total: Tensor) -> None:
    """Puts each code on the direction of its row of `total` [V, C], branch by branch."""
    semantic, pixel = total.split(quantizer.dims, dim=1)
    quantizer.semantic.copy_(F.normalize(semantic, dim=1))
    quantizer.pixel.copy_(F.normalize(pixel, dim=1))


def _random(size: int, count: int, generator: torch.Generator, device: torch.device) -> Tensor:
    return torch.randint(size, (count,), generator=generator).to(device)
