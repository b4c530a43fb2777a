"""What a request must satisfy, answered from small files before the model is loaded.

A wrong level, tokenizer or length then costs a second and no loading of a model. Generation refuses tokenizers that are not
the checkpoint's by hash, because their ids would mean something else. The cost: tokenizers must be at hand as files; a
checkpoint does not carry them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from nextflow_tokenize.documents.text_tokenizer import TextTokenizer
from nextflow_tokenize.schedule import LEVEL_SCALES, Grid, canonical_final, grids, nearest_final
from nextflow_tokenize.vision.identity import vision_info

from megatron_nextflow.checkpoint.format import CheckpointState
from megatron_nextflow.config.generate import GenerationError
from megatron_nextflow.generation.results import is_png
from megatron_nextflow.runtime.training_folder import MANIFEST, latest


def image_grids_of(level: int, ratio: float) -> tuple[Grid, ...]:
    """The schedule of the image of `level` whose height over width is nearest to `ratio`. Raises GenerationError."""
    if level not in LEVEL_SCALES:
        raise GenerationError(f"level must be one of {', '.join(map(str, LEVEL_SCALES))}, not {level}")
    if not 0.05 <= ratio <= 20:
        raise GenerationError(f"ratio is height over width, about 0.25 to 4, not {ratio}")
    scales = LEVEL_SCALES[level]
    return grids(canonical_final(nearest_final(round(ratio * 10_000), 10_000), scales), scales)


def step_folder(path: Path) -> Path:
    """The checkpoint folder `path` is, or the newest of the training's folder that it is, as an absolute path.

    Raises GenerationError where it is neither, CheckpointError where the newest is not there.
    """
    found = path if (path / MANIFEST).is_file() else latest(path)
    if found is None:
        raise GenerationError(
            f"{path} is neither a checkpoint folder nor a training with one; train first, or give a step-* folder"
        )
    return found.absolute()


def named_path(step: Path, name: str) -> Path:
    """The path of a tokenizer as the resolved settings of a step folder's run name it. Raises GenerationError."""
    file = step.parent.parent / "train.json"
    try:
        path = json.loads(file.read_text(encoding="utf-8"))["data"].get(name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        path = None
    if path is None:
        raise GenerationError(f"{file} does not say where the {name.replace('_', ' ')} lies: give its path")
    return Path(path)


def open_text_tokenizer(path: Path, end_of_text: str, state: CheckpointState) -> TextTokenizer:
    """The text tokenizer at `path`, a tokenizer.json or its folder; GenerationError where it is not the checkpoint's."""
    tokenizer = TextTokenizer.load(path / "tokenizer.json" if path.is_dir() else path, end_of_text)
    require_same("text tokenizer", path, tokenizer.hash, state.text_tokenizer)
    return tokenizer


def require_same(name: str, path: Path, found: str, wanted: str) -> None:
    """Raise GenerationError where a tokenizer's hash is not the checkpoint's."""
    if found != wanted:
        raise GenerationError(
            f"the {name} at {path} is {found[:12]}…, the checkpoint was trained with {wanted[:12]}…: its ids would mean "
            "something else; give the one that the checkpoint's shards were made with"
        )


def require_png(path: Path) -> None:
    """Raise GenerationError where no PNG can be written at `path`; one that is there is written over."""
    if path.is_dir():
        raise GenerationError(f"{path} is a folder: name the PNG to write")
    if not is_png(path):
        raise GenerationError(f"an image is written as PNG: name it {path.with_suffix('.png')}, not {path}")
    _require_parent(path)


def require_folder(path: Path, new: bool) -> None:
    """Raise GenerationError where no folder can be made at `path`, or, if it is to be `new`, something is there."""
    if path.exists() and (new or not path.is_dir()):
        raise GenerationError(f"{path} exists and is not written over: name another folder or remove it")
    _require_parent(path)


def _require_parent(path: Path) -> None:
    there = next(parent for parent in path.absolute().parents if parent.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        raise GenerationError(f"{path} cannot be written: {there} is no folder, or not yours to write to")


def require_images(state: CheckpointState) -> None:
    """Raise GenerationError where a checkpoint was trained on texts alone."""
    if not state.vision_tokenizer:
        raise GenerationError("the checkpoint was trained on texts alone: it neither draws images nor reads them")


def require_room(slots: int, state: CheckpointState) -> None:
    """Raise GenerationError where a request is longer than the sequences of training (positions never seen there)."""
    if slots > state.model.max_length:
        raise GenerationError(
            f"prompt and result need {slots} slots, the model was trained on sequences of {state.model.max_length}: "
            "shorten the prompt, or ask for less text or a lower level"
        )


def require_level(level: int, folder: Path, state: CheckpointState) -> None:
    """Raise GenerationError where the vision tokenizer in `folder` or the model was not made for images of `level`."""
    possible = [n for n in vision_info(folder)["levels"] if LEVEL_SCALES.get(n, 99) <= state.model.max_scales]
    if level not in possible:
        raise GenerationError(f"level {level} is not one of {possible}, which vision tokenizer and model were trained for")
