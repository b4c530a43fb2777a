"""Saving while training goes on: begin, look in once a step, commit when every process has written its part.

A checkpoint comes into force only when all of it is on the disk, was read again and describes every tensor of the model; one
that it makes superfluous goes after that. What goes wrong on one process is told on all of them, so that none waits for
another for ever, and leaves the checkpoint before in force. The cost: while a save is under way, one all-reduce of two
numbers a step; and a training that cannot save ends, however well it trains.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.core import CONFIG_FNAME, CheckpointingConfig
from nextflow_data.common.whole_files import file_sha256, replace_file, sync_folder, write_hashed

from megatron_nextflow.checkpoint import retention
from megatron_nextflow.checkpoint.format import (
    TENSORS,
    VERSION,
    CheckpointFile,
    CheckpointManifest,
    CheckpointState,
    RunRecord,
    read_manifest,
)
from megatron_nextflow.checkpoint.staging import Share, Written
from megatron_nextflow.checkpoint.tensors import parallel_layout
from megatron_nextflow.checkpoint.verify import METADATA, read_metadata, tensor_problem
from megatron_nextflow.config.train import TrainConfig
from megatron_nextflow.runtime.agreement import on_first
from megatron_nextflow.runtime.training_folder import LATEST, MANIFEST, folder, folder_name, last_step
from megatron_nextflow.step.trainer import Trainer

T = TypeVar("T")


class SaveError(OSError):
    """A checkpoint that could not be written; the one before it is still in force."""


class Saver:
    """The checkpoints of one training. Every process makes one and calls its methods in the same order.

    What a checkpoint says of layout and recipe is filled in here, from `config`. `held` says, on the first process, which
    steps' checkpoints must not be removed now.
    """

    def __init__(self, trainer: Trainer, config: TrainConfig, held: Callable[[], Collection[int]] = tuple) -> None:
        self.trainer = trainer
        self.config = config
        self.held = held
        self.parent = folder(config.output)
        self._facts = _facts(trainer, config)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: tuple[CheckpointState, Share, Future[Written]] | None = None
        self._done: list[Path] = []

    @property
    def busy(self) -> bool:
        """Whether a save is under way."""
        return self._pending is not None

    def begin(self, state: CheckpointState) -> None:
        """Take the training's state as it is now; returns once the next step cannot change what will be written.

        A save that is under way is waited for first. A step that the checkpoint in force already has is not written again:
        only `skipped` and `losses` are brought up to date, in its manifest. Without `async_save` the checkpoint is in force
        on return. Raises SaveError on every process.
        """
        self._complete()
        state = state.model_copy(update=self._facts)
        final = self.parent / folder_name(state.step)
        if _together(lambda: self._prepared(final, state), final):
            self._done.append(final)
            return
        part = Share(self.trainer, self.parent / f".{final.name}.writing")
        self._pending = state, part, self._thread.submit(part.write)
        if not self.config.async_save:
            self._complete()

    def poll(self) -> list[Path]:
        """The checkpoints that came into force since the last call; the same on every process, which all call it each step.

        Raises SaveError on every process, as soon as one has failed to write its part.
        """
        if self._pending is not None:
            job = self._pending[2]
            flags = torch.tensor([not job.done(), job.done() and job.exception() is not None], dtype=torch.int32)
            dist.all_reduce(flags, op=dist.ReduceOp.MAX)
            running, failed = flags.tolist()
            if failed or not running:
                self._complete()
        done, self._done = self._done, []
        return done

    def finish(self) -> list[Path]:
        """Wait for the save that is under way, if any, until it is in force; returns and raises as `poll`."""
        self._complete()
        return self.poll()

    def _complete(self) -> None:
        if self._pending is None:
            return
        (state, part, job), self._pending = self._pending, None
        final = self.parent / folder_name(state.step)
        wait([job])
        error = job.exception()
        problem = _reason(error, part.folder) if error else None
        parts = _gather({"problem": problem, "shapes": part.shapes, "written": None if error else job.result()})

        def commit() -> None:
            problems = [p["problem"] for p in parts if p["problem"]]
            if problems:
                raise OSError(problems[0] + (f" (and more on {len(problems) - 1} other processes)" if problems[1:] else ""))
            self._commit(final, state, part, parts)

        try:
            _together(commit, final)
        except SaveError:
            if dist.get_rank() == 0:
                shutil.rmtree(part.folder, ignore_errors=True)
            raise
        self._done.append(final)

    def _commit(self, final: Path, state: CheckpointState, part: Share, parts: list[dict[str, Any]]) -> None:
        """Put the checkpoint in force; on the first process."""
        working = part.folder
        files: dict[str, CheckpointFile] = {}
        for one in parts:
            files |= one["written"].files
        for name, entry in files.items():
            if not (working / name).is_file() or (working / name).stat().st_size != entry.size:
                raise OSError(f"{working / name}, which another process wrote, is not seen here: is it on a shared disk?")
        config = json.dumps(asdict(CheckpointingConfig("torch_dist", 1))).encode()
        files[f"{TENSORS}/{CONFIG_FNAME}"] = CheckpointFile(**write_hashed(working / TENSORS / CONFIG_FNAME, config))
        assert part.metadata is not None
        vars(part.metadata).pop("all_local_plans", None)  # Megatron's, for saving again; large, and read by nobody
        part.writer.finish(part.metadata, [one["written"].places for one in parts])
        description = working / METADATA
        files[METADATA] = CheckpointFile(size=description.stat().st_size, sha256=file_sha256(description))
        expected = {name: shape for one in parts for name, shape in one["shapes"].items()}
        if problem := tensor_problem(read_metadata(working), files, expected):
            raise OSError(problem)
        manifest = CheckpointManifest(state=state, files=files)
        write_hashed(working / MANIFEST, manifest.model_dump_json(indent=1).encode())
        for path in (*{(working / name).parent for name in files}, working):
            sync_folder(path)
        if final.exists():
            retention.remove(final)
        working.rename(final)
        sync_folder(self.parent)
        replace_file(self.parent / LATEST, final.name + "\n")
        retention.prune(self.config.output, state.step, self.config.keep, self.config.keep_every, self.held())

    def _prepared(self, final: Path, state: CheckpointState) -> bool:
        """Whether `final` is in force already, then brought up to date; if not, its way is clear. On the first process."""
        if last_step(self.config.output) == state.step and (self.parent / LATEST).is_file():
            old = read_manifest(final)
            changed = old.state.model_copy(update={"skipped": state.skipped, "losses": state.losses})
            if changed != old.state:
                replace_file(final / MANIFEST, old.model_copy(update={"state": changed}).model_dump_json(indent=1))
            return True
        self.parent.mkdir(parents=True, exist_ok=True)
        retention.clear(self.parent)
        return False


def _facts(trainer: Trainer, config: TrainConfig) -> dict[str, Any]:
    recipe = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    record = RunRecord(
        recipe=hashlib.sha256(recipe.encode()).hexdigest(),
        steps=config.steps,
        optimizer=config.optimizer.model_dump(mode="json"),
        precision=trainer.precision,
        libraries={name: version(name) for name in ("torch", "megatron-core")},
    )
    sizes, processes = parallel_layout(config.parallel)
    return {
        "version": VERSION,
        "parallel": sizes,
        "processes": processes,
        "trainable": config.trainable,
        "run": record,
    }


def _gather(mine: dict[str, Any]) -> list[dict[str, Any]]:
    """What each process brings, on the first; nothing on the others."""
    parts: list[dict[str, Any]] | None = [{}] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(mine, parts)
    return parts or []


def _together(work: Callable[[], T], final: Path) -> T:
    """What `work` returns on the first process; where it fails, SaveError on every process."""

    def failed(error: Exception) -> SaveError:
        return SaveError(f"saving checkpoint {final.name} failed: {_reason(error, final)}{_in_force(final)}")

    return on_first(work, failed)


def _reason(error: BaseException, path: Path) -> str:
    """In words; what the system refused with the file, or `path` where it names none, and the free space there."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error) or repr(error)
    name = error.filename or path
    usage = shutil.disk_usage(next(place for place in Path(name).absolute().parents if place.exists()))
    return f"{name}: {error.strerror} ({usage.free / 2**30:.3g} of {usage.total / 2**30:.3g} GiB free there)"


def _in_force(final: Path) -> str:
    before = last_step(final.parent.parent)
    return f"; {folder_name(before)} is in force" if before else "; there is no other"
