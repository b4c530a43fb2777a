"""What drawing codes costs: the reconstruction from drawn codes beside that from nearest ones, and beside the naive way.

As the project does it, the residual of the next scale follows the drawn code, so later scales correct what a draw has
spoilt. The naive variant draws the same codes from the same neighbours but lets the residual follow the nearest code; its
later scales know nothing of the draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from nextflow_tokenize.config.vision import SelfCorrectionConfig
from nextflow_tokenize.schedule import Grid, token_count
from nextflow_tokenize.vision.codes.quantizer import Draws, area_down, bicubic_up, draws
from nextflow_tokenize.vision.model import VisionTokenizer
from nextflow_tokenize.vision.scores.metrics import psnr
from torch import Tensor


@dataclass(frozen=True)
class Loss:
    """Mean PSNR in dB decoded from nearest, drawn and naively drawn codes; `changed`: share of codes not the nearest."""

    nearest: float
    drawn: float
    naive: float
    changed: float
    images: int


@torch.no_grad()
def naive_codes(tokenizer: VisionTokenizer, features: Tensor, grids: tuple[Grid, ...], drawn: Draws) -> Tensor:
    """Codes [1, Σhw] drawn at each scale from the neighbours of a residual that follows the nearest codes."""
    quantizer = tokenizer.quantizer
    residual, offset, found = features.clone(), 0, []
    for h, w in grids:
        rows = area_down(residual, (h, w)).permute(0, 2, 3, 1).reshape(h * w, -1)
        distance, index = quantizer.nearest(rows, drawn.noise.shape[-1])
        noise = drawn.noise[0, offset : offset + h * w]
        score = noise if drawn.temperature is None else noise - distance / drawn.temperature
        pick = index.gather(1, score.argmax(dim=1, keepdim=True))[:, 0]
        found.append(torch.where(drawn.replace[0, offset : offset + h * w], pick, index[:, 0]))
        vectors = tokenizer.codebook[index[:, 0]].view(1, h, w, -1).permute(0, 3, 1, 2)
        residual = residual - bicubic_up(vectors, grids[-1])
        offset += h * w
    return torch.cat(found)[None]


@torch.no_grad()
def measure(
    tokenizer: VisionTokenizer, images: Sequence[tuple[Tensor, tuple[Grid, ...]]], config: SelfCorrectionConfig
) -> Loss:
    """The three ways on images [1, 3, H, W] with their schedules."""
    sums = torch.zeros(4, dtype=torch.float64)
    for seed, (pixels, grids) in enumerate(images):
        drawn = draws([seed], token_count(grids), config)
        nearest = tokenizer.encode(pixels, grids).target
        fed = tokenizer.encode(pixels, grids, [seed], config)
        naive = naive_codes(tokenizer, tokenizer.features(pixels), grids, drawn)
        scores = [psnr(tokenizer.decode(codes, grids), pixels) for codes in (nearest, fed.input, naive)]
        sums += torch.tensor([*scores, float((fed.input != fed.target).float().mean())], dtype=torch.float64)
    nearest_psnr, drawn_psnr, naive_psnr, changed = (sums / len(images)).tolist()
    return Loss(nearest_psnr, drawn_psnr, naive_psnr, changed, len(images))
