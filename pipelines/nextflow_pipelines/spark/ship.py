"""Our own packages as one archive, for executors whose Python does not have them (`spark.ship`).

Tasks are pickled by name, so an executor must import what the driver imports. The archive holds the sources that the driver
runs and goes before what is installed there: driver and executors then run the same code, whatever a worker's image has.
What our packages need (pyarrow, Pillow, torch, …) must be there: it is compiled for a platform, and belongs to the image or
to an environment of its own (`spark.archives`). The archive is the same bytes for the same sources. The cost: sources in an
archive are compiled anew by each Python process that imports them, about a second.
"""

from __future__ import annotations

import atexit
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyspark import SparkContext

PACKAGES = ("megatron_nextflow", "nextflow_data", "nextflow_orchestration", "nextflow_pipelines", "nextflow_tokenize")


def ship(context: SparkContext) -> None:
    """Sends the archive to every executor, before any job. Here nothing changes: this process has the packages."""
    before = list(sys.path)
    context.addPyFile(str(_archive()))
    sys.path[:] = before


def with_hint(error: str) -> str:
    """An error of a task, and what to do where it lacks our packages."""
    if any(f"No module named '{package}" in error for package in PACKAGES):
        return f"{error} (executors do not have our packages: set spark.ship to true, or install them there)"
    return error


@cache
def _archive() -> Path:
    """The archive of this process, removed when Python exits: executors fetch it from the driver whenever they start."""
    folder = Path(tempfile.mkdtemp(prefix="mnf-ship-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / "megatron_nextflow.zip"
    write_archive(path)
    return path


def write_archive(path: Path) -> None:
    """All files of our packages, sources and data, in order of name, as a zip that Python imports from."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, file in sorted(_files()):
            entry = zipfile.ZipInfo(name)  # dated 1980: when a file was written is not what it says
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, file.read_bytes())


def _files() -> Iterator[tuple[str, Path]]:
    for package in PACKAGES:
        spec = find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            for file in Path(folder).rglob("*"):
                if file.is_file() and "__pycache__" not in file.parts:
                    yield f"{package}/{file.relative_to(folder).as_posix()}", file
