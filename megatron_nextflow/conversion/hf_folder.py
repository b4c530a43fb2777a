"""A folder of safetensors weights, read one tensor at a time.

Everything that can be wrong with it is found from the files' headers, before any weight is read: an index that names a file
or tensor that is not there, a file cut short, a tensor missing, of another shape, of a type that a checkpoint here cannot
hold, or of no known use. The cost: bit rot within the weights is not seen, because such folders carry no hashes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megatron_nextflow.conversion.tensor_names import ConvertError, Shape, bare_name

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
DTYPES = {"BF16": torch.bfloat16, "F32": torch.float32, "F16": torch.float16}
"""Types of weights, in safetensors' words."""


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies, under which name, and what it is; `dtype` in safetensors' words."""

    file: Path
    name: str
    shape: Shape
    dtype: str

    def read(self) -> Tensor:
        """The tensor, from its file and no other."""
        with safe_open(self.file, framework="pt") as stream:
            found: Tensor = stream.get_tensor(self.name)
        return found


def read_header(file: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """The tensors of a safetensors file by name, and its own metadata. Raises ConvertError where it is not a whole one."""
    try:
        with safe_open(file, framework="pt") as stream:
            parts = {name: stream.get_slice(name) for name in stream.keys()}  # noqa: SIM118 - it has no iterator
            entries = {n: Entry(file, n, tuple(part.get_shape()), part.get_dtype()) for n, part in parts.items()}
            return entries, dict(stream.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise ConvertError(f"{file} is not a whole safetensors file ({error}): download or copy it again") from error


class HfFolder:
    """The language model's tensors in `folder`, by bare name (see `tensor_names.bare_name`), and the vision encoder's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors: dict[str, Entry] = {}
        self.vision: list[Entry] = []
        for name, entry in _entries(folder).items():
            bare = bare_name(name)
            if bare is None:
                self.vision.append(entry)
            elif bare in self.tensors:
                raise ConvertError(f"{folder} holds {bare} twice, as {self.tensors[bare].name} and as {name}")
            else:
                self.tensors[bare] = entry

    def require(self, wanted: Mapping[str, Shape]) -> None:
        """Raise ConvertError unless the tensors are `wanted`, of these shapes and of types of weights."""
        missing = sorted(wanted.keys() - self.tensors.keys())
        if missing:
            why = ": this model has no bias on queries, keys and values" if missing[0].endswith("_proj.bias") else ""
            raise ConvertError(f"{self.folder} lacks {_some(missing)}{why}; config.json or the files are another model's")
        unknown = sorted(self.tensors.keys() - wanted.keys())
        if unknown:
            raise ConvertError(f"{self.folder} holds {_some(unknown)}, which Qwen2.5-VL's language model does not have")
        for name, shape in wanted.items():
            entry = self.tensors[name]
            if entry.shape != shape:
                raise ConvertError(
                    f"{entry.file}: {entry.name} has shape {list(entry.shape)}, config.json asks for {list(shape)}"
                )
            if entry.dtype not in DTYPES:
                raise ConvertError(
                    f"{entry.file}: {entry.name} is {entry.dtype}, not one of {', '.join(DTYPES)}: quantised weights cannot "
                    "be converted; take the checkpoint in bf16 or float32"
                )

    def read(self, name: str) -> Tensor:
        """The tensor of this bare name."""
        return self.tensors[name].read()


def _some(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _entries(folder: Path) -> dict[str, Entry]:
    """By full name, from the index where there is one, else from the single file."""
    if not (folder / INDEX).is_file():
        if not (folder / SINGLE).is_file():
            raise ConvertError(f"{folder} holds neither {INDEX} nor {SINGLE}: name a folder of safetensors weights")
        return read_header(folder / SINGLE)[0]
    try:
        content = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        weight_map = {str(name): str(file) for name, file in content["weight_map"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConvertError(f"{folder / INDEX} is not an index of safetensors files ({error!r})") from error
    headers: dict[str, dict[str, Entry]] = {}
    for file in sorted(set(weight_map.values())):
        if Path(file).name != file or not (folder / file).is_file():
            raise ConvertError(f"{folder / INDEX} names {file}, which is not in the folder: download or copy it")
        headers[file] = read_header(folder / file)[0]
    lost = sorted(name for name, file in weight_map.items() if name not in headers[file])
    if lost:
        raise ConvertError(f"{folder / weight_map[lost[0]]} lacks {_some(lost)}, which {INDEX} says it holds")
    return {name: headers[file][name] for name, file in weight_map.items()}
