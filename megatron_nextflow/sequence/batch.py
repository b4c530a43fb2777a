"""From layouts to the tensors of one forward pass: packs end to end in one row, or rows side by side.

Training takes the packs of a micro-batch as one row, without padding them to the longest: a slot's visible range never
leaves its document, so nothing more is needed to keep them apart. Rows therefore differ in length from pass to pass, which
pipeline stages tell each other. Generation feeds rows side by side. Under context parallelism each process keeps two
stretches of the row, one from either end, in Megatron's order, so that all have about the same number of visible keys. The
cost: work is balanced for causal rows, and only nearly for a row with one very large image.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from nextflow_tokenize.schedule import Grid
from numpy.typing import NDArray

from megatron_nextflow.sequence.pack_layout import ImageInput, PackLayout, empty_layout
from megatron_nextflow.sequence.upsample import TAPS, bicubic_taps

_PLANES = ("positions", "visible")


@dataclass(frozen=True)
class LayoutBatch:
    """B rows of L slots as tensors: fields of PackLayout as [B, L], positions [3, B, L], visible [2, B, L].

    `images` are those of row 0, then of row 1, …; `vision_rows` int64 [N] are the places of this batch's vision slots among
    all vision slots of `images`, or None where it has them all, in order. `spans`: the stretches [first, last) of the whole
    rows, `length` slots long, that the L slots are; `visible` counts in whole rows. `used` slots are not padding and see
    `pairs` slots in sum.
    """

    token_ids: torch.Tensor
    is_vision: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    scale: torch.Tensor
    num_scales: torch.Tensor
    positions: torch.Tensor
    visible: torch.Tensor
    images: tuple[ImageInput, ...]
    used: int
    pairs: int
    length: int
    spans: tuple[tuple[int, int], ...]
    vision_rows: torch.Tensor | None = None

    def to(self, device: torch.device | str) -> LayoutBatch:
        """The batch with its tensors on `device`; `visible` stays where it is, because attention is planned on the host."""
        moved: dict[str, Any] = {
            field.name: value.to(device, non_blocking=True)
            for field in fields(self)
            if field.name not in ("visible", "vision_rows") and isinstance(value := getattr(self, field.name), torch.Tensor)
        }
        return replace(self, **moved)

    def part(self, rank: int, size: int) -> LayoutBatch:
        """What context-parallel process `rank` of `size` holds of a whole row: stretches `rank` and 2·size − 1 − `rank`.

        Raises ValueError where there are several rows, or 2·size does not divide their length.
        """
        if size == 1:
            return self
        if self.token_ids.size(0) > 1 or self.length % (2 * size):
            raise ValueError(
                f"{len(self.token_ids)} rows of {self.length} slots cannot be cut into {2 * size} equal stretches"
            )
        stretch = self.length // (2 * size)
        spans = tuple((k * stretch, (k + 1) * stretch) for k in (rank, 2 * size - 1 - rank))
        slots = torch.cat([torch.arange(*span) for span in spans])
        cut: dict[str, Any] = {
            field.name: value[..., slots]
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), torch.Tensor)
        }
        vision = self.is_vision.flatten().cumsum(0).view(self.is_vision.shape)[:, slots] - 1
        seen = (cut["visible"][1] - cut["visible"][0]).sum()
        real = int((slots < self.used).sum())  # padding is at the end, and sees itself
        return replace(
            self,
            **cut,
            used=real,
            pairs=int(seen) - (slots.numel() - real),
            spans=spans,
            vision_rows=vision[cut["is_vision"]],
        )


def collate(layouts: Sequence[PackLayout]) -> LayoutBatch:
    """Layouts of equal length side by side."""

    def stack(name: str) -> torch.Tensor:
        return torch.from_numpy(np.stack([getattr(layout, name) for layout in layouts], axis=-2 if name in _PLANES else 0))

    length = layouts[0].token_ids.size
    return LayoutBatch(
        **{field.name: stack(field.name) for field in fields(PackLayout) if field.name not in ("images", "used")},
        images=tuple(image for layout in layouts for image in layout.images),
        used=sum(layout.used for layout in layouts),
        pairs=sum(int((layout.visible[1] - layout.visible[0])[: layout.used].sum()) for layout in layouts),
        length=length,
        spans=((0, length),),
    )


def join(layouts: Sequence[PackLayout], multiple: int = 1) -> LayoutBatch:
    """Layouts end to end in one row, their own padding left out, padded at its end to a multiple of `multiple` slots."""
    used = sum(layout.used for layout in layouts)
    row = empty_layout(-(-used // multiple) * multiple)
    images: list[ImageInput] = []
    first = 0
    for layout in layouts:
        here = slice(first, first + layout.used)
        for field in fields(PackLayout):
            if field.name not in ("images", "used"):
                shift = first if field.name == "visible" else 0
                getattr(row, field.name)[..., here] = getattr(layout, field.name)[..., : layout.used] + shift
        images += [replace(image, slot=image.slot + first) for image in layout.images]
        first += layout.used
    return collate([replace(row, images=tuple(images), used=used)])


@lru_cache(maxsize=512)
def _image_taps(grids: tuple[Grid, ...]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Indices into an image's flat codes and their weights for its slots of scales 2…K, both [Σ_{k≥2} hw, 16]."""
    starts = np.cumsum([0] + [h * w for h, w in grids])
    ids, weights = [np.empty((0, TAPS), np.int64)], [np.empty((0, TAPS), np.float32)]
    for start, (source, target) in zip(starts, itertools.pairwise(grids), strict=False):
        index, weight = bicubic_taps(source, target)
        ids.append(index + start)
        weights.append(weight)
    return np.concatenate(ids), np.concatenate(weights)


def vision_taps(images: Sequence[ImageInput], rows: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Code ids int64 [N, 16] and weights float32 [N, 16] of the vision slots of `images`, in the order of the slots.

    The input of a slot is Σ_t weight_t · codebook[id_t]: the bicubic upsampling of the scale before (see `upsample`).
    `rows` picks slots among them.
    """
    ids, weights = [np.empty((0, TAPS), np.int64)], [np.empty((0, TAPS), np.float32)]
    for image in images:
        index, weight = _image_taps(image.grids)
        ids.append(image.codes[index])
        weights.append(weight)
    taps = torch.from_numpy(np.concatenate(ids)), torch.from_numpy(np.concatenate(weights))
    return taps if rows is None else (taps[0][rows], taps[1][rows])


def vision_inputs(codebook: torch.Tensor, images: Sequence[ImageInput], rows: torch.Tensor | None = None) -> torch.Tensor:
    """Upsampled codebook vectors [N, C] for the vision slots of `images`, from `codebook` [V, C]; differentiable in it.

    Row order is that of the slots, so it fills `is_vision` read row by row. The last scale's input codes enter nowhere.
    `rows` picks slots among them.
    """
    ids, weights = vision_taps(images, rows)
    device = codebook.device
    weights = weights.to(device, codebook.dtype)
    return torch.nn.functional.embedding_bag(ids.to(device), codebook, mode="sum", per_sample_weights=weights)
