"""How well a tokenizer reconstructs: PSNR by image, semantic agreement, how the codebook is used, and a sheet to look at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from nextflow_tokenize.schedule import Grid, choose_grids, token_count
from nextflow_tokenize.vision.dataset import MAX_UPSCALE, EncodedImage, Picture, open_picture
from nextflow_tokenize.vision.model import VisionTokenizer
from nextflow_tokenize.vision.pixels import fit, to_images, to_pixels


@dataclass(frozen=True)
class ImageScore:
    """One image at its own grid: PSNR in dB, cosine of decoded to teacher features (mean over positions)."""

    sha256: str
    grid: Grid
    scales: int
    psnr: float
    semantic_cosine: float


@dataclass(frozen=True)
class ScaleUse:
    """Codes at one scale, over all images: how many, how many distinct, and exp(entropy) of their distribution."""

    scale: int
    tokens: int
    distinct: int
    perplexity: float


@dataclass(frozen=True)
class EvalReport:
    """Scores of a set of images. `psnr` is the mean of the images' PSNR; `usage` the share of codes seen at any scale."""

    images: list[ImageScore]
    scales: list[ScaleUse]
    psnr: float
    semantic_cosine: float
    usage: float
    perplexity: float
    dead: int
    failed: dict[str, str]


def evaluate(tokenizer: VisionTokenizer, images: Sequence[EncodedImage]) -> EvalReport:
    """Encode and decode each image at the highest of the tokenizer's levels it fills. Raises ValueError where none does."""
    pictures: list[Picture] = []
    failed: dict[str, str] = {}
    for encoded in images:
        try:
            picture = open_picture(encoded, 2 * max(tokenizer.config.levels))
        except Exception as error:  # as in load_pool: one image must not stop an evaluation
            failed[encoded.sha256] = f"{type(error).__name__}: {error}"
            continue
        if _schedule(tokenizer, picture) is None:
            failed[encoded.sha256] = "too small for the lowest level"
            continue
        pictures.append(picture)
    if not pictures:
        raise ValueError(f"none of {len(images)} images can be evaluated; first reasons: {list(failed.values())[:3]}")
    return evaluate_pictures(tokenizer, pictures, failed)


def evaluate_pictures(
    tokenizer: VisionTokenizer, pictures: Sequence[Picture], failed: dict[str, str] | None = None
) -> EvalReport:
    """`evaluate` on decoded images, each large enough for one of the levels."""
    scores: list[ImageScore] = []
    size = tokenizer.config.codebook_size
    counts: dict[int, Tensor] = {}
    for picture in pictures:
        schedule = _schedule(tokenizer, picture)
        if schedule is None:
            continue
        pixels = to_pixels([fit(picture.image, schedule[-1])])
        codes = tokenizer.encode(pixels, schedule).target
        scores.append(_score(tokenizer, picture.sha256, pixels, codes, schedule))
        offset = 0
        for scale, (h, w) in enumerate(schedule):
            seen = torch.bincount(codes[0, offset : offset + h * w].cpu(), minlength=size)
            counts[scale] = counts.get(scale, torch.zeros(size, dtype=torch.long)) + seen
            offset += h * w
    total = torch.stack(list(counts.values())).sum(0)
    uses = [
        ScaleUse(scale + 1, int(count.sum()), int((count > 0).sum()), _perplexity(count))
        for scale, count in sorted(counts.items())
    ]
    return EvalReport(
        images=scores,
        scales=uses,
        psnr=float(np.mean([score.psnr for score in scores])),
        semantic_cosine=float(np.mean([score.semantic_cosine for score in scores])),
        usage=float((total > 0).float().mean()),
        perplexity=_perplexity(total),
        dead=int((total == 0).sum()),
        failed=failed or {},
    )


def psnr(image: Tensor, target: Tensor) -> float:
    """Peak signal to noise ratio in dB of images in [−1, 1] (peak 2), both rounded to 8 bits as a viewer sees them."""
    levels = [((x + 1) * 127.5).round().clamp(0, 255) for x in (image, target)]
    error = float((levels[0] - levels[1]).square().mean())
    return 10 * math.log10(255**2 / max(error, 1e-10))


