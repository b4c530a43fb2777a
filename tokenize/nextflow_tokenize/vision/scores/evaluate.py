"""How well a tokenizer reconstructs: PSNR, SSIM, LPIPS and rFID, semantic agreement, how the codebook is used, by level and
ratio.

LPIPS and FID need weights that are not ours to ship: they are measured where their files are given and absent elsewhere,
never replaced by something else under their name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from nextflow_data.common.errors import RequestError
from torch import Tensor
from torch.nn import functional as F

from nextflow_tokenize.schedule import Grid
from nextflow_tokenize.vision.images.dataset import EncodedImage, Picture, open_picture
from nextflow_tokenize.vision.model import VisionTokenizer
from nextflow_tokenize.vision.scores.inception import InceptionFeatures
from nextflow_tokenize.vision.scores.metrics import Statistics, frechet_distance, psnr, ssim
from nextflow_tokenize.vision.scores.perceptual import Lpips
from nextflow_tokenize.vision.scores.sheets import pixels_for, schedule_for

FEATURES = 2048
"""Numbers of an Inception feature."""


@dataclass(frozen=True)
class ImageScore:
    """One image at one grid: PSNR in dB, SSIM, LPIPS (None without its weights), cosine of decoded to teacher features (mean
    over positions; None where the teacher is not at hand)."""

    sha256: str
    grid: Grid
    scales: int
    psnr: float
    ssim: float
    lpips: float | None
    semantic_cosine: float | None


@dataclass(frozen=True)
class GroupScore:
    """Means over the images of one level and final grid, or of one level (`grid` None)."""

    scales: int
    grid: Grid | None
    images: int
    psnr: float
    ssim: float
    lpips: float | None
    semantic_cosine: float | None


@dataclass(frozen=True)
class ScaleUse:
    """Codes at one scale, over all images: how many, how many distinct, exp(entropy) of their distribution, and how many of
    the codebook's entries it never took."""

    scale: int
    tokens: int
    distinct: int
    perplexity: float
    dead: int


@dataclass(frozen=True)
class EvalReport:
    """Scores of a set of images. `psnr` and its like are means over images; `usage` the share of codes seen at any scale;
    `rfid` the Fréchet distance of Inception features between images and reconstructions."""

    images: list[ImageScore]
    groups: list[GroupScore]
    scales: list[ScaleUse]
    psnr: float
    ssim: float
    lpips: float | None
    rfid: float | None
    semantic_cosine: float | None
    usage: float
    perplexity: float
    dead: int
    failed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Judges:
    """Networks with given weights: LPIPS, and Inception for rFID."""

    lpips: Lpips | None = None
    inception: InceptionFeatures | None = None


def evaluate(
    tokenizer: VisionTokenizer,
    images: Sequence[EncodedImage],
    levels: Sequence[int] | None = None,
    judges: Judges | None = None,
) -> EvalReport:
    """Encode and decode images, each at the highest of the tokenizer's levels it fills, or at every one of `levels` that it
    fills.

    Raises ValueError where none of them fills any, or a level was not trained.
    """
    unknown = set(levels or ()) - set(tokenizer.config.levels)
    if unknown:
        raise RequestError(f"levels {sorted(unknown)} were not trained: the tokenizer has {list(tokenizer.config.levels)}")
    pictures: list[Picture] = []
    failed: dict[str, str] = {}
    side = 2 * (tokenizer.config.image_side or max(tokenizer.config.levels, default=1024))
    for encoded in images:
        try:
            picture = open_picture(encoded, side)
            fills = schedule_for(tokenizer, picture.size, levels) is not None
        except Exception as error:  # as in load_pool: one image must not stop an evaluation
            failed[encoded.sha256] = f"{type(error).__name__}: {error}"
            continue
        if not fills:
            failed[encoded.sha256] = "too small for the lowest level"
            continue
        pictures.append(picture)
    if not pictures:
        raise RequestError(f"none of {len(images)} images can be evaluated; first reasons: {list(failed.values())[:3]}")
    return evaluate_pictures(tokenizer, pictures, failed, levels, judges)


