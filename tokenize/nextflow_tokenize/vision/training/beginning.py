"""Where training starts: weights of an earlier stage, the best linear code, a codebook placed on real residuals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from nextflow_data.common.errors import RequestError
from torch import Tensor, nn
from torch.nn import functional as F

from nextflow_tokenize.config.vision import VisionTrainingConfig
from nextflow_tokenize.schedule import PIXELS_PER_TOKEN, Grid
from nextflow_tokenize.vision.codes.codebook import place, place_semantic
from nextflow_tokenize.vision.identity import WEIGHTS_FILE, read_config
from nextflow_tokenize.vision.model import VisionTokenizer
from nextflow_tokenize.vision.tensor_files import load_tensors

Batch = tuple[tuple[Grid, ...], Tensor]
"""A schedule and images [B, 3, 16·h, 16·w] of its last grid."""

FROM_PIXEL = ("pixel_encoder.", "pixel_decoder.", "quantizer.pixel")
"""What the joint stage takes from the pixel stage (NextFlow §3.1)."""
DECIDE_CODES = (
    "branches", "codebook_size", "semantic_dim", "pixel_dim", "w_dis", "network", "patch", "channels", "channel_mult",
    "res_blocks", "z_channels", "attention", "linear_skip", "teacher", "semantic_channels",
)  # fmt: skip
"""Settings that the decoder stage must leave as they were."""


def inherit(tokenizer: VisionTokenizer, folder: Path, stage: str) -> bool:
    """Takes over the weights of an earlier tokenizer in `folder`; returns whether the semantic branch starts anew.

    A joint stage takes the pixel branch alone from a single-branch tokenizer. In the decoder stage the pixel decoder may
    have grown: deeper, it decodes at first as before; wider, it starts anew. All else must fit (ValueError, naming the first
    tensor or setting that does not).
    """
    before = read_config(folder)
    anew = tokenizer.config.branches == "dual" and before.get("branches") == "pixel"
    if anew and stage != "joint":
        raise RequestError(
            f"{folder} was left by a pixel stage, so its semantic codes mean nothing yet: put a joint stage before stage "
            f"{stage}"
        )
    given = load_tensors(folder / WEIGHTS_FILE)
    if anew:
        given = {name: value for name, value in given.items() if name.startswith(FROM_PIXEL)}
    own = tokenizer.state_dict()
    lost = [name for name in given if name not in own and not (stage == "decoder" and name.startswith("pixel_decoder."))]
    if lost:
        raise RequestError(f"{folder} does not fit the stage that is to go on from it: there is no {lost[0]} here")
    if stage == "decoder":
        own_config = tokenizer.config.model_dump(mode="json")
        changed = [name for name in DECIDE_CODES if before.get(name) != own_config[name]]
        if changed:
            raise RequestError(
                f"stage decoder keeps all codes, and {changed[0]} decides them: it is {before.get(changed[0])} in {folder} "
                f"and {own_config[changed[0]]} here"
            )
    fresh = [name for name, value in own.items() if name not in given or given[name].shape != value.shape]
    may = ("pixel_decoder.",) if stage == "decoder" else ()
    wrong = [name for name in fresh if not name.startswith(may) and not (anew and not name.startswith(FROM_PIXEL))]
    if wrong:
        had = f"shape {tuple(given[wrong[0]].shape)}" if wrong[0] in given else "none"
        raise RequestError(
            f"{folder} does not fit the stage that is to go on from it: {wrong[0]} has shape "
            f"{tuple(own[wrong[0]].shape)} here and {had} there; only the pixel decoder may change, in the decoder stage"
        )
    tokenizer.load_state_dict({name: given[name] for name in own if name not in fresh}, strict=False)
    if stage == "decoder" and all(name not in given for name in fresh):
        # Only deeper: the new blocks begin as the identity, so the decoder goes on from what it can.
        for name, module in tokenizer.pixel_decoder.named_modules():
            last = next((attr for attr in ("conv2", "out", "proj_out") if hasattr(module, attr)), None)
            if last is not None and f"pixel_decoder.{name}.{last}.weight" in fresh:
                nn.init.zeros_(getattr(module, last).weight)
                nn.init.zeros_(getattr(module, last).bias)
    return anew


@torch.no_grad()
def begin(
    tokenizer: VisionTokenizer, batches: Sequence[Batch], settings: VisionTrainingConfig, generator: torch.Generator
) -> None:
    """Starts a tokenizer from nothing: standardise the teacher, principal components, k-means codebook."""
    standardise(tokenizer, batches)
    if tokenizer.pixel_encoder.linear is not None:
        principal_start(tokenizer, [pixels for _, pixels in batches], settings.initial_norm)
    place(tokenizer.quantizer, _features(tokenizer, batches), settings.kmeans_iterations, generator)


@torch.no_grad()
def begin_joint(tokenizer: VisionTokenizer, batches: Sequence[Batch], generator: torch.Generator) -> None:
    """Starts the semantic branch of a tokenizer that a pixel stage has left."""
    standardise(tokenizer, batches)
    place_semantic(tokenizer.quantizer, _features(tokenizer, batches), generator)


def standardise(tokenizer: VisionTokenizer, batches: Sequence[Batch]) -> None:
    """Sets mean and deviation of the classical teacher's features; a learned teacher's are taken as they are."""
    if tokenizer.config.teacher != "classical":
        return
    taught = torch.cat([tokenizer.teacher(p).permute(0, 2, 3, 1).reshape(-1, tokenizer.teacher.dim) for _, p in batches])
    tokenizer.teacher_mean.copy_(taught.mean(0))
    tokenizer.teacher_scale.copy_(taught.std(0).clamp_min(1e-3))


def _features(tokenizer: VisionTokenizer, batches: Sequence[Batch]) -> list[tuple[Tensor, tuple[Grid, ...]]]:
    return [(tokenizer.features(pixels), schedule) for schedule, pixels in batches]


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
