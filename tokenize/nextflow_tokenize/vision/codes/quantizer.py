"""Multi-scale residual quantisation with two codebooks and one shared index.

At each scale the residual is area-averaged to the scale's grid, each position takes the index that is nearest in both
branches at once, and the chosen codes, bicubic-upsampled, are taken off the residual (VAR 2404.02905 algorithm 1; TokenFlow
2412.03069 for the shared index). Both branches of a code have unit length and the residual is not normalised when codes are
taken off it (TokenFlow's reference does so).

The distance d_sem + w·d_pix of unit vectors is 2 − 2⟨r̂_s, c_s⟩ + w(2 − 2⟨r̂_p, c_p⟩), so the nearest code is the largest
product of one row with all codes (`nearest` has the search, and why an image's codes do not depend on what shares its
batch). Everything is float32 whatever the autocast. The cost: near ties fall as float32 rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextflow_tokenize.config.vision import SelfCorrectionConfig
from nextflow_tokenize.schedule import Grid, token_count
from nextflow_tokenize.vision.codes.nearest import largest_products


@dataclass(frozen=True)
class Codes:
    """Codes of a batch of one grid, int64 [B, Σhw] scale by scale, row by row: what a model is fed, and what it predicts."""

    input: Tensor
    target: Tensor


@dataclass(frozen=True)
class Draws:
    """Random choices of self-correction for a batch: `replace` [B, Σhw] bool, `noise` [B, Σhw, k] Gumbel noise."""

    replace: Tensor
    noise: Tensor
    temperature: float | None


@dataclass
class Trace:
    """What training needs of one quantisation: per scale the rows [N, C], their nearest codes [N], and f̂ [B, C, H, W]."""

    rows: list[Tensor] = field(default_factory=list)
    codes: list[Tensor] = field(default_factory=list)
    partial: list[Tensor] = field(default_factory=list)


def area_down(features: Tensor, grid: Grid) -> Tensor:
    """[B, C, H, W] averaged over areas to [B, C, h, w]."""
    return features if features.shape[-2:] == grid else F.interpolate(features, size=grid, mode="area")


def bicubic_up(features: Tensor, grid: Grid) -> Tensor:
    """[B, C, h, w] upsampled to [B, C, H, W] (half-pixel centres, a = −0.75)."""
    return features if features.shape[-2:] == grid else F.interpolate(features, size=grid, mode="bicubic")


def seed_of(sha256: str) -> int:
    """An image's seed: the first 15 hex digits of its hash, so that its draws depend on nothing else."""
    return int(sha256[:15], 16)


def draws(seeds: Sequence[int], tokens: int, config: SelfCorrectionConfig) -> Draws:
    """Self-correction's choices for images of `tokens` codes each, one generator an image, on the CPU for any device."""
    replace, noise = [], []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        applies = torch.rand(1, generator=generator) < config.samples
        replace.append((torch.rand(tokens, generator=generator) < config.tokens) & applies)
        uniform = torch.rand(tokens, config.top_k, generator=generator).clamp_(1e-7, 1 - 1e-7)
        noise.append(-(-uniform.log()).log())
    return Draws(torch.stack(replace), torch.stack(noise), config.temperature)