def _score(tokenizer: VisionTokenizer, sha256: str, pixels: Tensor, codes: Tensor, schedule: tuple[Grid, ...]) -> ImageScore:
    with torch.inference_mode():
        decoded = tokenizer.semantic_decoder(
            tokenizer.quantizer.features(codes, schedule)[:, : tokenizer.config.semantic_dim]
        )
        cosine = float(F.cosine_similarity(decoded, tokenizer.teach(pixels), dim=1).mean())
    value = psnr(tokenizer.decode(codes, schedule), pixels)
    return ImageScore(sha256, schedule[-1], len(schedule), value, cosine)


def _schedule(tokenizer: VisionTokenizer, picture: Picture) -> tuple[Grid, ...] | None:
    return choose_grids(*picture.size, sorted(tokenizer.config.levels, reverse=True), MAX_UPSCALE)


def _perplexity(count: Tensor) -> float:
    share = count[count > 0].double() / count.sum()
    return float(torch.exp(-(share * share.log()).sum()))


def preview_scales(scales: int) -> list[int]:
    """The scales a preview shows: 1, 2, 4, 8, … and the last."""
    shown = [1 << i for i in range(scales.bit_length()) if 1 << i < scales]
    return [*shown, scales]


def preview(tokenizer: VisionTokenizer, image: Image.Image, level: int | None = None) -> Image.Image:
    """The image after 1, 2, 4, … and all scales, beside the image itself, as one picture.

    The image is resized to the nearest grid of `level` (default: the highest trained), even if that enlarges it.
    """
    schedule = choose_grids(image.height, image.width, [level or max(tokenizer.config.levels)], math.inf)
    assert schedule is not None
    return contact_sheet(tokenizer, [(image, schedule)])


def sheet_of(tokenizer: VisionTokenizer, pictures: Sequence[Picture], cell: int = 160) -> Image.Image:
    """`contact_sheet` of decoded images, each at the highest level it fills."""
    rows = [(picture.image, schedule) for picture in pictures if (schedule := _schedule(tokenizer, picture)) is not None]
    return contact_sheet(tokenizer, rows, cell)


def contact_sheet(
    tokenizer: VisionTokenizer,
    images: Sequence[tuple[Image.Image, tuple[Grid, ...]]],
    cell: int = 160,
) -> Image.Image:
    """One row an image: original | reconstruction with its PSNR | after 1, 2, 4, … scales. `images` are RGB images with the
    schedule each is encoded at; `cell` is the side in pixels of a cell. Raises ValueError for no image."""
    if not images:
        raise ValueError("a contact sheet needs at least one image")
    rows: list[list[tuple[str, Image.Image]]] = []
    for image, schedule in images:
        pixels = to_pixels([fit(image, schedule[-1])])
        codes = tokenizer.encode(pixels, schedule).target
        full = tokenizer.decode(codes, schedule)
        h, w = schedule[-1]
        row = [(f"original {w * 16} x {h * 16}", to_images(pixels)[0]), (f"{psnr(full, pixels):.1f} dB", to_images(full)[0])]
        for shown in preview_scales(len(schedule))[:-1]:
            part = tokenizer.decode(codes[:, : token_count(schedule[:shown])], schedule)
            row.append((f"{shown} scale{'s' if shown > 1 else ''}", to_images(part)[0]))
        rows.append(row)
    margin, caption = 4, 14
    columns = max(len(row) for row in rows)
    sheet = Image.new("RGB", (columns * (cell + margin) + margin, len(rows) * (cell + caption + margin) + margin), "white")
    draw = ImageDraw.Draw(sheet)
    for y, row in enumerate(rows):
        for x, (label, picture) in enumerate(row):
            left, top = margin + x * (cell + margin), margin + y * (cell + caption + margin)
            draw.text((left, top), label, fill="black")
            picture.thumbnail((cell, cell), Image.Resampling.LANCZOS)
            sheet.paste(picture, (left, top + caption))
    return sheet
