"""Pictures of what a tokenizer does to pictures: contact sheets, and one image after 1, 2, 4, … scales."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress

from nextflow_data.common.errors import RequestError
from PIL import Image, ImageDraw
from torch import Tensor

from nextflow_tokenize.schedule import Grid, choose_grids, token_count
from nextflow_tokenize.vision.images.dataset import MAX_UPSCALE, Picture
from nextflow_tokenize.vision.images.pixels import fit, fit_side, to_images, to_pixels
from nextflow_tokenize.vision.model import VisionTokenizer
from nextflow_tokenize.vision.scores.metrics import psnr

MARGIN, CAPTION = 4, 14
"""Pixels between the cells of a sheet, and above each for its words."""


def schedule_for(
    tokenizer: VisionTokenizer, size: tuple[int, int], levels: Sequence[int] | None = None, most: float = MAX_UPSCALE
) -> tuple[Grid, ...] | None:
    """The schedule of an image of `size` (height, width): its ratio at the highest of `levels` (default: the tokenizer's)
    that enlarges it at most `most` times; None where none does. A tokenizer of one fixed schedule has that for all."""
    if tokenizer.fixed_schedule is not None:
        return tokenizer.fixed_schedule
    return choose_grids(*size, sorted(levels or tokenizer.config.levels, reverse=True), most)


def pixels_for(tokenizer: VisionTokenizer, image: Image.Image, schedule: tuple[Grid, ...]) -> Tensor:
    """An RGB image as the tokenizer takes it, float32 [1, 3, H, W] in [−1, 1]."""
    side = tokenizer.config.image_side
    return to_pixels([fit(image, schedule[-1]) if side is None else fit_side(image, side)])


def preview_scales(scales: int) -> list[int]:
    """The scales a preview shows: 1, 2, 4, 8, … and the last."""
    shown = [1 << i for i in range(scales.bit_length()) if 1 << i < scales]
    return [*shown, scales]


def preview(tokenizer: VisionTokenizer, image: Image.Image, level: int | None = None, cell: int = 256) -> Image.Image:
    """The image after 1, 2, 4, … and all scales, beside the image itself, as one picture.

    The image is resized to the nearest grid of `level` (default: the highest trained), even if that enlarges it. Raises
    ValueError for a level the tokenizer was not trained on.
    """
    if level is not None and level not in tokenizer.config.levels:
        raise RequestError(f"level {level} was not trained: the tokenizer has {list(tokenizer.config.levels)}")
    highest = level or max(tokenizer.config.levels, default=0)
    schedule = schedule_for(tokenizer, (image.height, image.width), [highest], math.inf)
    assert schedule is not None
    return contact_sheet(tokenizer, [(image, schedule)], cell)


def sheet_of(tokenizer: VisionTokenizer, pictures: Sequence[Picture], cell: int = 160) -> Image.Image:
    """`contact_sheet` of images, each at the highest level it fills; what does not load is left out."""
    rows = []
    for picture in pictures:
        schedule = schedule_for(tokenizer, picture.size)
        if schedule is not None:
            # What does not load is named by the evaluation beside the sheet.
            with suppress(Exception):
                rows.append((picture.image, schedule))
    return contact_sheet(tokenizer, rows, cell)


def contact_sheet(
    tokenizer: VisionTokenizer, images: Sequence[tuple[Image.Image, tuple[Grid, ...]]], cell: int = 160
) -> Image.Image:
    """One row an image: original | after all scales, with its PSNR | after 1, 2, 4, … scales. `images` are RGB images with
    the schedule each is encoded at; `cell` is the side in pixels of a cell. Raises ValueError for no image."""
    rows: list[list[tuple[str, Image.Image]]] = []
    for image, schedule in images:
        pixels = pixels_for(tokenizer, image, schedule)
        codes = tokenizer.encode(pixels, schedule).target
        full = tokenizer.decode(codes, schedule).cpu()
        row = [
            (f"original {pixels.shape[3]} x {pixels.shape[2]}", to_images(pixels)[0]),
            (f"all {len(schedule)} scales, {psnr(full, pixels):.1f} dB", to_images(full)[0]),
        ]
        for shown in preview_scales(len(schedule))[:-1]:
            part = tokenizer.decode(codes[:, : token_count(schedule[:shown])], schedule)
            row.append((f"{shown} scale{'s' if shown > 1 else ''}", to_images(part)[0]))
        rows.append(row)
    return grid_of(rows, cell)


def grid_of(rows: Sequence[Sequence[tuple[str, Image.Image]]], cell: int) -> Image.Image:
    """Rows of captioned pictures as one picture, each shrunk to `cell` pixels at most. Raises ValueError for none."""
    if not rows:
        raise ValueError("a contact sheet needs at least one image")
    columns = max(len(row) for row in rows)
    # Rows are as high as what they hold: a sheet of wide images has no empty bands.
    shrunk = []
    for row in rows:
        cells = [(label, picture.copy()) for label, picture in row]
        for _, picture in cells:
            picture.thumbnail((cell, cell), Image.Resampling.LANCZOS)
        shrunk.append(cells)
    heights = [max(picture.height for _, picture in row) + CAPTION + MARGIN for row in shrunk]
    sheet = Image.new("RGB", (columns * (cell + MARGIN) + MARGIN, sum(heights) + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    top = MARGIN
    for row, height in zip(shrunk, heights, strict=True):
        for x, (label, picture) in enumerate(row):
            left = MARGIN + x * (cell + MARGIN)
            draw.text((left, top), label, fill="black")
            sheet.paste(picture, (left, top + CAPTION))
        top += height
    return sheet
