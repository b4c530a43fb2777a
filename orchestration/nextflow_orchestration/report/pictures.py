"""Pictures for a report: originals by reference, reconstructions from codes, both small and as data: URIs.

Looking is best effort: a moved source, a missing extra or a tokenizer that is not at hand leaves a picture out and says why
once, because a report must come out of any run. Thumbnails are JPEG at quality 80: a report of fifty pictures is a megabyte.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nextflow_data.storage.files import local_copy
from nextflow_data.storage.store_path import AnyPath

from nextflow_orchestration.report.images import Images
from nextflow_orchestration.report.model import Pair

if TYPE_CHECKING:
    from PIL import Image as Pillow

SIDE = 256
"""Longest side of a thumbnail, in pixels."""


def data_uri(picture: Pillow.Image, side: int = SIDE, lossless: bool = False) -> str:
    """A picture, shrunk to `side` pixels if it is larger, as a data: URI."""
    small = picture.convert("RGB")
    small.thumbnail((side, side))
    out = io.BytesIO()
    if lossless:
        small.save(out, "PNG", optimize=True)
    else:
        small.save(out, "JPEG", quality=80, optimize=True)
    return f"data:image/{'png' if lossless else 'jpeg'};base64,{base64.b64encode(out.getvalue()).decode()}"


def file_uri(path: Path, side: int = 512) -> str:
    """An image file as a data: URI. Raises what Pillow raises for a file that is none."""
    from PIL import Image

    with Image.open(path) as picture:
        return data_uri(picture, side, lossless=True)


def psnr_of_pictures(first: Pillow.Image, second: Pillow.Image) -> float:
    """As `metrics.psnr`, of two RGB pictures of one size. Needs torch, as whatever decoded one of them."""
    import numpy as np
    from nextflow_tokenize.vision.images.pixels import to_pixels
    from nextflow_tokenize.vision.scores.metrics import psnr

    return psnr(*(to_pixels([np.asarray(picture)]) for picture in (first, second)))


class Gallery:
    """Originals by sha256 and reconstructions by codes. `problems` says, once each, why some could not be had."""

    def __init__(
        self,
        load: Callable[[Any], bytes] | None = None,
        images: Images | None = None,
        tokenizer: AnyPath | None = None,
    ) -> None:
        self._load, self._images, self._folder = load, images, tokenizer
        self._tokenizer: Any = None
        self.problems: dict[str, None] = {}

    def find(self, wanted: Set[str], documents: Set[str] = frozenset()) -> dict[str, Any]:
        """Image nodes by sha256, as `Images.find` gives them; none without documents to look in."""
        return {} if self._images is None else self._images.find(wanted, documents)

    def payload(self, image: Any) -> bytes | None:
        """An image node's encoded bytes, None where they cannot be read."""
        if self._load is None:
            return None
        try:
            return self._load(image)
        except Exception as error:  # a report comes out whatever a source file has become
            self.problems[f"Some originals are not shown: {type(error).__name__}: {error}"[:300]] = None
            return None

    def picture(self, image: Any, side: int) -> Pillow.Image | None:
        """An image node as an RGB picture of at most `side` pixels."""
        payload = self.payload(image)
        if payload is None:
            return None
        try:
            from nextflow_data.config import IngestConfig
            from nextflow_data.images.measure import open_rgb

            return open_rgb(payload, IngestConfig(), max_side=side)
        except Exception as error:
            self.problems[f"Some originals are not shown: {type(error).__name__}: {error}"[:300]] = None
            return None

    def thumbnail(self, image: Any, side: int = 120) -> str | None:
        """An image node as a small data: URI."""
        picture = self.picture(image, side)
        return data_uri(picture, side) if picture is not None else None

    def reconstruct(self, codes: Sequence[int], grids: tuple[tuple[int, int], ...]) -> Pillow.Image | None:
        """What the codes of all scales of `grids` decode to; None without a tokenizer or torch."""
        tokenizer = self.tokenizer()
        if tokenizer is None:
            return None
        import torch
        from nextflow_tokenize.vision.images.pixels import to_images
        from nextflow_tokenize.vision.model import cpu_threads

        try:
            with cpu_threads(1):
                return to_images(tokenizer.decode(torch.tensor([list(map(int, codes))]), grids))[0]
        except ValueError as error:
            self.problems[f"Some codes could not be decoded: {error}"[:300]] = None
            return None

    def tokenizer(self) -> Any:
        """The vision tokenizer, loaded once; None where there is none."""
        if self._tokenizer is None and self._folder is not None:
            try:
                from nextflow_tokenize.vision.model import VisionTokenizer

                self._tokenizer = VisionTokenizer.load(local_copy(self._folder))
            except ImportError as error:
                self.problems[
                    f"No reconstructions: {error.name} is not installed (pip install 'megatron-nextflow[train]')."
                ] = None
                self._folder = None
            except (OSError, ValueError) as error:
                self.problems[f"No reconstructions: {error}"[:300]] = None
                self._folder = None
        return self._tokenizer

    def pair(self, sha256: str, image: Any, codes: Iterable[int], grids: tuple[tuple[int, int], ...]) -> Pair | None:
        """The original of `sha256` (`image`: its node, None where it was not found) beside what its codes decode to, at the
        size of the codes' grid."""
        made = self.reconstruct(list(codes), grids)
        size = (16 * grids[-1][1], 16 * grids[-1][0])
        shown = self.picture(image, 2 * max(size)) if image is not None else None
        if made is None and shown is None:
            return None
        first = None
        if shown is not None:
            from PIL import Image

            first = shown.resize(size, Image.Resampling.LANCZOS)
        return Pair(
            original=data_uri(first) if first is not None else None,
            reconstruction=data_uri(made) if made is not None else None,
            psnr=psnr_of_pictures(first, made) if first is not None and made is not None else None,
            label=(image or {}).get("address") or sha256[:12],
        )
