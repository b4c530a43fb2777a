"""A folder that a conversion writes: whole under its name, or not there.

Written under another name beside it and renamed when complete. What is already there is never written over. The cost: the
folder's file system must have room for all of it at once, which is asked before the first byte.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_nextflow.conversion.tensor_names import ConvertError


class DiskFilled(OSError):
    """No room was left on the way; nothing is left of what was written."""


_MARGIN = 1 << 20
"""Bytes that a file system keeps for itself, or that a file takes besides its tensors, about."""
_WORDS = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT))


def refuse_existing(out: Path) -> None:
    """Raise ConvertError where there is something at `out`."""
    if out.exists():
        raise ConvertError(f"{out} exists and is not written over: name another folder or remove it")


@contextmanager
def writing(out: Path, size: int) -> Iterator[Path]:
    """An empty folder to fill, which becomes `out` where the block ends well and is removed where it does not.

    `size`: bytes that will be written, about. Raises ConvertError where there is no room for them, and DiskFilled where
    it ran out on the way.
    """
    refuse_existing(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(out.parent).free
    if free < size:
        raise ConvertError(f"{out} will take {size / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB free: free space first")
    working = out.with_name(f".{out.name}.writing")
    shutil.rmtree(working, ignore_errors=True)
    working.mkdir()
    try:
        yield working
        working.rename(out)
    except Exception as error:
        if not _full(error, working, size):
            raise
        raise DiskFilled(f"the disk filled up while {out} was written; nothing of it is left: free space first") from error
    finally:
        shutil.rmtree(working, ignore_errors=True)


def _full(error: Exception, working: Path, size: int) -> bool:
    """Whether a full disk is behind an error: torch's own error does not say so, safetensors' does."""
    written = sum(path.stat().st_size for path in working.rglob("*") if path.is_file())
    return any(words in str(error) for words in _WORDS) or shutil.disk_usage(working).free < size - written + _MARGIN
