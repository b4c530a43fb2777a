"""Training the vision tokenizer on the run's own images.

Decisions, all ours: the codebook moves by running means (spherical, as its codes have unit length) and is placed by k-means
on real residuals before the first step, since a gradient-trained one of thousands of codes is mostly dead after a few
hundred steps; the pixel branch keeps the principal components of 16×16 patches and learns what is to be added to them; the
perceptual term is the L1 distance of image gradients, because LPIPS weights need a download; there is no adversarial term.
The cost is sharpness of texture, the gain a recognisable reconstruction after a minute on two cores.

The output folder appears only when complete: everything is written beside it and renamed. Beside the tokenizer's two files
it holds metrics.jsonl, evaluation.json (the scores of the held-out images) and held_out.png (a sheet of them).
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from nextflow_tokenize.config import VisionTokenizerConfig
from nextflow_tokenize.schedule import PIXELS_PER_TOKEN, Grid
from nextflow_tokenize.vision.codebook import RunningMeans, place
from nextflow_tokenize.vision.dataset import CropSampler, EncodedImage, Picture, load_pool
from nextflow_tokenize.vision.evaluate import EvalReport, evaluate_pictures, sheet_of
from nextflow_tokenize.vision.model import VisionTokenizer, cpu_threads
from nextflow_tokenize.vision.pixels import to_pixels
from nextflow_tokenize.vision.quantizer import Trace

METRICS_FILE = "metrics.jsonl"
EVALUATION_FILE = "evaluation.json"
SHEET_FILE = "held_out.png"
SHEET_ROWS = 12
SHOWN = 32
"""Training images that are evaluated at the end, beside all held-out ones."""
LOG_EVERY = 10
"""Steps between lines of metrics.jsonl and calls of the progress callback."""

Progress = Callable[[int, int, dict[str, float]], None]
"""Called with (steps done, steps in all, metrics)."""


class NoImages(ValueError):
    """Nothing to train on: no image, or none that loads and is large enough; the message gives the first reasons."""


@dataclass(frozen=True)
class TrainReport:
    """What training gave. PSNR in dB over whole images at their own grid; `usage` is the share of codes in use."""

    identity: str
    steps: int
    seconds: float
    training_images: int
    held_out_images: int
    failed: dict[str, str]
    psnr_training: float
    psnr_held_out: float | None
    usage: float
    semantic_cosine: float
    stopped_early: bool


def train(
    images: Sequence[EncodedImage],
    config: VisionTokenizerConfig,
    out_dir: Path | str,
    progress: Progress | None = None,
) -> TrainReport:
    """Train a tokenizer on `images` and save it, with metrics.jsonl, as `out_dir`.

    Same images, settings, torch and processor type give the same weights. Raises NoImages where no image can be trained
    on, FileExistsError where `out_dir` exists; images that do not load are left out and named in the report.
    """
    out = Path(out_dir)
    if out.exists():
        raise FileExistsError(f"{out} exists: a trained tokenizer is never overwritten; remove it or name another folder")
    settings = config.training
    pool = load_pool(images, config.levels, settings.held_out, settings.max_images, settings.seed)
    if not pool.training:
        raise NoImages(f"none of {len(images)} images can be trained on; first reasons: {list(pool.failed.values())[:3]}")
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    started = time.monotonic()
    with cpu_threads(settings.threads), torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        trainer = _Trainer(config, pool.training)
        with (partial / METRICS_FILE).open("w", encoding="utf-8") as metrics:
            done = trainer.run(metrics.write, progress, started)
        tokenizer = trainer.tokenizer.eval()
        seconds = time.monotonic() - started
        seen = evaluate_pictures(tokenizer, pool.training[:SHOWN])
        held = evaluate_pictures(tokenizer, pool.held_out) if pool.held_out else None
        scores = json.dumps(asdict(held or seen), indent=1, sort_keys=True)
        (partial / EVALUATION_FILE).write_text(scores + "\n", encoding="utf-8")
        sheet_of(tokenizer, (pool.held_out or pool.training)[:SHEET_ROWS]).save(partial / SHEET_FILE)
        report = _report(tokenizer.save(partial), done, settings.steps, seconds, len(pool.training), pool.failed, seen, held)
    with (partial / METRICS_FILE).open("a", encoding="utf-8") as metrics:
        final = {k: v for k, v in asdict(report).items() if k not in ("seconds", "failed")}
        metrics.write(json.dumps({"final": final}, sort_keys=True) + "\n")
    os.replace(partial, out)
    return report


def _report(
    identity: str,
    done: int,
    steps: int,
    seconds: float,
    training: int,
    failed: dict[str, str],
    seen: EvalReport,
    held: EvalReport | None,
) -> TrainReport:
    shown = held or seen
    return TrainReport(
        identity=identity,
        steps=done,
        seconds=seconds,
        training_images=training,
        held_out_images=len(held.images) if held else 0,
        failed=failed,
        psnr_training=seen.psnr,
        psnr_held_out=held.psnr if held else None,
        usage=seen.usage,
        semantic_cosine=shown.semantic_cosine,
        stopped_early=done < steps,
    )


class _Trainer:
    """One run: model, optimiser, running means and the sampler, stepped together."""

    def __init__(self, config: VisionTokenizerConfig, pictures: Sequence[Picture]) -> None:
        self.config, self.settings = config, config.training
        self.tokenizer = VisionTokenizer(config)
        settings = self.settings
        self.sampler = CropSampler(pictures, config.levels, settings.batch_tokens, settings.crop, settings.seed)
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.half = settings.precision == "bfloat16" or (settings.precision == "auto" and native_bfloat16())
        self._start()
        self.means = RunningMeans(self.tokenizer.quantizer, settings.ema_decay, settings.restart_below, self.generator)
        # The projections stay at the principal components: Adam moves every weight by about the learning rate a step,
        # which is a tenth of one of theirs, and the features would shift faster than codes and decoders can follow.
        for projection in (self.tokenizer.pixel_encoder.linear, self.tokenizer.pixel_decoder.linear):
            if projection is not None:
                projection.requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            [p for p in self.tokenizer.parameters() if p.requires_grad],
            lr=settings.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=0.0,
        )

    def _start(self) -> None:
        """Standardise the teacher, start the linear patch projection at the principal components, place the codebook."""
        batches = [(schedule, to_pixels(arrays)) for schedule, arrays in (self.sampler.draw() for _ in range(8))]
        tokenizer = self.tokenizer
        taught = torch.cat([tokenizer.teacher(p).permute(0, 2, 3, 1).reshape(-1, tokenizer.teacher.dim) for _, p in batches])
        tokenizer.teacher_mean.copy_(taught.mean(0))
        tokenizer.teacher_scale.copy_(taught.std(0).clamp_min(1e-3))
        if self.config.linear_skip:
            principal_start(tokenizer, [pixels for _, pixels in batches], self.settings.initial_norm)
        with torch.no_grad():
            features = [(tokenizer.features(pixels), schedule) for schedule, pixels in batches]
        place(tokenizer.quantizer, features, self.settings.kmeans_iterations, self.generator)

    def run(self, write: Callable[[str], object], progress: Progress | None, started: float) -> int:
        """All steps; returns how many were done."""
        settings = self.settings
        sums: dict[str, float] = {}
        for step in range(settings.steps):
            if settings.max_seconds is not None and time.monotonic() - started > settings.max_seconds:
                return step
            for group in self.optimizer.param_groups:
                group["lr"] = settings.learning_rate * _rate(step, settings.warmup_steps, settings.steps)
            schedule, arrays = self.sampler.draw()
            for name, value in self._step(schedule, to_pixels(arrays)).items():
                sums[name] = sums.get(name, 0.0) + value
            done = step + 1
            if done % LOG_EVERY == 0 or done == settings.steps:
                count = (done - 1) % LOG_EVERY + 1
                averages = {name: value / count for name, value in sums.items()}
                averages["psnr"] = 10 * math.log10(4 / max(averages["l2"], 1e-12))
                averages["usage"] = self.means.usage()
                write(json.dumps({"step": done, **{k: round(v, 6) for k, v in averages.items()}}) + "\n")
                if progress is not None:
                    progress(done, settings.steps, averages)
                sums = {}
        return settings.steps

    def _step(self, schedule: tuple[Grid, ...], pixels: Tensor) -> dict[str, float]:
        settings, tokenizer = self.settings, self.tokenizer
        taught = tokenizer.teach(pixels)
        dropped = self._dropped(len(schedule))
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            features = tokenizer.features(pixels, taught)
            trace = tokenizer.quantizer.trace(features.detach(), schedule, dropped)
            # Straight through: the decoders see f̂, the encoders get the decoders' gradient.
            straight = features + (trace.partial[-1] - features.detach())
            semantic, pixel = straight.split(tokenizer.quantizer.dims, dim=1)
            image = tokenizer.pixel_decoder(pixel).float()
            decoded = tokenizer.semantic_decoder(semantic).float()
        losses = {
            "l2": F.mse_loss(image, pixels),
            "l1": F.l1_loss(image, pixels),
            "gradient": gradient_distance(image, pixels),
            "semantic": 1 - F.cosine_similarity(decoded, taught, dim=1).mean(),
            "commitment": commitment(features, trace),
        }
        loss = (
            losses["l2"]
            + settings.l1_weight * losses["l1"]
            + settings.gradient_weight * losses["gradient"]
            + settings.semantic_weight * losses["semantic"]
            + settings.commitment * losses["commitment"]
        )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(tokenizer.parameters(), settings.gradient_clip)
        self.optimizer.step()
        self.means.update(trace)
        return {"loss": loss.item(), **{name: value.item() for name, value in losses.items()}}

    def _dropped(self, scales: int) -> frozenset[int]:
        chance = torch.rand(scales, generator=self.generator)
        return frozenset(k for k in range(1, scales) if float(chance[k]) < self.settings.scale_drop)


def commitment(features: Tensor, trace: Trace) -> Tensor:
    """Mean squared distance of the features from the whole sum f̂, which gets no gradient."""
    return F.mse_loss(features, trace.partial[-1])


def gradient_distance(image: Tensor, target: Tensor) -> Tensor:
    """L1 distance of horizontal and vertical differences at three octaves: edges in their place, whatever their contrast."""
    total = image.new_zeros(())
    for octave in range(3):
        if octave:
            image, target = F.avg_pool2d(image, 2), F.avg_pool2d(target, 2)
        total = total + (image.diff(dim=3) - target.diff(dim=3)).abs().mean()
        total = total + (image.diff(dim=2) - target.diff(dim=2)).abs().mean()
    return total / 6


@torch.no_grad()
def principal_start(tokenizer: VisionTokenizer, batches: Sequence[Tensor], norm: float) -> None:
    """Put the linear projections at the principal components of the batches' patches, features' RMS norm at `norm`.

    The components are not whitened: a distance between features is then the distance between the patches they stand for.
    """
    encoder, decoder = tokenizer.pixel_encoder.linear, tokenizer.pixel_decoder.linear
    if encoder is None or decoder is None:
        raise ValueError("this tokenizer has no linear projection (linear_skip is off)")
    side = PIXELS_PER_TOKEN
    rows = torch.cat([F.unfold(b, side, stride=side).transpose(1, 2).reshape(-1, 3 * side * side) for b in batches]).double()
    mean = rows.mean(0)
    values, vectors = torch.linalg.eigh((rows - mean).t() @ (rows - mean) / len(rows))
    axes = vectors[:, -tokenizer.config.pixel_dim :].flip(1).t()
    # An eigenvector's sign is arbitrary: fix it, so that another LAPACK gives the same start.
    axes = axes * torch.sign(axes.gather(1, axes.abs().argmax(1, keepdim=True)))
    scale = norm / float(values[-tokenizer.config.pixel_dim :].sum().clamp_min(1e-12).sqrt())
    encoder.weight.copy_((scale * axes).view_as(encoder.weight))
    decoder.weight.copy_((axes / scale).view_as(decoder.weight))
    encoder.bias.copy_(-scale * axes @ mean)  # type: ignore[union-attr]
    # A transposed convolution has one bias a channel: the patches' mean colour is given back, not their mean patch.
    decoder.bias.copy_(mean.view(3, -1).mean(1))  # type: ignore[union-attr]


def native_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 natively; where torch cannot tell, no."""
    asked = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return any(bool(ask()) for ask in asked if ask is not None)


def _rate(step: int, warmup: int, steps: int) -> float:
    """Linear warm-up, then a cosine to a tenth."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * progress))
