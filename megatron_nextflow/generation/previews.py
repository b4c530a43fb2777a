"""An image as it comes into being: decoded after each scale, while the next are still to be drawn.

The tokenizer decodes any number of first scales (f̂ is a sum over scales), so a preview costs one decoding a scale and no
pass of the model. A folder gets a numbered file as soon as a scale is there; a PNG becomes one contact sheet, a row an
image, at the end. The cost: at a high level on a CPU the decodings take longer than a person may like.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from nextflow_tokenize.schedule import Grid
from nextflow_tokenize.vision.scores.sheets import grid_of
from numpy.typing import NDArray
from PIL import Image

from megatron_nextflow.generation.results import is_png

CELL = 160
"""Side in pixels of a cell of the contact sheet."""

Decode = Callable[[NDArray[np.int64], tuple[Grid, ...]], Image.Image]
"""The image of an image's first codes under its schedule."""


class Previews:
    """The previews of a request; `files` written so far. `target`: a folder, or a PNG for one contact sheet."""

    def __init__(self, target: Path, decode: Decode) -> None:
        self.target, self.decode = target, decode
        self.files: list[Path] = []
        self._rows: dict[str, list[tuple[str, Image.Image]]] = {}

    @property
    def is_sheet(self) -> bool:
        """Whether all go on one picture."""
        return is_png(self.target)

    def add(self, names: Sequence[str], schedule: tuple[Grid, ...], scale: int, codes: Sequence[NDArray[np.int64]]) -> None:
        """The codes [Σ_{k≤scale} hw] of images called `names`, whose `scale`, counted from 1, has just been drawn."""
        height, width = schedule[scale - 1]
        for name, drawn in zip(names, codes, strict=True):
            image = self.decode(drawn, schedule)
            if self.is_sheet:
                image.thumbnail((CELL, CELL), Image.Resampling.LANCZOS)
                self._rows.setdefault(name, []).append((f"scale {scale}, {width} x {height}", image))
                continue
            self.target.mkdir(parents=True, exist_ok=True)
            self.files.append(self.target / f"{name}-scale-{scale:02d}.png")
            image.save(self.files[-1], format="PNG")

    def close(self) -> None:
        """Writes the contact sheet, where there is to be one."""
        if self.is_sheet:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            self.files.append(self.target)
            grid_of(list(self._rows.values()), CELL).save(self.target, format="PNG")
