"""Checkpoints of a tokenizer's training: what a stopped training goes on from, exactly.

A checkpoint is one file that appears whole (written beside, synced, renamed), holds tensors and plain values only, and is
read with `weights_only`. It names what it belongs to by a fingerprint of settings and images, so that a training with others
never goes on from it silently. The last two stay: one that cannot be read falls back to the one before. The cost: a
checkpoint is written by the first process while the others wait, about the weights' size three times over.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from nextflow_data.common.errors import RequestError
from nextflow_data.common.whole_files import replacing

from nextflow_tokenize.config.vision import VisionTokenizerConfig
from nextflow_tokenize.vision.identity import older_training_identity, training_identity
from nextflow_tokenize.vision.images.dataset import Picture

log = logging.getLogger(__name__)

KEPT = 2
OPERATIONAL = frozenset({"cache_mib", "workers", "checkpoint_interval", "picture_interval", "threads", "compile"})
"""Training settings that decide how a training is carried out, not what is learnt (but for sums' last bits)."""


class OtherTraining(RequestError):
    """A checkpoint belongs to another training: other settings, or other images."""


def fingerprints(config: VisionTokenizerConfig, pictures: Sequence[Picture], init: str | None) -> tuple[str, str]:
    """What decides the weights: settings, images by hash, the identity of the weights it starts from; and the same as
    checkpoints of before have it."""
    rest = {"images": sorted(picture.sha256 for picture in pictures), "init": init}
    now, before = training_identity(config, OPERATIONAL), older_training_identity(config, OPERATIONAL)
    texts = [json.dumps({"settings": settings, **rest}, sort_keys=True) for settings in (now, before)]
    return hashlib.sha256(texts[0].encode()).hexdigest(), hashlib.sha256(texts[1].encode()).hexdigest()


def save(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Writes `checkpoint-<step>.pt` and lets the older ones go, but for one."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"checkpoint-{step:08d}.pt"
    with replacing(path) as beside:
        torch.save(state, beside)
    for old in found(folder)[KEPT:]:
        old.unlink()
    return path


def tidy(folder: Path | None) -> None:
    """Removes what a kill in the middle of a save has left."""
    if folder is not None:
        for path in folder.glob(".checkpoint-*.writing"):
            path.unlink()


def found(folder: Path) -> list[Path]:
    """The folder's checkpoints, the newest first."""
    return sorted(folder.glob("checkpoint-*.pt"), reverse=True)


def load(folder: Path, expected: Collection[str]) -> dict[str, Any] | None:
    """The newest checkpoint that can be read, None where there is none. Raises OtherTraining for another fingerprint."""
    state = _newest(folder)
    if state is not None and state["fingerprint"] not in expected:
        raise OtherTraining(
            f"{folder} holds checkpoints of a training with other settings or images: give this one another folder, "
            "or remove that one to begin anew"
        )
    return state


def _newest(folder: Path) -> dict[str, Any] | None:
    for path in found(folder):
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # cut off, damaged: the one before it is as good, only older
            log.warning("%s cannot be read (%s: %s): going on from what is older", path, type(error).__name__, error)
            continue
        return state
    return None


def export(folder: Path, out: Path) -> int:
    """Writes the newest checkpoint's tokenizer (its averaged weights where there are some) as `out`; returns the step.

    Raises FileNotFoundError where no checkpoint can be read.
    """
    from nextflow_tokenize.vision.model import VisionTokenizer
    from nextflow_tokenize.vision.training.objective import trained_parameters

    state = _newest(folder)
    if state is None:
        raise FileNotFoundError(f"{folder} holds neither a tokenizer nor a checkpoint of one's training that can be read")
    config = VisionTokenizerConfig.model_validate_json(state["tokenizer"])
    tokenizer = VisionTokenizer(config)
    prefix = "tokenizer."
    tokenizer.load_state_dict({n.removeprefix(prefix): v for n, v in state["model"].items() if n.startswith(prefix)})
    with torch.no_grad():
        for parameter, value in zip(trained_parameters(tokenizer, config.training), state["averaged"], strict=False):
            parameter.copy_(value)
    partial = out.with_name(out.name + ".partial")
    tokenizer.eval().save(partial)
    partial.replace(out)
    return int(state["step"])
