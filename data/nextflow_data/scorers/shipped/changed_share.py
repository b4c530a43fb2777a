"""How much of an image an edit changed: 0 where nothing happened, near 1 where it is another picture.

An edit that did nothing and one that repainted everything are what a set of edits must be cleaned of first, and both are
seen without a model. Our choice: the share of pixels in which some channel differs by more than a threshold, which unlike a
mean difference tells a small strong change from faint noise everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from nextflow_data.common.section import Section
from nextflow_data.scorers.loading import scorers

if TYPE_CHECKING:
    from PIL import Image as Pillow

VERSION = "1"


class ChangedShareConfig(Section):
    """Settings of `changed_share`."""

    threshold: int = Field(default=24, ge=0, le=254)
    """Grey levels of 255 by which a channel must differ; ours: above what JPEG at quality 75 does to most pixels."""
    max_side: int = Field(default=512, ge=16)
    """Both images are shrunk to this longest side, in pixels, before they are compared; ours, as for ingest's measures."""


@scorers.register("changed_share")
class ChangedShare:
    """Compares `image`, the edited one, with `reference`, the one before."""

    Config = ChangedShareConfig

    def __init__(self, config: ChangedShareConfig) -> None:
        self.config = config

    def score(
        self, *, image: bytes | None, text: str | None, reference: bytes | str | None, extra: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The changed share, 0…1; `mean_difference` in grey levels; `box`, the smallest that holds all change, as (left,
        top, right, bottom) in shares of width and height, None where nothing changed; `resized`: the reference had other
        sides and was brought to the image's. ValueError without two images; ImageRejected."""
        import numpy as np
        from PIL import Image as Pillow

        if image is None or not isinstance(reference, bytes):
            raise ValueError("an image and a reference image are compared")
        after, before = self._open(image), self._open(reference)
        resized = before.size != after.size
        if resized:
            before = before.resize(after.size, Pillow.Resampling.BICUBIC)
        difference: np.ndarray = np.abs(np.asarray(after, dtype=np.int16) - np.asarray(before, dtype=np.int16))
        changed = difference.max(axis=2) > self.config.threshold
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        (height, width), box = changed.shape, None
        if len(rows):
            box = [columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height]
        return {"score": changed.mean(), "mean_difference": difference.mean(), "box": box, "resized": resized}

    def _open(self, image: bytes) -> Pillow.Image:
        from nextflow_data.config import IngestConfig
        from nextflow_data.images.measure import open_rgb

        return open_rgb(image, IngestConfig(), self.config.max_side)
