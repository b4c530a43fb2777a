"""What a vision tokenizer is, to everyone who must not load torch: its hash, its codebook, its sizes.

Manifests and checkpoints name a tokenizer by this hash, so it covers the settings and the weights. It is a hash of the two
files' hashes and not of their joined bytes, so that a large weights file can be verified alone.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
from nextflow_data.common.errors import RequestError
from nextflow_data.common.whole_files import file_sha256

from nextflow_tokenize.config.vision import VisionTokenizerConfig

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "weights.safetensors"
FORMAT = 2
"""Version of the folder's layout; a reader refuses another."""

SEMANTIC_CODES = "quantizer.semantic"
PIXEL_CODES = "quantizer.pixel"
"""Names of the two codebooks in the weights file."""


class VisionInfo(TypedDict):
    """Sizes of a vision tokenizer. `width` is semantic_dim + pixel_dim, the width of `load_codebook`'s rows; `sides` are the
    square scales of one that has a fixed schedule, empty for one with NextFlow's."""

    codebook_size: int
    semantic_dim: int
    pixel_dim: int
    width: int
    levels: list[int]
    sides: list[int]
    teacher: str


def identity(directory: Path | str) -> str:
    """Hex sha256 of the ASCII text "<sha256 of config.json>\\n<sha256 of weights.safetensors>\\n".

    Raises FileNotFoundError, naming the missing file, where `directory` is not a vision tokenizer.
    """
    text = "".join(file_sha256(_member(directory, name)) + "\n" for name in (CONFIG_FILE, WEIGHTS_FILE))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def content_of(folder: Path | str) -> str:
    """Hex sha256 of a folder's files by name and content, without sub-folders: what it holds, wherever it lies.

    Raises FileNotFoundError where there is no such folder.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(2, "no such folder of weights", str(folder))
    files = sorted(path for path in Path(folder).iterdir() if path.is_file())
    return hashlib.sha256("".join(f"{path.name} {file_sha256(path)}\n" for path in files).encode()).hexdigest()


def training_identity(config: VisionTokenizerConfig, exclude: frozenset[str] = frozenset()) -> dict[str, Any]:
    """What of the settings decides a training (`Section.identity`), folders of weights by their content and not their place;
    `exclude` names training settings to leave out. Raises FileNotFoundError as `content_of`."""
    settings = config.identity()
    settings.pop("teacher_path", None)
    hidden = {"lpips_path", *exclude}
    training = {name: value for name, value in settings.pop("training", {}).items() if name not in hidden}
    return settings | {"training": training, "weights": _weights(config)}


def older_training_identity(config: VisionTokenizerConfig, exclude: frozenset[str]) -> dict[str, Any]:
    """The same as trainings of before stored it, every setting by its value, so that those can be gone on with."""
    left_out = {"teacher_path": True, "training": {"lpips_path", *exclude}}
    settings: dict[str, Any] = config.model_dump(mode="json", exclude=left_out)  # type: ignore[arg-type]
    return settings | {"weights": _weights(config)}


def _weights(config: VisionTokenizerConfig) -> dict[str, str]:
    given = {"teacher": config.teacher_path, "lpips": config.training.lpips_path}
    return {name: content_of(path) for name, path in given.items() if path is not None}


def read_config(directory: Path | str) -> dict[str, object]:
    """The settings of config.json's `model` section, as plain values. Raises ValueError for another format version."""
    path = _member(directory, CONFIG_FILE)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RequestError(f"{path} is not JSON ({error}): the tokenizer was not saved whole, train it again") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or not isinstance(content.get("model"), dict):
        raise RequestError(f"{path} is not a vision tokenizer of format {FORMAT}: it was written by another version")
    return dict(content["model"])


def vision_info(directory: Path | str) -> VisionInfo:
    """Codebook size and widths from config.json alone. Raises FileNotFoundError or ValueError as `read_config` does."""
    model = read_config(directory)
    semantic, pixel = int(str(model["semantic_dim"])), int(str(model["pixel_dim"]))
    levels, sides = model["levels"], model.get("sides")
    return {
        "codebook_size": int(str(model["codebook_size"])),
        "semantic_dim": semantic,
        "pixel_dim": pixel,
        "width": semantic + pixel,
        "levels": [int(level) for level in levels] if isinstance(levels, list) else [],
        "sides": [int(side) for side in sides] if isinstance(sides, list) else [],
        "teacher": str(model["teacher"]),
    }


def load_codebook(directory: Path | str) -> npt.NDArray[np.float32]:
    """The codebook, [V, semantic_dim + pixel_dim] float32, each branch of each row of unit length; no torch needed.

    Bit for bit what `VisionTokenizer.codebook` holds, since the stored codes are normalised already. Raises RequestError
    where the file holds no tokenizer's weights.
    """
    from safetensors import SafetensorError, safe_open

    file = _member(directory, WEIGHTS_FILE)
    try:
        with safe_open(file, framework="np") as weights:
            branches = [weights.get_tensor(name) for name in (SEMANTIC_CODES, PIXEL_CODES)]
    except SafetensorError as error:
        raise RequestError(f"{file} holds no tokenizer's weights ({error}): copy it anew") from None
    return np.ascontiguousarray(np.concatenate(branches, axis=1), dtype=np.float32)


def _member(directory: Path | str, name: str) -> Path:
    path = Path(directory) / name
    if not path.is_file():
        raise FileNotFoundError(f"{directory} is not a vision tokenizer: {name} is missing; train one or give its folder")
    return path
