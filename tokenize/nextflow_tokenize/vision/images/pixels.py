"""Images to arrays that fit a grid, and back.

Resizing is antialiased (Lanczos) and always to 16 × the grid, so ratios between two grids are stretched by a few per cent
rather than cropped: nothing at an image's border is lost.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from nextflow_tokenize.schedule import PIXELS_PER_TOKEN, Grid

Box = tuple[float, float, float, float]


def fit(image: Image.Image, grid: Grid, box: Box | None = None) -> npt.NDArray[np.uint8]:
    """An RGB image, or the part of it in `box` (left, top, right, bottom), as uint8 [16·h, 16·w, 3]."""
    h, w = grid
    size = (w * PIXELS_PER_TOKEN, h * PIXELS_PER_TOKEN)
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS, box=box), dtype=np.uint8)


def fit_side(image: Image.Image, side: int) -> npt.NDArray[np.uint8]:
    """An RGB image as uint8 [side, side, 3], for tokenizers of one square size."""
    return np.asarray(image.resize((side, side), Image.Resampling.LANCZOS), dtype=np.uint8)


def to_pixels(arrays: list[npt.NDArray[np.uint8]]) -> Tensor:
    """uint8 [H, W, 3] arrays of one size as float32 [B, 3, H, W] in [−1, 1]."""
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous().float().div_(127.5).sub_(1)


def to_images(pixels: Tensor) -> list[Image.Image]:
    """[B, 3, H, W] in [−1, 1] as RGB images."""
    arrays = ((pixels.detach().cpu().float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(np.ascontiguousarray(array)) for array in arrays]
