"""Saving beside the training: what is written, when it comes into force, and what is left where it fails. In one process.

The writing thread is held back by an event where a test needs a save to be pending, so nothing here depends on time.
"""

from __future__ import annotations

import itertools
import json
import resource
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core import dist_checkpointing
from nextflow_data.common import whole_files

from megatron_nextflow.checkpoint import save, staging
from megatron_nextflow.checkpoint.save import SaveError, Saver
from megatron_nextflow.checkpoint.tensors import model_tensors
from megatron_nextflow.checkpoint.verify import verify_folder
from megatron_nextflow.config.train import TrainConfig
from megatron_nextflow.feeding import inputs
from megatron_nextflow.feeding.feed import Feed, Share
from megatron_nextflow.runtime import training_folder
from megatron_nextflow.runtime.training_folder import CheckpointError
from megatron_nextflow.step.process_groups import start_parallel
from megatron_nextflow.step.trainer import Trainer
from megatron_nextflow.training.beginning import begin, find_origin

Config = Callable[..., TrainConfig]
CPU = torch.device("cpu")


class Run:
    """A training taken step by step."""

    def __init__(self, config: TrainConfig) -> None:
        start_parallel(config)
        source = inputs.open_inputs(config)
        self.trainer = Trainer(config, source.vocabulary, source.codebook, CPU)
        self.state = begin(find_origin(config, source), self.trainer).state
        self.trainer.set_step(self.state.step)
        self.feed = Feed(source.packs, config, source.vocabulary, Share(), self.state.consumed)
        self.saver = Saver(self.trainer, config)

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            self.trainer.step(self.feed.next_batch())
            changes = {"step": self.state.step + 1, "consumed": self.feed.consumed}
            self.state = self.state.model_copy(update=changes)


@pytest.fixture
def make_run(make_config: Config, training_data: Any) -> Callable[..., Run]:
    return lambda output, **settings: Run(make_config(training_data, output, **settings))


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """The writing thread waits for this."""
    event, write = threading.Event(), staging.Share.write

    def wait_and_write(part: staging.Share) -> staging.Written:
        assert event.wait(60)
        return write(part)

    monkeypatch.setattr(staging.Share, "write", wait_and_write)
    yield event
    event.set()


def _names(output: Path) -> list[str]:
    return sorted(path.name for path in training_folder.folder(output).iterdir())


def _path(output: Path, step: int) -> Path:
    return training_folder.folder(output) / f"step-{step:08d}"


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    found = dist_checkpointing.load_plain_tensors(str(path / "megatron"))
    return {name: tensor for name, tensor in found.items() if isinstance(tensor, torch.Tensor)}


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_what_is_written_is_the_moment_of_begin(
    precision: str, make_run: Callable[..., Run], held: threading.Event, tmp_path: Path
) -> None:
    """Two steps go by while the save is pending; it holds what a synchronous save holds that nothing followed."""
    run = make_run(tmp_path / "beside", precision=precision)
    run.step(2)
    run.saver.begin(run.state)
    run.step()
    assert run.saver.busy and run.saver.poll() == [] and training_folder.latest(tmp_path / "beside") is None
    run.step()
    held.set()
    assert run.saver.finish() == [_path(tmp_path / "beside", 2)] and not run.saver.busy
    run.saver.begin(run.state)
    run.saver.finish()

    straight = make_run(tmp_path / "straight", precision=precision, async_save=False)
    straight.step(2)
    straight.saver.begin(straight.state)
    assert straight.saver.poll() == [_path(tmp_path / "straight", 2)] and straight.saver.poll() == []
    ours, expected = _tensors(_path(tmp_path / "beside", 2)), _tensors(_path(tmp_path / "straight", 2))
    assert ours.keys() == expected.keys() and len(ours) > 50
    assert all(torch.equal(ours[name], expected[name]) for name in expected)
    later = _tensors(_path(tmp_path / "beside", 4))
    moved = [name for name in expected if not torch.equal(expected[name], later[name])]
    assert len(moved) == len(expected)


