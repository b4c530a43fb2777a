"""What our own package asks for, extra by extra, as its metadata say: the one list, which pip reads too."""

from __future__ import annotations

import re
from functools import cache
from importlib import metadata
from pathlib import PurePosixPath

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

DISTRIBUTION = "megatron-nextflow"
BASE = "base"
LEFT_OUT = {"dev"}
"""Extras that no user needs."""
_IMPORTED_AS = {"PIL": "pillow", "skimage": "scikit-image", "megatron": "megatron-core"}
"""Modules that are not called as their distribution: of an installed one its files tell, of a missing one nothing does."""
_FILE = re.compile(r"[^.]+\.(py|.*so)")


@cache
def requirements() -> dict[str, tuple[Requirement, ...]]:
    """The requirements of the base and of each extra. Raises PackageNotFoundError where we are not installed."""
    said = metadata.metadata(DISTRIBUTION)
    extras = [extra for extra in said.get_all("Provides-Extra") or [] if extra not in LEFT_OUT]
    asked = [Requirement(text) for text in metadata.requires(DISTRIBUTION) or []]
    found: dict[str, tuple[Requirement, ...]] = {}
    for extra in [BASE, *extras]:
        environment = {"extra": "" if extra == BASE else extra}
        of_base = found.get(BASE, ())
        wanted = [one for one in asked if one.marker is None or one.marker.evaluate(environment)]
        found[extra] = tuple(one for one in wanted if one not in of_base)
    return found


def extra_of(module: str) -> str | None:
    """The extra that brings a module, by its import name, or BASE; None where nothing of ours asks for it."""
    top = module.partition(".")[0]
    name = canonicalize_name(_IMPORTED_AS.get(top, top))
    try:
        known = requirements().items()
    except metadata.PackageNotFoundError:
        return None
    return next((extra for extra, asked in known if name in {canonicalize_name(one.name) for one in asked}), None)


def pip_install(extra: str) -> str:
    """The command that brings an extra, or BASE."""
    return f"pip install '{DISTRIBUTION}{'' if extra == BASE else f'[{extra}]'}'"


def module_of(distribution: metadata.Distribution) -> str:
    """The module to import of an installed distribution: of those highest up in its files, the one that is called like it,
    else the first that is not hidden."""
    files = [PurePosixPath(file) for file in distribution.files or ()]
    packages = [file.parent for file in files if file.name == "__init__.py"]
    single = [
        PurePosixPath(file.name.partition(".")[0]) for file in files if len(file.parts) == 1 and _FILE.fullmatch(file.name)
    ]
    found = [path for path in (*packages, *single) if path.parts and not path.parts[0].startswith(("_", "."))]
    name = canonicalize_name(distribution.metadata["Name"])
    if not found:
        return name.replace("-", "_")
    depth = min(len(path.parts) for path in found)
    names = sorted({".".join(path.parts) for path in found if len(path.parts) == depth})
    return next((one for one in names if canonicalize_name(one) == name), names[0])