def evaluate_pictures(
    tokenizer: VisionTokenizer,
    pictures: Sequence[Picture],
    failed: dict[str, str] | None = None,
    levels: Sequence[int] | None = None,
    judges: Judges | None = None,
) -> EvalReport:
    """`evaluate` on images that are each large enough for one of the levels; what does not load is `failed`."""
    judges = judges or Judges()
    scores: list[ImageScore] = []
    size = tokenizer.config.codebook_size
    counts: dict[int, Tensor] = {}
    before, after = Statistics(FEATURES), Statistics(FEATURES)
    failed = dict(failed or {})
    for picture in pictures:
        try:
            image_of = picture.image
        except Exception as error:  # as in load_pool: a picture whose size was known may still not load
            failed[picture.sha256] = f"{type(error).__name__}: {error}"
            continue
        for schedule in _schedules(tokenizer, picture, levels):
            pixels = pixels_for(tokenizer, image_of, schedule).to(tokenizer.device)
            codes = tokenizer.encode(pixels, schedule).target
            image = tokenizer.decode(codes, schedule)
            scores.append(_score(tokenizer, judges, picture.sha256, pixels, image, codes, schedule))
            if judges.inception is not None:
                before.add(judges.inception(_rounded(pixels)))
                after.add(judges.inception(_rounded(image)))
            offset = 0
            for scale, (h, w) in enumerate(schedule):
                seen = torch.bincount(codes[0, offset : offset + h * w].cpu(), minlength=size)
                counts[scale] = counts.get(scale, torch.zeros(size, dtype=torch.long)) + seen
                offset += h * w
    if not counts:
        raise RequestError(f"none of {len(pictures)} images can be evaluated; first reasons: {list(failed.values())[:3]}")
    total = torch.stack(list(counts.values())).sum(0)
    overall = _group(scores, 0, None)
    return EvalReport(
        images=scores,
        groups=_groups(scores),
        scales=[_use(scale, count) for scale, count in sorted(counts.items())],
        psnr=overall.psnr,
        ssim=overall.ssim,
        lpips=overall.lpips,
        rfid=frechet_distance(before, after) if judges.inception is not None and before.count > 1 else None,
        semantic_cosine=overall.semantic_cosine,
        usage=float((total > 0).float().mean()),
        perplexity=perplexity(total),
        dead=int((total == 0).sum()),
        failed=failed,
    )


def perplexity(count: Tensor) -> float:
    """exp(entropy) of a distribution given by counts: how many codes, equally used, would be as varied."""
    share = count[count > 0].double() / count.sum()
    return float(torch.exp(-(share * share.log()).sum()))


def _schedules(tokenizer: VisionTokenizer, picture: Picture, levels: Sequence[int] | None) -> Iterable[tuple[Grid, ...]]:
    if levels is None or tokenizer.fixed_schedule is not None:
        found = [schedule_for(tokenizer, picture.size)]
    else:
        found = [schedule_for(tokenizer, picture.size, [level]) for level in sorted(set(levels))]
    return [schedule for schedule in found if schedule is not None]


def _score(
    tokenizer: VisionTokenizer,
    judges: Judges,
    sha256: str,
    pixels: Tensor,
    image: Tensor,
    codes: Tensor,
    schedule: tuple[Grid, ...],
) -> ImageScore:
    with torch.inference_mode():
        cosine = None
        if tokenizer.can_teach:
            decoded = tokenizer.decode_semantic(codes, schedule)
            cosine = float(F.cosine_similarity(decoded, tokenizer.teach(pixels), dim=1).mean())
        lpips = None if judges.lpips is None else float(judges.lpips(image, pixels))
    return ImageScore(sha256, schedule[-1], len(schedule), psnr(image, pixels), ssim(image, pixels), lpips, cosine)


def _groups(scores: Sequence[ImageScore]) -> list[GroupScore]:
    """By level, then by level and final grid, from wide to tall."""
    found = []
    for scales in sorted({score.scales for score in scores}):
        of_level = [score for score in scores if score.scales == scales]
        found.append(_group(of_level, scales, None))
        for grid in sorted({score.grid for score in of_level}, key=lambda g: g[0] / g[1]):
            found.append(_group([score for score in of_level if score.grid == grid], scales, grid))
    return found


def _group(scores: Sequence[ImageScore], scales: int, grid: Grid | None) -> GroupScore:
    return GroupScore(
        scales, grid, len(scores), _mean(s.psnr for s in scores) or 0.0, _mean(s.ssim for s in scores) or 0.0,
        _mean(s.lpips for s in scores), _mean(s.semantic_cosine for s in scores),
    )  # fmt: skip


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _rounded(image: Tensor) -> Tensor:
    """As a viewer sees it, in 8 bits: FID is published for saved images."""
    return ((image + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1


def _use(scale: int, count: Tensor) -> ScaleUse:
    return ScaleUse(scale + 1, int(count.sum()), int((count > 0).sum()), perplexity(count), int((count == 0).sum()))
