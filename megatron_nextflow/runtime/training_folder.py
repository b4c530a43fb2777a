"""What lies where in a training's folder: every name, and the one way to find the checkpoint in force.

    train.json          the resolved configuration
    run.json            who trains there, and how it ended (`launching.launch_record`)
    metrics.jsonl       a row a logged step; events.jsonl is the history (`watch.reporter`)
    logs/               a file a process
    checkpoints/        latest, and a folder a checkpoint (`checkpoint.format`)

Needs no torch.
"""

from __future__ import annotations

from pathlib import Path

CONFIG = "train.json"
RECORD = "run.json"
METRICS = "metrics.jsonl"
EVENTS = "events.jsonl"
HEARTBEAT = "heartbeat.json"
LOGS = "logs"
LATEST = "latest"
MANIFEST = "manifest.json"
"""Of a checkpoint; written last, so a folder that has it is whole."""


class CheckpointError(ValueError):
    """A checkpoint that is damaged, or does not belong to this training."""


def folder(output: Path) -> Path:
    """Where a training's checkpoints lie."""
    return output / "checkpoints"


def folder_name(step: int) -> str:
    """Of the checkpoint after `step` steps."""
    return f"step-{step:08d}"


def steps(output: Path) -> list[int]:
    """Steps of which a whole checkpoint lies there, ascending."""
    found = (path.parent.name.removeprefix("step-") for path in folder(output).glob(f"step-*/{MANIFEST}"))
    return sorted(int(number) for number in found if number.isdigit())


def latest(output: Path) -> Path | None:
    """The checkpoint in force, or None before the first. Raises CheckpointError where `latest` names none that is there.

    Where `latest` itself is not there (a kill before the first was written, or it was removed), the newest is in force:
    every folder that has a manifest is whole.
    """
    pointer = folder(output) / LATEST
    if not pointer.is_file():
        found = steps(output)
        return folder(output) / folder_name(found[-1]) if found else None
    path = folder(output) / pointer.read_text(encoding="utf-8").strip()
    if (path / MANIFEST).is_file() and path.name.startswith("step-"):
        return path
    left = [folder_name(step) for step in steps(output) if folder_name(step) != path.name]
    way = f"write {left[-1]}, the newest there is, into that file" if left else f"remove {folder(output)} to start anew"
    raise CheckpointError(f"{pointer} names {path.name}, which has no {MANIFEST}: it was removed or damaged; {way}")


def last_step(output: Path) -> int:
    """The step of the checkpoint in force; 0 where there is none, or none that can be used."""
    try:
        path = latest(output)
        return 0 if path is None else int(path.name.removeprefix("step-"))
    except (OSError, ValueError):
        return 0
