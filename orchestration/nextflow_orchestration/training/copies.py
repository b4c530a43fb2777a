"""A training's copy in the run's root, where that is not where it trains.

Megatron writes checkpoints and adds to its metrics on a disk, so a training's folder lies in the run's working folder. Where
the root is elsewhere (a bucket), each checkpoint is copied there once it is committed (`train.checkpoint.copy_to`), and what
else is looked at afterwards (settings, metrics, events) when the training ends. So another machine finds from the root how
far it got, goes on from there, and shows its curves. The cost: what was logged since the last end is on the training's own
machine alone.
"""

from __future__ import annotations

from pathlib import Path

from nextflow_data.storage.files import download, put
from nextflow_data.storage.store_path import AnyPath

from megatron_nextflow.checkpoint.copies import Copy, copies, local_checkpoint
from megatron_nextflow.runtime.training_folder import CONFIG, EVENTS, MANIFEST, METRICS, last_step
from nextflow_orchestration.training.folders import last_checkpoint

SMALL = (CONFIG, METRICS, EVENTS)
"""What of a training's folder is copied when it ends, beside its checkpoints."""


def copy_of(output: Path, root: AnyPath) -> AnyPath | None:
    """Where in the root the copy of a training in `output` lies; None where it trains in the root itself."""
    return None if output.parent == root else root / output.name


def step_of(output: Path, copy: AnyPath | None) -> int:
    """The step that a training has reached, here or in its copy; 0 where there is nothing of it."""
    found = _further(output, copy)
    return last_step(output) if found is None else found.step


def newest_manifest(output: Path, copy: AnyPath | None) -> bytes:
    """The manifest of the checkpoint in force, here or in the copy. Raises NoRun where there is none, CheckpointError where
    it is damaged."""
    found = _further(output, copy)
    return (last_checkpoint(output) / MANIFEST).read_bytes() if found is None else found.manifest()[1]


def checkpoint_on_disk(output: Path, copy: AnyPath | None) -> Path:
    """The checkpoint in force as a folder of this machine: itself, or one in the cache that was made of the copy. Raises as
    `newest_manifest`."""
    found = _further(output, copy)
    return last_checkpoint(output) if found is None else local_checkpoint(found.path)


def _further(output: Path, copy: AnyPath | None) -> Copy | None:
    """The newest copy, where it is of a later step than what is here."""
    found = copies(copy) if copy is not None else []
    return found[-1] if found and found[-1].step > last_step(output) else None


def publish(output: Path, copy: AnyPath | None) -> None:
    """Copies what is small, after a training has ended."""
    for name in SMALL if copy is not None else ():
        if copy is not None and (output / name).is_file():
            put(copy / name, (output / name).read_bytes())


def fetch(output: Path, copy: AnyPath | None) -> None:
    """Brings what is small to a machine that has nothing of a training yet, so that what is added continues it."""
    for name in SMALL if copy is not None else ():
        if copy is not None and not (output / name).exists() and (copy / name).is_file():
            output.mkdir(parents=True, exist_ok=True)
            download(copy / name, output / name)
