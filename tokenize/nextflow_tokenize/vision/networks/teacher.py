"""The offline semantic teacher: a fixed classical descriptor of every 16×16 cell, not a learned model.

NextFlow's teacher is SigLIP 2; its weights need a download, so the default is what can be computed anywhere: nine bins of
oriented gradients (after Dalal and Triggs, CVPR 2005), mean and deviation of luma and chroma, and the same over the cell's
3×3 neighbourhood for context. It knows edges, texture and colour and no objects: it shows that the semantic branch works,
it does not make codes that understand. `SemanticTeacher` is the border where a learned one (`siglip`) takes its place.
"""

from __future__ import annotations

from math import pi
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from nextflow_tokenize.schedule import PIXELS_PER_TOKEN

BINS = 9
CLASSICAL_DIM = 2 * (BINS + 6)


class SemanticTeacher(Protocol):
    """Fixed features of an image, one vector for each final-grid position."""

    dim: int

    def __call__(self, pixels: Tensor) -> Tensor:
        """[B, 3, 16·H, 16·W] in [−1, 1] to float32 [B, dim, H, W]."""
        ...


class ClassicalTeacher:
    """Oriented gradients and colour statistics by cell and by its 3×3 neighbourhood: 30 numbers a position."""

    dim = CLASSICAL_DIM

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        """[B, 3, 16·H, 16·W] in [−1, 1] to float32 [B, 30, H, W]."""
        with torch.autocast(pixels.device.type, enabled=False):
            red, green, blue = pixels.float().split(1, dim=1)
            luma = 0.299 * red + 0.587 * green + 0.114 * blue  # ITU-R BT.601
            planes = torch.cat([luma, 0.564 * (blue - luma), 0.713 * (red - luma)], dim=1)
            mean = F.avg_pool2d(planes, PIXELS_PER_TOKEN)
            deviation = (F.avg_pool2d(planes.square(), PIXELS_PER_TOKEN) - mean.square()).clamp_min(0).sqrt()
            histogram = F.avg_pool2d(_oriented_gradients(luma), PIXELS_PER_TOKEN)
            histogram = histogram / (histogram.square().sum(dim=1, keepdim=True) + 1e-3).sqrt()
            cell = torch.cat([histogram, mean, deviation], dim=1)
            context = F.avg_pool2d(cell, 3, stride=1, padding=1, count_include_pad=False)
            return torch.cat([cell, context], dim=1)


def _oriented_gradients(luma: Tensor) -> Tensor:
    """Gradient magnitude shared between the two nearest of nine unsigned orientation bins, [B, 9, H, W]."""
    padded = F.pad(luma, (1, 1, 1, 1), mode="replicate")
    dx = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
    dy = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
    magnitude = (dx.square() + dy.square()).sqrt()
    place = torch.atan2(dy, dx).remainder(pi) * (BINS / pi)
    bins = torch.arange(BINS, device=luma.device, dtype=luma.dtype).view(1, BINS, 1, 1)
    distance = (place - bins).remainder(BINS)
    share = (1 - torch.minimum(distance, BINS - distance)).clamp_min(0)
    return magnitude * share
