"""What a pattern of names means below a folder of a store: what `Path.glob` means by it on a disk."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

from nextflow_data.storage.errors import StoreRefused

_MAGIC = re.compile(r"[*?\[]")


def parts_of(pattern: str) -> list[str]:
    """The parts of a pattern of files below a folder; StoreRefused where it is none."""
    parts = [part for part in pattern.split("/") if part not in ("", ".")]
    if not parts or pattern.startswith("/") or ".." in parts:
        raise StoreRefused(f"{pattern!r} is no pattern of files below a folder")
    return parts


def matches(names: list[str], parts: list[str]) -> bool:
    """Whether a file's path, part by part, matches. `**` is any number of folders, none included, and never a file."""
    if not names or not parts:
        return not names and not parts
    if parts[0] == "**":
        return any(matches(names[skipped:], parts[1:]) for skipped in range(len(names)))
    return fnmatchcase(names[0], parts[0]) and matches(names[1:], parts[1:])


def literal(pattern: str) -> str:
    """What the path of every match begins with."""
    magic = _MAGIC.search(pattern)
    return pattern[: magic.start()] if magic else pattern
