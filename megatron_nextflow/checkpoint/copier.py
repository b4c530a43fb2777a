"""Checkpoints are copied to another place beside the training, by one thread of the first process.

A copy is for the day on which this machine is lost, so it never delays a training and never ends one: what fails is told and
counted, and the newest checkpoint is tried again at the next save and before the training ends. Only the newest matters: one
that waits is given up for a newer one, while the one that is being copied is kept on the disk until it is done, so that slow
copies come to an end however often a training saves. The cost: one more checkpoint on the disk meanwhile, and that a
training which ends waits for its last copy as long as it was told to.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

from nextflow_data.storage.store_path import AnyPath

from megatron_nextflow.checkpoint.copies import Copy, copies, copy, discard
from megatron_nextflow.checkpoint.format import read_manifest
from megatron_nextflow.runtime.notices import Notices
from megatron_nextflow.runtime.store_threads import PREFIX
from megatron_nextflow.runtime.training_folder import MANIFEST, CheckpointError


class Copier:
    """Copies to `place`, of which the newest `keep` stay there. `notices` is told what was copied and what was not."""

    def __init__(self, place: AnyPath, keep: int, notices: Notices) -> None:
        self.place = place
        self.keep = keep
        self.notices = notices
        self.failures = 0
        self._known: list[Copy] | None = None
        self._changed = threading.Condition()
        self._wanted: Path | None = None
        self._copying: Path | None = None
        self._failed: Path | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"{PREFIX}copies", daemon=True)
        self._thread.start()

    def submit(self, checkpoint: Path) -> None:
        """Copy this committed checkpoint, the newest there is; returns at once."""
        with self._changed:
            self._wanted = checkpoint
            self._changed.notify_all()

    def held(self) -> set[int]:
        """Steps of checkpoints that must not be removed: the one that is being copied, and the next."""
        with self._changed:
            paths = [path for path in (self._copying, self._wanted) if path is not None]
        return {int(path.name.removeprefix("step-")) for path in paths}

    def finish(self, seconds: float) -> None:
        """Wait until the newest checkpoint is copied, tried again where that fails, but no longer than `seconds`."""
        until = time.monotonic() + seconds
        with self._changed:
            for _ in range(2):  # what fails now has no next save either
                if self._wanted is None and self._copying is None:
                    self._wanted = self._failed
                    self._changed.notify_all()
                idle = self._changed.wait_for(
                    lambda: self._wanted is None and self._copying is None, max(0.0, until - time.monotonic())
                )
                if not idle or self._failed is None:
                    break
            left = self._copying or self._wanted
            self._wanted, self._closed = None, True
            self._changed.notify_all()
        if not idle:
            self.notices.add(
                "not-copied",
                f"{left} is not copied to {self.place} after {seconds:g} s (checkpoint.copy_wait), and the training ends "
                "without; it is whole here, and the next start copies it",
                failures=self.failures,
            )

    def close(self) -> None:
        """Begin nothing more; what is being copied is left as it is, which is no copy."""
        with self._changed:
            self._wanted, self._closed = None, True
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._copying = None
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._wanted is not None or self._closed)
                if self._wanted is None:
                    return
                self._copying, self._wanted = self._wanted, None
                path = self._copying
            try:
                self._copy(path)
                self._failed = None
            except Exception as error:  # whatever it is, the training goes on
                self.failures += 1
                self._failed = path
                self.notices.add(
                    "not-copied",
                    f"{path} was not copied to {self.place} ({self.failures} failed so far): {error}; tried again "
                    "at the next save, at the end, or at the next start",
                    failures=self.failures,
                )

    def _copy(self, path: Path) -> None:
        began = time.monotonic()
        if self._known is None:
            self._known = copies(self.place)
        if self._known and self._is_of(self._known[-1], path):
            return
        made = copy(path, self.place, self._known[-1].number + 1 if self._known else 1)
        self._known.append(made)
        size = sum(entry.size for entry in read_manifest(path).files.values())
        seconds = time.monotonic() - began
        self.notices.add("copied", f"{path} copied to {made.path} in {seconds:.1f} s", copy=str(made.path), bytes=size)
        old, kept = self._known[: -self.keep], self._known[-self.keep :]
        try:
            discard(self.place, kept, old)
            self._known = kept
        except (OSError, ValueError) as error:
            self.notices.add("storage", f"older copies in {self.place} were not removed: {error}; tried again with the next")

    def _is_of(self, newest: Copy, path: Path) -> bool:
        try:
            return newest.manifest()[1] == (path / MANIFEST).read_bytes()
        except (CheckpointError, FileNotFoundError):
            return False
