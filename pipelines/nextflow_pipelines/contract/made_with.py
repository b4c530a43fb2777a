"""What decides a stage's bytes beside its fingerprint: this project's own code, and the libraries that do the work.

Each done-record names them, and a run's metrics do; the manifest does not, so that equal outputs of two versions stay equal
bytes. A worker with others than the driver is refused before it does anything. A run that goes on from units which others
have made says so. The code is known by a hash of its source files, which is true of a checkout, an installed wheel and a
shipped archive alike; a version number is not. The cost: any edit of these packages counts as another version, also one of a
comment; and the processor is not part of it, though last bits of torch's sums depend on it.
"""

from __future__ import annotations

import hashlib
import platform
import socket
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from importlib.resources.abc import Traversable

from nextflow_pipelines.contract.stage import StageError

LIBRARIES = (
    "Pillow",
    "datatrove",
    "fastwarc",
    "faust-cchardet",
    "lxml",
    "numpy",
    "py3langid",
    "pyarrow",
    "scipy",
    "spacy",
    "tokenizers",
    "torch",
    "webdataset",
    "xxhash",
)
_PACKAGES = ("nextflow_data", "nextflow_pipelines", "nextflow_tokenize")


@lru_cache(maxsize=1)
def made_with() -> Mapping[str, str]:
    """Versions of this process by name, in order: `code` (12 hex digits), `python`, and the libraries that are there."""
    found = {"code": _code(), "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return dict(sorted(found.items()))


def differences(one: Mapping[str, str], other: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """What both have in different versions. What one of them lacks is none: nothing here does without a library that it
    misses, so a worker that needs it stops. Nor is a build (`+cpu`, `+cu130`) of one version: drivers often have no GPU."""
    return {
        name: (one[name], other[name])
        for name in sorted(one.keys() & other.keys())
        if one[name].partition("+")[0] != other[name].partition("+")[0]
    }


def in_words(found: Mapping[str, tuple[str, str]]) -> str:
    """Differences for people: "lxml 5.4.0, not 6.1.3"."""
    return ", ".join(f"{name} {one}, not {other}" for name, (one, other) in found.items())


def check_worker(driver: Mapping[str, str]) -> None:
    """In a task, before it does anything: StageError where this worker would make other bytes than the driver."""
    found = differences(made_with(), driver)
    if found:
        raise StageError(
            f"the worker on {socket.gethostname()} has other versions than the driver ({in_words(found)}), so what it "
            "writes could differ: give both the same environment"
        )


def _code() -> str:
    digest = hashlib.sha256()
    for package in _PACKAGES:
        for name, file in sorted(_sources(files(package), package)):
            content = file.read_bytes()
            digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:12]


def _sources(folder: Traversable, name: str) -> Iterator[tuple[str, Traversable]]:
    for entry in folder.iterdir():
        if entry.is_dir() and entry.name != "__pycache__":
            yield from _sources(entry, f"{name}/{entry.name}")
        elif entry.name.endswith((".py", ".json")):
            yield f"{name}/{entry.name}", entry
