"""The disks that a run writes to: room, and whether what commits rest on (fsync, rename, locks) is really there."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nextflow_data.common.whole_files import replace_file

from nextflow_orchestration.doctor.check import Case, Diagnosis, bad, check, ok

GIB = 1 << 30
ROOM = 2 * GIB
"""Free bytes that the quickstart finds enough, with a margin: our choice."""
TEMPORARY_ROOM = GIB
FILES = 20_000
"""Files that can still be made: our choice."""
_LOCK = "import fcntl, sys; fcntl.flock(open(sys.argv[1], 'a'), fcntl.LOCK_EX | fcntl.LOCK_NB)"


@contextmanager
def _inside(folder: Path) -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix=".mnf-doctor-", dir=folder))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _room(folder: Path, least: int) -> Diagnosis:
    found = os.statvfs(folder)
    free = found.f_bavail * found.f_frsize
    said = f"{free / GIB:,.1f} GiB free at {folder}"
    if free < least:
        return bad(f"{said}, less than {least / GIB:.0f} GiB", "free space, or name another folder")
    if found.f_files and found.f_favail < FILES:
        return bad(f"{said}, but room for {found.f_favail:,} files only", "remove small files, or name another folder")
    return ok(said)


@check("disk", "room")
def room(case: Case) -> Diagnosis:
    """Where the run goes."""
    return _room(case.folder, ROOM)


@check("disk", "commit")
def commit(case: Case) -> Diagnosis:
    """A file synced, renamed over another, its folder synced: what every commit does."""
    try:
        with _inside(case.folder) as folder:
            file = folder / "manifest.json"
            for content in ("old", "new"):
                replace_file(file, content)
            if file.read_text(encoding="utf-8") != "new":
                return bad(f"a file renamed over another at {case.folder} is still the old one", "use a local or NFS disk")
    except OSError as error:
        read_only = error.errno == errno.EROFS
        why = "is mounted read-only" if read_only else f"cannot be written: {error.strerror}"
        return bad(f"{case.folder} {why}", "name a folder that you may write to as `root`, or with --root")
    return ok(f"files are synced and renamed at {case.folder}")


@check("disk", "locks")
def locks(case: Case) -> Diagnosis:
    """A lock that one process holds is refused to another: what keeps two runs apart."""
    import fcntl

    advice = "use a disk with locks: over NFS version 4, or mounted with local_lock=none and a lock daemon"
    try:
        with _inside(case.folder) as folder, (folder / "lock").open("a") as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            other = subprocess.run([sys.executable, "-S", "-c", _LOCK, held.name], capture_output=True, timeout=15)
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            return bad(f"no locks at {case.folder}: {error.strerror}", advice)
        return bad(f"no lock can be tried at {case.folder}: {error.strerror}", "name a folder that you may write to")
    if other.returncode == 0:
        return bad(f"at {case.folder} two processes have one lock at the same time", advice)
    return ok(f"a lock held is refused to others at {case.folder}")


@check("disk", "temporary")
def temporary(case: Case) -> Diagnosis:
    """Room, and programs may run: Spark's Java is started from there and unpacks libraries into it."""
    folder = Path(tempfile.gettempdir())
    found = _room(folder.parent.parent, TEMPORARY_ROOM)
    with _inside(folder) as inside:
        program = inside / "program"
        program.write_text("#!/bin/sh\nexit 0\n")
        program.chmod(0o700)
        try:
            subprocess.run([str(program)], check=True, timeout=10)
        except (OSError, subprocess.CalledProcessError) as error:
            where = folder.parent.parent
            return bad(f"no program may run in {where} ({error}): it is mounted noexec", "export TMPDIR=/another/folder")
    return found
