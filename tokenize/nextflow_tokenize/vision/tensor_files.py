"""Reading weights that others published: one loader for .safetensors and for torch's .pth and .pt.

A .pth is a pickle, which can hold code. Only `weights_only` loading is used, with one class allowed beyond tensors and
containers: argparse.Namespace, a plain bag of values, since published checkpoints carry their command line. The cost is that
a file with any other class in it is refused whole, even where its weights are harmless; it must be converted first.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

import torch
from nextflow_data.common.errors import RequestError
from torch import Tensor, nn

SUFFIXES = (".safetensors", ".pth", ".pt")
WRAPPERS = ("model", "state_dict")
"""Keys under which checkpoints hold their weights, beside an optimiser's state and the like."""


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that holds nothing else, by name, on the CPU and in the file's own types.

    Raises FileNotFoundError for a missing file; ValueError for another suffix, a file that cannot be read, one that is
    refused because it holds code, and one that is not a state dict (a dict of tensors).
    """
    content = _read(path)
    tensors = _tensors(content)
    if tensors is None:
        raise RequestError(f"{path} is not a state dict: it holds {_described(content)}; give a file with the weights alone")
    return tensors


def state_dict_of(path: Path, key: str | None = None) -> dict[str, Tensor]:
    """The weights in a checkpoint: what is under `key`, or without one the file itself, or what is under "model" or
    "state_dict". Raises as `load_tensors` does, and ValueError where the key is missing or two fit."""
    content = _read(path)
    if key is None:
        whole = _tensors(content)
        if whole is not None:
            return whole
        inside = content if isinstance(content, Mapping) else {}
        fitting = [name for name in WRAPPERS if _tensors(inside.get(name)) is not None]
        if len(fitting) != 1:
            trouble = f"has weights under each of {fitting}" if fitting else f"has no weights under any of {list(WRAPPERS)}"
            raise RequestError(f"{path} {trouble} (it holds {_described(content)}): name the key of the weights")
        key = fitting[0]
    if not isinstance(content, Mapping) or key not in content:
        raise RequestError(f"{path} has no key {key!r}: it holds {_described(content)}; name another key or none")
    tensors = _tensors(content[key])
    if tensors is None:
        raise RequestError(f"{path} holds under {key!r} {_described(content[key])}, not a state dict; name another key")
    return tensors


def fill(
    module: nn.Module, tensors: Mapping[str, Tensor], path: Path, expected: str, keys: Mapping[str, str] | None = None
) -> None:
    """Copy tensors into a module's parameters and buffers of the same names; what the module does not have is left out.

    `keys` gives the file's name for each of the module's that differs; `path` and `expected` (what the file should have
    been) are for messages. Raises ValueError, naming the key, for a tensor
    that is missing, of another shape, not of floating point, or not finite.
    """
    with torch.no_grad():
        for own, slot in module.state_dict().items():
            if own.endswith(".num_batches_tracked"):  # BatchNorm's counter, of no use without training
                continue
            name = (keys or {}).get(own, own)
            if name not in tensors:
                some = ", ".join(list(tensors)[:3])
                raise RequestError(f"{path} has no tensor {name!r} (it starts with {some}): give {expected}")
            found = tensors[name]
            if found.shape != slot.shape:
                raise RequestError(f"{path}: {name} is {list(found.shape)}, not {list(slot.shape)}: give {expected}")
            if not found.is_floating_point() or not bool(torch.isfinite(found).all()):
                raise RequestError(f"{path}: {name} is not finite numbers of floating point: get the file again, {expected}")
            slot.copy_(found)


def _read(path: Path) -> object:
    if path.suffix not in SUFFIXES:
        raise RequestError(f"{path} is not a file of weights by its suffix: give one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist or is not a file: give the path of the weights")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise RequestError(f"{path} is not a safetensors file ({error}): get it again") from error
    _limit(path)
    try:
        with torch.serialization.safe_globals([Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        unsafe = re.search(r"GLOBAL ([\w.]+)|[Uu]nsupported (?:global|class)|unrecognized function", str(error))
        if unsafe:
            named = f" ({unsafe.group(1)})" if unsafe.group(1) else ""
            raise RequestError(
                f"{path} is refused because it holds code or classes beside its tensors{named}: get the weights alone, "
                "best as .safetensors"
            ) from error
        raise RequestError(f"{path} is not a file that torch can read: get it again, or give a .safetensors") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise RequestError(f"{path} is damaged ({type(error).__name__}: {error}): get it again") from error


def _limit(path: Path) -> None:
    """Refuse a file that would unpack to more than its size: torch stores its entries uncompressed."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except zipfile.BadZipFile as error:
        raise RequestError(f"{path} is damaged ({error}): get it again") from error
    if unpacked > path.stat().st_size:
        raise RequestError(f"{path} is refused because it is compressed, which torch's files never are: get it again")


def _tensors(content: object) -> dict[str, Tensor] | None:
    """The content as a state dict, or None where it is not one."""
    if not isinstance(content, Mapping) or not content:
        return None
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()):
        return None
    return {name: value.detach() for name, value in content.items()}


def _described(content: object) -> str:
    """For messages: the first keys of a dict, or the type."""
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    shown = ", ".join(str(name) for name in list(content)[:8])
    return f"a dict of {shown}{', …' if len(content) > 8 else ''}" if content else "an empty dict"
