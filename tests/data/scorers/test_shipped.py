"""What the shipped scorers measure, against values reckoned by hand."""

from __future__ import annotations

import io

import numpy as np
import pytest
from nextflow_data.scorers.loading import find
from PIL import Image


def _png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def test_changed_share() -> None:
    """A rectangle of 16×10 on 64×40 is a sixteenth; differences up to the threshold are noise."""
    before = np.full((40, 64, 3), 90, dtype=np.uint8)
    after = before.copy()
    after[4:14, 8:24, 1] += 100
    after[30, 30] -= 24
    score = find("changed_share", {}).make()
    asked = {"text": None, "extra": {}}
    found = score(image=_png(after), reference=_png(before), **asked)
    mean = (160 * 100 + 3 * 24) / (64 * 40 * 3)
    assert found == {"score": 1 / 16, "mean_difference": mean, "box": [8 / 64, 4 / 40, 24 / 64, 14 / 40], "resized": False}
    assert (
        find("changed_share", {"threshold": 23}).make()(image=_png(after), reference=_png(before), **asked)["score"]
        == 161 / 2560
    )
    nothing = score(image=_png(before), reference=_png(before[::2, ::2]), **asked)
    assert nothing == {"score": 0.0, "mean_difference": 0.0, "box": None, "resized": True}
    for missing in (None, "a text"):
        with pytest.raises(ValueError, match="are compared"):
            score(image=_png(after), reference=missing, **asked)


def test_sharpness() -> None:
    """A checkerboard of 0 and 255: the Laplacian is ±4·255 everywhere but at the border, where the mirrored neighbour is
    equal."""
    board = (np.indices((6, 6)).sum(axis=0) % 2 * 255).astype(np.uint8)
    padded = np.pad(board.astype(float), 1, mode="symmetric")
    laplacian = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:] - 4 * padded[1:-1, 1:-1]
    found = find("sharpness", {}).make()(image=_png(np.stack([board] * 3, axis=2)), text=None, reference=None, extra={})
    assert found["score"] == pytest.approx(laplacian.var(), rel=1e-5)
    assert found["entropy"] == 1.0 and found["colourfulness"] == 0.0
