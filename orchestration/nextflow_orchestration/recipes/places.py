"""Where a run lies: its root, on a disk or in a store, and the folder of this machine for what must run on a disk.

A recipe's `root` is made absolute once, when the recipe is read, so that workers in other folders mean the same one. What
is committed lies under it and is found from it alone. What runs (Prefect's database, a training's folder, a tokenizer's
training, metrics that are added to) lies in `work`, which for a root on a disk is the root itself. For a root in a store it
is a folder named after the root's address and not after the recipe, so that `mnf ui --root s3://…` finds it without one.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Annotated, Any

from nextflow_data.storage.config import StorageConfig
from nextflow_data.storage.files import any_path
from nextflow_data.storage.store_path import AnyPath, StorePath
from pydantic import PlainSerializer, PlainValidator

WRITTEN = ("s3",)
"""Schemes of stores that a run can be written to: committing rests on their conditional writes."""
RUNS = Path("runs")


def place(value: Any, config: StorageConfig | None = None) -> AnyPath:
    """A path or an address as a place, absolute where it is of this machine. Raises ValueError for neither."""
    if isinstance(value, str) and value:
        value = any_path(value, config)
    if isinstance(value, StorePath):
        return StorePath(value.address, config or value.config)
    if isinstance(value, Path):
        return value.absolute()
    raise ValueError("write a folder's path or an s3:// address")


def _root(value: Any) -> AnyPath:
    found = place(value)
    scheme = found.address.partition("://")[0] if isinstance(found, StorePath) else None
    if scheme is not None and scheme not in WRITTEN:
        raise ValueError(f"a run cannot be written to {scheme}://; name a folder of a disk or an s3:// address")
    return found


Root = Annotated[Path | StorePath, PlainValidator(_root), PlainSerializer(str, return_type=str)]
"""A field's type: a folder that a run is written to."""


def work_of(root: AnyPath, work: Path | None = None) -> Path:
    """The folder of this machine for what runs: `work` where it is given, else the root itself, or a folder of RUNS."""
    if work is not None:
        return work.absolute()
    if isinstance(root, Path):
        return root
    digest = hashlib.sha256(root.address.encode()).hexdigest()[:8]
    return (RUNS / f"{re.sub(r'[^A-Za-z0-9._-]', '-', root.name)}-{digest}").absolute()


def shown(path: AnyPath) -> str:
    """A place for people: below the current directory as it is written from there, which is shorter."""
    if isinstance(path, Path) and path.is_absolute() and path.is_relative_to(Path.cwd()):
        return str(path.relative_to(Path.cwd()))
    return str(path)
