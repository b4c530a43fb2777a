"""Keeping the codebook alive: placing it by k-means, moving it by running means, restarting dead codes.

Codes have unit length in each branch, so a code's best place is the direction of the sum of the residuals that chose it,
branch by branch (spherical k-means; the residuals are summed unnormalised, so that long ones, which cost more, weigh more).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from nextflow_tokenize.schedule import Grid
from nextflow_tokenize.vision.quantizer import MultiScaleQuantizer, Trace


@torch.no_grad()
def place(
    quantizer: MultiScaleQuantizer,
    features: Sequence[tuple[Tensor, tuple[Grid, ...]]],
    iterations: int,
    generator: torch.Generator,
) -> None:
    """Spherical k-means on the residuals of all scales; a code that nobody chose starts again on a random residual."""
    for iteration in range(iterations):
        traces = [quantizer.trace(batch, schedule) for batch, schedule in features]
        rows = torch.cat([row for trace in traces for row in trace.rows])
        codes = torch.cat([code for trace in traces for code in trace.codes])
        count, total = _sums(quantizer, rows, codes)
        dead = count == 0 if iteration else torch.ones_like(count, dtype=torch.bool)
        total[dead] = rows[torch.randint(len(rows), (int(dead.sum()),), generator=generator)]
        _assign(quantizer, total)


class RunningMeans:
    """Exponential means of the assigned residuals and counts of each code, and the codes that follow them."""

    def __init__(
        self, quantizer: MultiScaleQuantizer, decay: float, restart_below: float, generator: torch.Generator
    ) -> None:
        self.quantizer, self.decay, self.restart_below, self.generator = quantizer, decay, restart_below, generator
        size = quantizer.semantic.shape[0]
        self.count = torch.ones(size)
        self.total = quantizer.codebook.clone()

    @torch.no_grad()
    def update(self, trace: Trace) -> None:
        """Take in one step's assignments."""
        rows, codes = torch.cat(trace.rows), torch.cat(trace.codes)
        count, total = _sums(self.quantizer, rows, codes)
        self.count.mul_(self.decay).add_(count, alpha=1 - self.decay)
        self.total.mul_(self.decay).add_(total, alpha=1 - self.decay)
        dead = self.count < self.restart_below
        if revived := int(dead.sum()):
            self.total[dead] = rows[torch.randint(len(rows), (revived,), generator=self.generator)]
            self.count[dead] = 1.0
        _assign(self.quantizer, self.total)

    def usage(self) -> float:
        """Share of codes that steps of late have chosen."""
        return float((self.count >= self.restart_below).float().mean())


def _sums(quantizer: MultiScaleQuantizer, rows: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """For each code, how many rows chose it [V] and their sum [V, C]."""
    size = quantizer.semantic.shape[0]
    count = torch.bincount(codes, minlength=size).float()
    total = torch.zeros(size, rows.shape[1]).index_add_(0, codes, rows)
    return count, total


def _assign(quantizer: MultiScaleQuantizer, total: Tensor) -> None:
    semantic, pixel = total.split(quantizer.dims, dim=1)
    quantizer.semantic.copy_(F.normalize(semantic, dim=1))
    quantizer.pixel.copy_(F.normalize(pixel, dim=1))
