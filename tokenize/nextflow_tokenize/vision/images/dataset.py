"""Images for training and evaluating the tokenizer: found by hash, decoded once where memory allows, cropped to one grid.

Every micro-batch is a function of the seed and its number alone: its level and grid, which images, which crops. So training
goes on exactly from any step, on any number of processes, and no loader has a state to save. The cost: images are drawn with
replacement, so an epoch is an expectation and not a pass. A micro-batch holds images of one grid; where too few images have
a grid as their own, larger ones are cropped to its ratio, so that every micro-batch is full whatever the mix of ratios.

Which images are held out, used and drawn depends on their hashes and the seed, never on their order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from nextflow_data.common.errors import RequestError
from nextflow_data.config import IngestConfig
from nextflow_data.storage.errors import STORE_FAULTS
from PIL import Image

from nextflow_tokenize.schedule import LEVEL_OF, PIXELS_PER_TOKEN, Grid, choose_grids
from nextflow_tokenize.vision.images.pixels import Box, fit

MAX_UPSCALE = 1.5
"""Training images and crops are enlarged at most this much."""
TRIES = 20
"""Images that may fail to load, one after the other, before a crop gives up."""


class NoImages(RequestError):
    """Nothing to train on: no image, or none that loads and is large enough; the message gives the first reasons."""


@dataclass(frozen=True)
class EncodedImage:
    """An image file's hash and how to get its bytes; `load` may raise: the image is then left out and counted. `size` is its
    (height, width) in pixels where that is known without decoding."""

    sha256: str
    load: Callable[[], bytes]
    size: tuple[int, int] | None = None

    @classmethod
    def of(cls, payload: bytes) -> EncodedImage:
        """An image file in memory."""
        return cls(hashlib.sha256(payload).hexdigest(), lambda: payload)


class Cache:
    """Decoded images within a budget of bytes; the first that come stay, as each is as likely as any to be asked for."""

    def __init__(self, mib: int, max_side: int) -> None:
        self.left, self.max_side = mib << 20, max_side
        self._kept: dict[str, Image.Image] = {}

    def open(self, encoded: EncodedImage) -> Image.Image:
        """The image as RGB, its longer side at most `max_side`. Raises what loading or decoding raises."""
        from nextflow_data.images.measure import open_rgb

        kept = self._kept.get(encoded.sha256)
        if kept is None:
            kept = open_rgb(encoded.load(), IngestConfig(), max_side=self.max_side)
            size = 3 * kept.width * kept.height
            if size <= self.left:
                self.left -= size
                self._kept[encoded.sha256] = kept
        return kept


@dataclass(frozen=True)
class Picture:
    """An image that can be decoded; `size` is (height, width) in pixels."""

    encoded: EncodedImage
    size: tuple[int, int]
    cache: Cache

    @property
    def sha256(self) -> str:
        """Of the file."""
        return self.encoded.sha256

    @property
    def image(self) -> Image.Image:
        """RGB, shrunk to what training needs. Raises what loading or decoding raises."""
        return self.cache.open(self.encoded)


@dataclass(frozen=True)
class Pool:
    """Images, split; `failed` maps the hash of what could not be used to the reason."""

    training: list[Picture]
    held_out: list[Picture]
    failed: dict[str, str] = field(default_factory=dict)


def open_picture(encoded: EncodedImage, max_side: int, cache: Cache | None = None) -> Picture:
    """One image, decoded now unless its size is known. Raises what loading or decoding raises."""
    cache = cache or Cache(0, max_side)
    if encoded.size is not None:
        # As the cache will shrink it: crops are chosen by what there will be to crop.
        shrunk = min(1.0, cache.max_side / max(encoded.size))
        return Picture(encoded, (round(encoded.size[0] * shrunk), round(encoded.size[1] * shrunk)), cache)
    image = cache.open(encoded)
    return Picture(encoded, (image.height, image.width), cache)


def load_pool(
    images: Sequence[EncodedImage],
    levels: Sequence[int],
    held_out: float,
    max_images: int,
    seed: int,
    cache_mib: int = 1 << 20,
) -> Pool:
    """Split `images`; repeated hashes count once. Images too small for the lowest level are `failed`."""
    keyed = {hashlib.sha256(f"{seed}:{image.sha256}".encode()).hexdigest(): image for image in images}
    cache = Cache(cache_mib, 2 * max(levels))
    pictures: list[Picture] = []
    failed: dict[str, str] = {}
    for key in sorted(keyed)[:max_images]:
        encoded = keyed[key]
        try:
            picture = open_picture(encoded, cache.max_side, cache)
        except STORE_FAULTS:
            raise
        except Exception as error:  # any of a dozen decoders' errors: one image must not stop a run
            failed[encoded.sha256] = f"{type(error).__name__}: {error}"
            continue
        if choose_grids(*picture.size, sorted(levels, reverse=True), MAX_UPSCALE) is None:
            failed[encoded.sha256] = f"{picture.size[1]}×{picture.size[0]} pixels are too few for level {min(levels)}"
            continue
        pictures.append(picture)
    count = 0 if held_out == 0 or len(pictures) < 2 else max(1, round(held_out * len(pictures)))
    return Pool(pictures[count:], pictures[:count], failed)


@dataclass(frozen=True)
class MicroBatch:
    """Crops uint8 [16·h, 16·w, 3] for the last grid (h, w) of `schedule`; `failed`: images that did not load, with why."""

    schedule: tuple[Grid, ...]
    arrays: list[npt.NDArray[np.uint8]]
    failed: dict[str, str]


class CropSampler:
    """Micro-batches of random crops of one grid, by number."""

    def __init__(
        self,
        pictures: Sequence[Picture],
        levels: Sequence[int],
        batch_tokens: int,
        crop: float,
        seed: int,
        flip: bool = True,
    ) -> None:
        self.pictures, self.batch_tokens, self.crop, self.seed = pictures, batch_tokens, crop, seed
        self.flip = flip
        self._sizes = np.array([picture.size for picture in pictures], dtype=np.float64).reshape(-1, 2)
        own = {level: [choose_grids(*picture.size, [level], MAX_UPSCALE) for picture in pictures] for level in levels}
        self.levels = [level for level in levels if any(own[level])]
        if not self.levels:
            raise NoImages(
                f"no image is large enough to train on at levels {list(levels)}: "
                f"{min(levels)} needs about {min(levels) / MAX_UPSCALE:.0f} pixels a side"
            )
        self._able = {level: [i for i, grids in enumerate(own[level]) if grids] for level in self.levels}
        self._own: dict[int, dict[tuple[Grid, ...], list[int]]] = {}
        for level in self.levels:
            buckets: dict[tuple[Grid, ...], list[int]] = self._own.setdefault(level, {})
            for i in self._able[level]:
                schedule = own[level][i]
                assert schedule is not None
                buckets.setdefault(schedule, []).append(i)
        self._of = {
            level: {i: grids for grids, members in self._own[level].items() for i in members} for level in self.levels
        }

    def draw(self, number: int, purpose: int = 0) -> MicroBatch:
        """Micro-batch `number`; `purpose` tells apart what is drawn for training (0) and for its start (1).

        Raises NoImages where image after image does not load.
        """
        random = np.random.default_rng([self.seed, purpose, number])
        level = self.levels[int(random.integers(len(self.levels)))]
        able = self._able[level]
        schedule = self._of[level][able[int(random.integers(len(able)))]]
        h, w = schedule[-1]
        count = max(1, self.batch_tokens // (h * w))
        bucket = self._own[level][schedule]
        fitting: Sequence[int] = bucket
        if len(bucket) < count:
            side = np.minimum(self._sizes[:, 0] / h, self._sizes[:, 1] / w)
            fitting = np.flatnonzero(side * MAX_UPSCALE >= PIXELS_PER_TOKEN).tolist()
        failed: dict[str, str] = {}
        arrays = [self._crop(random, fitting, schedule, failed) for _ in range(count)]
        return MicroBatch(schedule, arrays, failed)

    def _crop(
        self, random: np.random.Generator, fitting: Sequence[int], schedule: tuple[Grid, ...], failed: dict[str, str]
    ) -> npt.NDArray[np.uint8]:
        for _ in range(TRIES):
            chosen = fitting[int(random.integers(len(fitting)))]
            picture, own = self.pictures[chosen], self._of[LEVEL_OF[len(schedule)]].get(chosen) == schedule
            try:
                image = picture.image
            except STORE_FAULTS:
                raise
            except Exception as error:  # as in load_pool; another image takes its place
                failed[picture.sha256] = f"{type(error).__name__}: {error}"
                continue
            # Whole, stretched to its grid, is how an image is encoded.
            box = None if own and self.crop == 1.0 else self._box(random, image, schedule[-1])
            array = fit(image, schedule[-1], box)
            return array[:, ::-1] if self.flip and random.random() < 0.5 else array
        raise NoImages(
            f"{TRIES} images one after the other could not be read; the last reasons: {list(failed.values())[-3:]}"
        )

    def _box(self, random: np.random.Generator, image: Image.Image, grid: Grid) -> Box:
        """A random part of `grid`'s ratio: between the whole and the smallest that `crop` and MAX_UPSCALE allow."""
        side = min(image.height / grid[0], image.width / grid[1])
        least = max(self.crop, PIXELS_PER_TOKEN / MAX_UPSCALE / side)
        share = random.uniform(min(least, 1.0), 1.0)
        height, width = side * grid[0] * share, side * grid[1] * share
        top = random.uniform(0, max(0.0, image.height - height))
        left = random.uniform(0, max(0.0, image.width - width))
        # The product of a ratio may exceed the side it came from by a rounding.
        return left, top, min(left + width, image.width), min(top + height, image.height)
