"""Which checkpoints a training keeps: the newest few, and every so many steps one for good.

Called once a newer one is in force, verified. What lies beyond it in steps (a training that was set back to an older
checkpoint) is neither counted nor removed: it is written over when its step comes. The cost is that such a leftover stays
until then.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

from megatron_nextflow.runtime.training_folder import folder, folder_name, steps


def superfluous(found: Collection[int], newest: int, keep: int, keep_every: int | None) -> list[int]:
    """Of the steps `found`, those to remove once `newest` is saved: neither among the last `keep` nor kept for good."""
    past = sorted(step for step in found if step <= newest)
    return [step for step in past[:-keep] if not keep_every or not step or step % keep_every]


def prune(output: Path, newest: int, keep: int, keep_every: int | None, held: Collection[int] = ()) -> None:
    """Remove what is superfluous, but not now the steps that are `held`. A kill while at it leaves no folder that looks like
    a checkpoint and is not whole."""
    for step in superfluous(steps(output), newest, keep, keep_every):
        if step not in held:
            remove(folder(output) / folder_name(step))


def remove(path: Path) -> None:
    """The checkpoint folder `path`: first its name, at once, then its files."""
    gone = path.with_name(f".{path.name}.removed")
    shutil.rmtree(gone, ignore_errors=True)
    path.rename(gone)
    shutil.rmtree(gone)


def clear(parent: Path) -> None:
    """Remove what kills have left of saves and removals below `parent`."""
    for path in parent.glob(".step-*"):
        shutil.rmtree(path)