def test_the_next_save_waits_for_the_one_before(make_run: Callable[..., Run], held: threading.Event, tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for _ in range(2):
        run.step()
        threading.Timer(0.05, held.set).start()
        run.saver.begin(run.state)
    assert run.saver.finish() == [_path(tmp_path, 1), _path(tmp_path, 2)]
    assert run.saver.finish() == []


def test_checkpoints_are_kept_by_policy(make_run: Callable[..., Run], tmp_path: Path) -> None:
    run = make_run(tmp_path, keep=1, keep_every=2)
    for _ in range(5):
        run.step()
        run.saver.begin(run.state)
    run.saver.finish()
    assert _names(tmp_path) == ["latest", "step-00000002", "step-00000004", "step-00000005"]


def test_the_old_one_stays_until_the_new_one_was_read_again(
    make_run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that does not give back what was written."""
    run = make_run(tmp_path, keep=1)
    run.step()
    run.saver.begin(run.state)
    run.saver.finish()

    class Flipping(staging.HashingFile):
        def __exit__(self, *error: Any) -> None:
            super().__exit__(*error)
            data = bytearray(self.path.read_bytes())
            data[len(data) // 3] ^= 4
            self.path.write_bytes(data)

    monkeypatch.setattr(staging, "HashingFile", Flipping)
    run.step()
    run.saver.begin(run.state)
    with pytest.raises(SaveError, match=r"step-00000002 failed: .*__0_0\.distcp is damaged.*reading it again"):
        run.saver.finish()
    assert _names(tmp_path) == ["latest", "step-00000001"]
    assert training_folder.latest(tmp_path) == _path(tmp_path, 1)


def test_a_checkpoint_that_lacks_a_tensor_does_not_come_into_force(
    make_run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = staging.Share.write

    def forgetful(part: staging.Share) -> staging.Written:
        written = write(part)
        return staging.Written(written.files, written.places[:-1])

    monkeypatch.setattr(staging.Share, "write", forgetful)
    run = make_run(tmp_path)
    run.step()
    run.saver.begin(run.state)
    with pytest.raises(SaveError, match="lies in no file of it; there is no other"):
        run.saver.finish()
    assert training_folder.latest(tmp_path) is None


@contextmanager
def _small_files() -> Iterator[None]:
    """No file of this process may grow beyond 1 MiB: what a full disk is, wherever tests run."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_cannot_grow_is_told_at_the_next_look(make_run: Callable[..., Run], tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.step()
    run.saver.begin(run.state)
    run.saver.finish()
    run.step()
    with _small_files():
        run.saver.begin(run.state)
        run.step()  # training does not notice
        with pytest.raises(SaveError, match=r"__0_0\.distcp: File too large .*; step-00000001 is in force"):
            while run.saver.busy:
                run.saver.poll()
    assert _names(tmp_path) == ["latest", "step-00000001"]
    run.saver.begin(run.state)  # there is room again
    assert run.saver.finish() == [_path(tmp_path, 3)]


def test_a_disk_that_fills_up_at_the_last_moment(
    make_run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all tensors written and no room for `latest`, the checkpoint before is in force."""
    run = make_run(tmp_path, keep=1)
    run.step()
    run.saver.begin(run.state)
    run.saver.finish()

    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("megatron_nextflow.checkpoint.save.replace_file", full)
    run.step()
    run.saver.begin(run.state)
    with pytest.raises(SaveError, match=r"latest: No space left on device .*; step-00000001 is in force"):
        run.saver.finish()
    assert training_folder.latest(tmp_path) == _path(tmp_path, 1)
    monkeypatch.undo()
    run.step()
    run.saver.begin(run.state)
    run.saver.finish()
    assert _names(tmp_path) == ["latest", "step-00000003"]


class _Killed(BaseException):
    """As kill -9: nothing after it is done."""


@pytest.mark.slow
def test_a_kill_at_any_moment_of_the_commit_leaves_a_whole_checkpoint_in_force(
    make_run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each operation on the disk in turn, with older checkpoints to remove and leftovers of the kills before."""
    left = [1_000_000]

    def counted(work: Callable[..., Any]) -> Callable[..., Any]:
        def do(*arguments: Any, **settings: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise _Killed
            return work(*arguments, **settings)

        return do

    for place in (save, whole_files):
        for name in ("sync_folder", "write_hashed"):
            monkeypatch.setattr(place, name, counted(getattr(place, name)))
    for owner, name in ((Path, "rename"), (Path, "replace"), (shutil, "rmtree")):
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))
    run = make_run(tmp_path, keep=1)
    run.step()
    run.saver.begin(run.state)
    run.saver.finish()
    kept = set()
    for number in itertools.count():
        run.state = run.state.model_copy(update={"step": run.state.step + 1})  # as if one had been taken
        run.saver.begin(run.state)
        before, left[0] = training_folder.latest(tmp_path), number
        try:
            run.saver.finish()
            break
        except _Killed:
            left[0] = 1_000_000
            found = training_folder.latest(tmp_path)
            assert found in (before, _path(tmp_path, run.state.step)) and found is not None
            assert verify_folder(found).state.step == int(found.name[5:])
            kept.add(found == before)
    assert number > 10 and kept == {True, False}


def test_weights_alone_are_nothing_to_go_on_from(
    make_run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a checkpoint that was imported."""

    def weights(trainer: Trainer) -> dict[str, Any]:
        return {**model_tensors(trainer.chunks), "optimizer": {}}

    monkeypatch.setattr(staging, "all_tensors", weights)
    run = make_run(tmp_path / "first")
    run.saver.begin(run.state)
    run.saver.finish()
    with pytest.raises(CheckpointError, match=r"optimizer\.state\S* is not in it: it holds weights alone, for init_from"):
        make_run(tmp_path / "first")
    assert make_run(tmp_path / "second", init_from=tmp_path / "first").state.step == 0


def test_the_step_in_force_is_not_written_again(make_run: Callable[..., Run], tmp_path: Path) -> None:
    """As after going back to it: which batches were left out is all that is new."""
    run = make_run(tmp_path)
    run.step()
    run.saver.begin(run.state)
    (path,) = run.saver.finish()
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()}
    run.saver.begin(run.state.model_copy(update={"skipped": [4, 12], "losses": [1.5]}))
    assert not run.saver.busy and run.saver.finish() == [path]
    assert {f for f in before if f.stat().st_mtime_ns != before[f]} == {path / training_folder.MANIFEST}
    again = make_run(tmp_path)
    assert (again.state.step, again.state.skipped, again.state.losses) == (1, [4, 12], [1.5])


def test_a_step_that_was_left_behind_is_written_over(make_run: Callable[..., Run], tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for _ in range(2):
        run.step()
        run.saver.begin(run.state)
    run.saver.finish()
    (training_folder.folder(tmp_path) / "latest").write_text("step-00000001\n", encoding="utf-8")
    (_path(tmp_path, 2) / "megatron" / "common.pt").unlink()
    run = make_run(tmp_path)
    run.step()
    run.saver.begin(run.state)
    run.saver.finish()
    assert training_folder.latest(tmp_path) == _path(tmp_path, 2)
    assert make_run(tmp_path).state.step == 2


def test_the_manifest_says_what_was_trained_how(make_run: Callable[..., Run], tmp_path: Path) -> None:
    run = make_run(tmp_path, trainable="connector_and_head")
    run.step()
    run.saver.begin(run.state)
    (path,) = run.saver.finish()
    state = json.loads((path / training_folder.MANIFEST).read_text(encoding="utf-8"))["state"]
    assert (state["version"], state["step"], state["consumed"], state["processes"]) == (2, 1, 4, 1)
    assert state["trainable"] == "connector_and_head"
    assert state["parallel"] == {"tp": 1, "pp": 1, "vpp": 1, "cp": 1}
    assert (state["run"]["steps"], state["run"]["optimizer"]["lr"]) == (5, 3e-3)
    assert state["run"]["libraries"]["torch"] == torch.__version__
    assert make_run(tmp_path, trainable="connector_and_head").state.step == 1
