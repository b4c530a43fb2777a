"""Bicubic upsampling of a token grid as sixteen weighted look-ups a slot.

The input of scale k is the codebook vectors of scale k−1, upsampled to scale k's grid (NextFlow §3; the mode is not stated,
bicubic is what TokenFlow's tokenizer upsamples with, so the language model sees the vectors that the decoder sums). Bicubic
interpolation is linear in the vectors and reads a 4×4 neighbourhood, so the geometry is computed once per pair of grids and
a whole pack becomes one `embedding_bag`, whatever images it holds. The cost: 16 ids and 16 weights a slot.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from nextflow_tokenize.schedule import Grid

TAPS = 16
"""Source vectors that one upsampled vector is a weighted sum of."""

_A = -0.75  # the cubic convolution coefficient of torch's interpolate(mode="bicubic")


def _axis(source: int, target: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """One axis: for each of `target` places the four source indices (clamped to the border) and weights, [target, 4]."""
    centre = (np.arange(target, dtype=np.float64) + 0.5) * (source / target) - 0.5
    first = np.floor(centre).astype(np.int64)
    t = centre - first
    distance = np.stack([t + 1, t, 1 - t, 2 - t], axis=1)
    near = ((_A + 2) * distance - (_A + 3)) * distance**2 + 1
    far = ((_A * distance - 5 * _A) * distance + 8 * _A) * distance - 4 * _A
    weight = np.where(distance <= 1, near, far)
    index = np.clip(first[:, None] + np.arange(-1, 3), 0, source - 1)
    return index, weight


@lru_cache(maxsize=4096)
def bicubic_taps(source: Grid, target: Grid) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Sixteen source slots and weights for every slot of `target`: both [h·w, 16], rows in row-major order of the target.

    The index is row-major into `source`. Equal to `torch.nn.functional.interpolate(mode="bicubic", align_corners=False)`:
    half-pixel centres, a = −0.75, clamped at the border. The arrays are shared by all callers and read-only.
    """
    (sh, sw), (th, tw) = source, target
    rows, row_weights = _axis(sh, th)
    columns, column_weights = _axis(sw, tw)
    index = rows[:, None, :, None] * sw + columns[None, :, None, :]
    weight = row_weights[:, None, :, None] * column_weights[None, :, None, :]
    flat_index = index.reshape(th * tw, TAPS)
    flat_weight = weight.reshape(th * tw, TAPS).astype(np.float32)
    flat_index.flags.writeable = False
    flat_weight.flags.writeable = False
    return flat_index, flat_weight
