"""Is a file what a manifest says it is? Shared by the shards' and the checkpoints' verification."""

from __future__ import annotations

import hashlib
from pathlib import Path


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_problem(path: Path, size: int, sha256: str) -> str | None:
    """What is wrong with a file that should have `size` bytes and this hash, in words to follow its name; None: nothing."""
    if not path.is_file():
        return "is missing"
    found = path.stat().st_size
    if found != size:
        return f"has {found} bytes, the manifest says {size}"
    return None if file_sha256(path) == sha256 else "is damaged: its sha256 is not the manifest's"
