"""Copies of committed checkpoints in another place, a bucket or a folder, from which a fresh machine goes on.

    train.json                             the resolved configuration of the training that copies there
    copies/00000003-step-00000150.json     a checkpoint's manifest, put last and if absent: the commit
    files/<sha256>                         its files, each under its hash

Files by hash are never overwritten by others, an attempt that was cut goes on where it was, and a manifest that alone
changed costs no file. The number in a copy's name says which is the newest, whatever a store's clock says, also where a
training was set back to an earlier step. What lacks its manifest is no copy; what lacks a file is seen when it is fetched,
because a fetched checkpoint is verified like any. The cost: a copy is no folder that could be used where it lies
(`fetch`, `local_checkpoint`). One training copies to one place.

Needs no torch.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from nextflow_data.common.whole_files import file_problem, replace_file
from nextflow_data.storage import cache
from nextflow_data.storage.config import StorageConfig
from nextflow_data.storage.files import any_path, download, list_files, put_if_absent, upload
from nextflow_data.storage.store_path import AnyPath
from pydantic import ValidationError

from megatron_nextflow.checkpoint.format import CheckpointManifest, read_manifest
from megatron_nextflow.checkpoint.verify import verify_folder
from megatron_nextflow.runtime.training_folder import CONFIG, LATEST, MANIFEST, CheckpointError, folder, folder_name

COPIES = "copies"
FILES = "files"
_NAME = re.compile(r"([0-9]{8})-step-([0-9]{8})\.json")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, order=True)
class Copy:
    """A checkpoint's copy: the newest has the highest `number`. `path` is that of its manifest."""

    number: int
    step: int
    path: AnyPath

    def manifest(self) -> tuple[CheckpointManifest, bytes]:
        """What the copy holds, and the manifest's own bytes. Raises CheckpointError where it is no manifest."""
        content = self.path.read_bytes()
        try:
            found = CheckpointManifest.model_validate_json(content)
        except ValidationError as error:
            raise CheckpointError(f"{self.path} cannot be read as a checkpoint manifest: {error}") from error
        for name, entry in found.files.items():
            if PurePosixPath(name).is_absolute() or ".." in name.split("/") or not _SHA256.fullmatch(entry.sha256):
                raise CheckpointError(f"{self.path} names {name!r}, which is no file of a checkpoint")
        return found, content

    @property
    def place(self) -> AnyPath:
        """What the training copies to."""
        return self.path.parent.parent


def copies(place: AnyPath) -> list[Copy]:
    """The copies below `place`, the newest last."""
    return sorted(filter(None, (_named(path) for path, _ in list_files(place / COPIES, "*.json"))))


def is_copy(path: AnyPath) -> bool:
    """Whether a path is a copy's or what a training copies to, rather than a training's own. All of a store is."""
    return not isinstance(path, Path) or _named(path) is not None or (path / COPIES).is_dir()


def _named(path: AnyPath) -> Copy | None:
    found = _NAME.fullmatch(path.name)
    return Copy(int(found[1]), int(found[2]), path) if found else None


def copy(checkpoint: Path, place: AnyPath, number: int) -> Copy:
    """Copies a committed checkpoint as number `number` or the next that is free.

    Each file is compared with its hash first. Raises CheckpointError where one differs, and OSError, or what a store refuses
    (a ValueError); what was copied by then stays, and is found the next time.
    """
    manifest, content = read_manifest(checkpoint), (checkpoint / MANIFEST).read_bytes()
    for name, entry in sorted(manifest.files.items()):
        if problem := file_problem(checkpoint / name, entry.size, entry.sha256):
            raise CheckpointError(f"{checkpoint / name} {problem}")
        upload(checkpoint / name, place / FILES / entry.sha256, entry.sha256)
    while True:
        name = f"{number:08d}-{folder_name(manifest.state.step)}.json"
        if put_if_absent(place / COPIES / name, content):
            return Copy(number, manifest.state.step, place / COPIES / name)
        number += 1


def discard(place: AnyPath, kept: Iterable[Copy], old: Iterable[Copy]) -> None:
    """Removes the copies `old`, and every file that none of `kept` has. First the manifests: what lost a file is no copy."""
    needed = {sha256 for one in kept for sha256 in _hashes(one)}
    for one in old:
        one.path.unlink(missing_ok=True)
    for path, _ in list_files(place / FILES, "*"):
        if path.name not in needed:
            path.unlink(missing_ok=True)


def _hashes(one: Copy) -> set[str]:
    """Hashes of the files of a copy; none of one that is no copy any more."""
    try:
        return {entry.sha256 for entry in one.manifest()[0].files.values()}
    except (CheckpointError, FileNotFoundError):
        return set()


def fetch(one: Copy, parent: Path) -> Path:
    """The copy as a checkpoint folder in `parent`, whole and verified or not there at all.

    Raises CheckpointError where it is damaged or a file of it is missing.
    """
    manifest, content = one.manifest()
    final = parent / folder_name(manifest.state.step)
    working = parent / f".{final.name}.fetching"  # its beginning is what `retention.clear` looks for
    shutil.rmtree(working, ignore_errors=True)
    working.mkdir(parents=True)
    try:
        for name, entry in sorted(manifest.files.items()):
            try:
                download(one.place / FILES / entry.sha256, working / name)
            except FileNotFoundError as error:
                raise CheckpointError(f"{name} is missing: {error}") from None
        replace_file(working / MANIFEST, content)
        verify_folder(working)
        working.rename(final)
    except BaseException:
        shutil.rmtree(working, ignore_errors=True)
        raise
    return final


def restore(place: AnyPath, output: Path, say: Callable[[str], None]) -> Path | None:
    """The newest whole copy below `place`, put in force in the training's folder `output`, which has no checkpoint; None
    where there is no copy at all. `say` is told what was fetched, and what was passed over and why.

    Raises CheckpointError where there are copies and none is whole; OSError where the store or the disk fails.
    """
    found = copies(place)
    for one in reversed(found):
        try:
            path = fetch(one, folder(output))
        except CheckpointError as error:
            say(f"the copy {one.path} is passed over: {error}")
            continue
        replace_file(folder(output) / LATEST, path.name + "\n")
        say(f"{output} had no checkpoint: {path.name} was fetched from {one.path}")
        return path
    if found:
        raise CheckpointError(
            f"{place} has {len(found)} copies of checkpoints and none is whole ({found[-1].path} is the newest): restore "
            "one, or name another checkpoint.copy_to to start anew"
        )
    return None


def local_checkpoint(address: str | AnyPath, config: StorageConfig | None = None) -> Path:
    """A checkpoint folder of this machine for a copy's address: that of its manifest (…/copies/00000003-step-00000150.json)
    or what a training copies to, which means the newest there.

    It lies in the machine's cache in a folder like a training's own, with train.json where one was copied. Raises
    CheckpointError where there is no such copy or it is damaged.
    """
    path = any_path(address, config)
    one = _named(path)
    if one is None:
        found = copies(path)
        if not found:
            raise CheckpointError(f"{path} holds no copy of a checkpoint")
        one = found[-1]
    manifest, content = one.manifest()
    chosen = one

    def make(training: Path) -> None:
        fetch(chosen, folder(training))
        try:
            replace_file(training / CONFIG, (chosen.place / CONFIG).read_bytes())
        except FileNotFoundError:
            return

    size = sum(entry.size for entry in manifest.files.values())
    name = hashlib.sha256(content).hexdigest()
    training = cache.copy_of(config or StorageConfig(), f"checkpoint {name}", "training", size, make)
    return folder(training) / folder_name(manifest.state.step)