class MultiScaleQuantizer(nn.Module):
    """The two codebooks, [V, semantic_dim] and [V, pixel_dim], rows of unit length, and the walk over scales."""

    semantic: Tensor
    pixel: Tensor

    def __init__(self, size: int, semantic_dim: int, pixel_dim: int, w_dis: float) -> None:
        super().__init__()
        self.w_dis = w_dis
        self.semantic_weight = 1.0
        """Weight of the semantic distance; 0 chooses by the pixel distance alone (one branch, NextFlow's first stage)."""
        self.dims = (semantic_dim, pixel_dim)
        # Buffers, and not parameters: what moves them is `codebook`.
        self.register_buffer("semantic", F.normalize(torch.randn(size, semantic_dim), dim=1))
        self.register_buffer("pixel", F.normalize(torch.randn(size, pixel_dim), dim=1))

    @property
    def codebook(self) -> Tensor:
        """[V, semantic_dim + pixel_dim], each branch of unit length."""
        return torch.cat([self.semantic, self.pixel], dim=1)

    @torch.no_grad()
    def nearest(self, rows: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
        """The k nearest codes of `rows` [N, C]: distances d_sem + w·d_pix [N, k], ascending, and indices [N, k].

        Of equally near codes the lowest index comes first (on a CPU). Raises ValueError for more neighbours than codes.
        """
        return self._nearest(rows, self.codebook, k)

    def _nearest(self, rows: Tensor, book: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """`nearest`, for callers that hold the codebook already."""
        semantic, pixel = rows.float().split(self.dims, dim=1)
        query = torch.cat(
            [self.semantic_weight * F.normalize(semantic, dim=1), self.w_dis * F.normalize(pixel, dim=1)], dim=1
        )
        similarity, index = largest_products(query, book, k)
        return 2 * self.semantic_weight + 2 * self.w_dis - 2 * similarity, index

    @torch.no_grad()
    def quantize(self, features: Tensor, grids: tuple[Grid, ...], drawn: Draws | None = None) -> Codes:
        """Codes of `features` [B, C, H, W], whose (H, W) is the last of `grids`.

        With `drawn`, the residual follows the drawn codes, so that later targets correct them (as Infinity's bitwise
        self-correction does); the target is the nearest code given that residual.
        """
        inputs: list[Tensor] = []
        targets: list[Tensor] = []
        size = features.shape[0]
        offset = 0

        def choose(rows: Tensor, grid: Grid, book: Tensor) -> Tensor:
            nonlocal offset
            n = grid[0] * grid[1]
            if drawn is None:
                chosen = target = self._nearest(rows, book, 1)[1][:, 0]
            else:
                distance, index = self._nearest(rows, book, min(drawn.noise.shape[-1], len(book)))
                noise = drawn.noise[:, offset : offset + n].to(rows.device).reshape(-1, drawn.noise.shape[-1])
                noise = noise[:, : index.shape[1]]
                score = noise if drawn.temperature is None else noise - distance / drawn.temperature
                pick = index.gather(1, score.argmax(dim=1, keepdim=True))[:, 0]
                target = index[:, 0]
                chosen = torch.where(drawn.replace[:, offset : offset + n].to(rows.device).reshape(-1), pick, target)
            inputs.append(chosen.view(size, n))
            targets.append(target.view(size, n))
            offset += n
            return chosen

        self._walk(features, grids, choose)
        return Codes(torch.cat(inputs, dim=1), torch.cat(targets, dim=1))

    @torch.no_grad()
    def trace(self, features: Tensor, grids: tuple[Grid, ...], dropped: frozenset[int] = frozenset()) -> Trace:
        """The walk of one training step; `dropped` scales (indices from 0) are left out of it."""
        trace = Trace()

        def choose(rows: Tensor, grid: Grid, book: Tensor) -> Tensor:
            codes = self._nearest(rows, book, 1)[1][:, 0]
            trace.rows.append(rows)
            trace.codes.append(codes)
            return codes

        self._walk(features, grids, choose, dropped, trace.partial)
        return trace

    def _walk(
        self,
        features: Tensor,
        grids: tuple[Grid, ...],
        choose: Callable[[Tensor, Grid, Tensor], Tensor],
        dropped: frozenset[int] = frozenset(),
        partial: list[Tensor] | None = None,
    ) -> None:
        """Scale by scale: rows of the area-averaged residual go to `choose`, its codes come off the residual."""
        with torch.autocast(features.device.type, enabled=False):
            residual = features.float()
            size, width, *final = residual.shape
            if tuple(final) != grids[-1]:
                raise ValueError(f"features of {final[0]}×{final[1]} positions do not fit the last grid {grids[-1]}")
            done = torch.zeros_like(residual)
            book = self.codebook
            for scale, (h, w) in enumerate(grids):
                if scale in dropped:
                    continue
                rows = area_down(residual, (h, w)).permute(0, 2, 3, 1).reshape(-1, width)
                codes = choose(rows, (h, w), book)
                update = bicubic_up(book[codes].view(size, h, w, width).permute(0, 3, 1, 2), grids[-1])
                residual = residual - update
                if partial is not None:
                    done = done + update
                    partial.append(done)

    def features(self, codes: Tensor, grids: tuple[Grid, ...]) -> Tensor:
        """f̂ [B, C, H, W]: the sum of bicubic-upsampled codes of `codes` [B, Σ_{k≤n} hw], the first n scales of `grids`.

        Raises ValueError where the number of codes is no whole number of scales, or a code is not in the codebook.
        """
        shown = scales_of(codes.shape[1], grids)
        if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= self.semantic.shape[0]):
            raise ValueError(f"codes must lie in 0..{self.semantic.shape[0] - 1}: they were made by another tokenizer")
        size = codes.shape[0]
        book = self.codebook
        total = torch.zeros(size, book.shape[1], *grids[-1], device=book.device)
        offset = 0
        for h, w in grids[:shown]:
            vectors = book[codes[:, offset : offset + h * w]].view(size, h, w, -1).permute(0, 3, 1, 2)
            total = total + bicubic_up(vectors, grids[-1])
            offset += h * w
        return total


def scales_of(codes: int, grids: tuple[Grid, ...]) -> int:
    """How many scales of `grids` `codes` codes are. Raises ValueError where they end inside a scale."""
    for shown in range(len(grids) + 1):
        if token_count(grids[:shown]) == codes:
            return shown
    raise ValueError(f"{codes} codes end inside a scale of {grids}: give whole scales")
