"""Images for training and evaluating the tokenizer: decoded once, held out by hash, cropped to a step's grid.

Decoded images stay in memory at about twice the highest level's size, because a short run reads each many times and decoding
would cost more than learning. The cost is a bound on their number (`max_images`). Which images are held out, used and drawn
depends on their hashes and the seed, never on their order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from nextflow_data.config import IngestConfig
from PIL import Image

from nextflow_tokenize.schedule import PIXELS_PER_TOKEN, Grid, choose_grids
from nextflow_tokenize.vision.pixels import Box, fit

MAX_UPSCALE = 1.5
"""Training images and crops are enlarged at most this much."""


@dataclass(frozen=True)
class EncodedImage:
    """An image file's hash and how to get its bytes; `load` may raise: the image is then left out and counted."""

    sha256: str
    load: Callable[[], bytes]

    @classmethod
    def of(cls, payload: bytes) -> EncodedImage:
        """An image file in memory."""
        return cls(hashlib.sha256(payload).hexdigest(), lambda: payload)


@dataclass(frozen=True)
class Picture:
    """A decoded RGB image."""

    sha256: str
    image: Image.Image

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.image.height, self.image.width


@dataclass(frozen=True)
class Pool:
    """Decoded images, split; `failed` maps the hash of what could not be used to the reason."""

    training: list[Picture]
    held_out: list[Picture]
    failed: dict[str, str]


def open_picture(encoded: EncodedImage, max_side: int) -> Picture:
    """Decode one image, shrunk so that its longer side is at most `max_side`. Raises what loading or decoding raises."""
    from nextflow_data.images import open_rgb

    return Picture(encoded.sha256, open_rgb(encoded.load(), IngestConfig(), max_side=max_side))


def load_pool(images: Sequence[EncodedImage], levels: Sequence[int], held_out: float, max_images: int, seed: int) -> Pool:
    """Decode and split `images`; repeated hashes count once. Images too small for the lowest level are `failed`."""
    keyed = {hashlib.sha256(f"{seed}:{image.sha256}".encode()).hexdigest(): image for image in images}
    pictures: list[Picture] = []
    failed: dict[str, str] = {}
    for key in sorted(keyed)[:max_images]:
        encoded = keyed[key]
        try:
            picture = open_picture(encoded, 2 * max(levels))
        except Exception as error:  # any of a dozen decoders' errors: one image must not stop a run
            failed[encoded.sha256] = f"{type(error).__name__}: {error}"
            continue
        if choose_grids(*picture.size, sorted(levels, reverse=True), MAX_UPSCALE) is None:
            failed[encoded.sha256] = f"{picture.size[1]}×{picture.size[0]} pixels are too few for level {min(levels)}"
            continue
        pictures.append(picture)
    count = 0 if held_out == 0 or len(pictures) < 2 else max(1, round(held_out * len(pictures)))
    return Pool(pictures[count:], pictures[:count], failed)


class CropSampler:
    """Batches of random crops of one grid. A step's grid is that of a random image at a random level; any image large
    enough is cropped to that ratio, so that every batch is full whatever the mix of ratios."""

    def __init__(
        self, pictures: Sequence[Picture], levels: Sequence[int], batch_tokens: int, crop: float, seed: int
    ) -> None:
        self.pictures, self.batch_tokens, self.crop = pictures, batch_tokens, crop
        self.random = np.random.default_rng(seed)
        self.levels = [level for level in levels if any(choose_grids(*p.size, [level], MAX_UPSCALE) for p in pictures)]
        if not self.levels:
            raise ValueError(
                f"no image is large enough to train on at levels {list(levels)}: "
                f"{min(levels)} needs about {min(levels) / MAX_UPSCALE:.0f} pixels a side"
            )

    def draw(self) -> tuple[tuple[Grid, ...], list[npt.NDArray[np.uint8]]]:
        """One batch: its schedule, and arrays uint8 [16·h, 16·w, 3]."""
        level = self.levels[int(self.random.integers(len(self.levels)))]
        schedule = None
        while schedule is None:
            picture = self.pictures[int(self.random.integers(len(self.pictures)))]
            schedule = choose_grids(*picture.size, [level], MAX_UPSCALE)
        h, w = schedule[-1]
        fitting = [p for p in self.pictures if self._largest(p, (h, w)) is not None]
        arrays = [self._crop(fitting, (h, w)) for _ in range(max(1, self.batch_tokens // (h * w)))]
        return schedule, arrays

    def _largest(self, picture: Picture, grid: Grid) -> tuple[float, float] | None:
        """(height, width) of the largest crop of `grid`'s ratio, if that is large enough."""
        height, width = picture.size
        side = min(height / grid[0], width / grid[1])
        crop = (side * grid[0], side * grid[1])
        return crop if side * MAX_UPSCALE >= PIXELS_PER_TOKEN else None

    def _crop(self, fitting: Sequence[Picture], grid: Grid) -> npt.NDArray[np.uint8]:
        picture = fitting[int(self.random.integers(len(fitting)))]
        largest = self._largest(picture, grid)
        assert largest is not None
        least = max(self.crop, grid[0] * PIXELS_PER_TOKEN / MAX_UPSCALE / largest[0])
        share = self.random.uniform(min(least, 1.0), 1.0)
        height, width = largest[0] * share, largest[1] * share
        top = self.random.uniform(0, picture.size[0] - height)
        left = self.random.uniform(0, picture.size[1] - width)
        box: Box = (left, top, left + width, top + height)
        array = fit(picture.image, grid, box)
        return array[:, ::-1] if self.random.random() < 0.5 else array
