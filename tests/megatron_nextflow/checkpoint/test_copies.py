"""Copies of checkpoints: from them a fresh machine goes on exactly; none is a reason to stop or to wait for long."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nextflow_data.storage.config import StorageConfig

from megatron_nextflow.checkpoint import copier
from megatron_nextflow.checkpoint.copier import Copier
from megatron_nextflow.checkpoint.copies import Copy, copies, copy, local_checkpoint
from megatron_nextflow.checkpoint.format import read_manifest
from megatron_nextflow.checkpoint.verify import verify_folder
from megatron_nextflow.config.train import CheckpointConfig, TrainConfig
from megatron_nextflow.runtime import training_folder
from megatron_nextflow.runtime.notices import Notices
from megatron_nextflow.runtime.training_folder import CheckpointError, folder
from megatron_nextflow.training import loop
from megatron_nextflow.watch.reporter import read_events, read_metrics

Config = Callable[..., TrainConfig]
CPU = torch.device("cpu")
STEPS = {"steps": 6, "checkpoint_interval": 2}


@pytest.fixture(scope="module")
def whole(make_config: Config, training_data: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps, copied at 2, 4 and 6, of which two copies are kept."""
    root = tmp_path_factory.mktemp("whole")
    config = make_config(training_data, root / "run", checkpoint=CheckpointConfig(copy_to=str(root / "copy")), **STEPS)
    assert loop.train(config, CPU) == 6
    return root


@pytest.fixture
def place(whole: Path, tmp_path: Path) -> Path:
    """Its copies, to damage."""
    return Path(shutil.copytree(whole / "copy", tmp_path / "copy"))


@pytest.fixture
def fresh(make_config: Config, training_data: Any, tmp_path: Path, place: Path) -> TrainConfig:
    """The same training where nothing of it is but the copies."""
    checkpoint = CheckpointConfig(copy_to=str(place))
    return make_config(training_data, tmp_path / "fresh", checkpoint=checkpoint, **STEPS)


def _events(output: Path, *kinds: str) -> list[dict[str, Any]]:
    return [event for event in read_events(output) if event["kind"] in kinds]


def test_the_newest_are_kept_with_their_files_and_told(whole: Path) -> None:
    """Each save may be superseded before its copy begins, the last never is."""
    found = copies(whole / "copy")
    assert 1 <= len(found) <= 2 and found[-1].step == 6
    files = {path.name for path in (whole / "copy" / "files").iterdir()}
    assert files == {entry.sha256 for one in found for entry in one.manifest()[0].files.values()}
    told = _events(whole / "run", "copied", "not-copied")
    assert [event["kind"] for event in told] == ["copied"] * len(told) and told[-1]["copy"] == str(found[-1].path)
    assert TrainConfig.model_validate_json((whole / "copy" / "train.json").read_bytes()).output == whole / "run"


def test_a_fresh_machine_goes_on_as_if_nothing_had_been(whole: Path, fresh: TrainConfig, place: Path) -> None:
    """Its copy of step 4 is all there is; losses, norms and places are those of the training that was not interrupted."""
    for path in (place / "copies").iterdir():
        path.unlink()
    four = folder(whole / "run") / "step-00000004"
    copy(four, place, 7)
    assert loop.train(fresh, CPU) == 6
    expected = {row["step"]: row for row in read_metrics(whole / "run")}
    rows = read_metrics(fresh.output)
    assert [row["step"] for row in rows] == [5, 6]
    for row in rows:
        for name in ("loss", "grad_norm", "lr", "by_kind", "consumed"):
            assert row[name] == expected[row["step"]][name]
    (fetched,) = _events(fresh.output, "storage")
    source = place / "copies" / "00000007-step-00000004.json"
    assert fetched["message"] == f"{fresh.output} had no checkpoint: step-00000004 was fetched from {source}"
    assert [one.number for one in copies(place)][-1] > 7


def _spoil(one: Copy, how: str) -> None:
    """A file that only this copy has: the tensors."""
    files = one.manifest()[0].files
    name = max(files, key=lambda name: files[name].size)
    path = Path(str(one.place)) / "files" / files[name].sha256
    if how == "missing":
        path.unlink()
    elif how == "damaged":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        Path(str(one.path)).write_text('{"state"')


@pytest.mark.parametrize(
    ("how", "said"), [("missing", "is missing"), ("damaged", "is damaged"), ("half", "cannot be read as a checkpoint")]
)
def test_a_copy_that_is_not_whole_is_passed_over(whole: Path, fresh: TrainConfig, place: Path, how: str, said: str) -> None:
    copy(folder(whole / "run") / "step-00000004", place, 8)
    newest = copies(place)[-1]
    copy(folder(whole / "run") / "step-00000006", place, 9)
    spoilt = copies(place)[-1]
    assert (newest.step, spoilt.step) == (4, 6)
    _spoil(spoilt, how)
    assert loop.train(fresh.model_copy(update={"steps": 5}), CPU) == 5
    passed, fetched = (event["message"] for event in _events(fresh.output, "storage"))
    assert f"{spoilt.path} is passed over" in passed and said in passed
    assert f"fetched from {newest.path}" in fetched


def test_nothing_is_begun_anew_where_no_copy_is_whole(fresh: TrainConfig, place: Path) -> None:
    shutil.rmtree(place / "files")
    with pytest.raises(CheckpointError, match=r"none is whole .*restore one, or name another checkpoint\.copy_to"):
        loop.train(fresh, CPU)
    assert not training_folder.steps(fresh.output)


def test_copies_of_another_training_are_refused(fresh: TrainConfig) -> None:
    other = fresh.model_copy(update={"data": fresh.data.model_copy(update={"seed": 1})})
    with pytest.raises(CheckpointError, match=r"checkpoint\.copy_to holds copies of another training.*seed 0"):
        loop.train(other, CPU)
    with pytest.raises(CheckpointError, match="holds copies of checkpoints and resume is false"):
        loop.train(fresh.model_copy(update={"resume": False}), CPU)


def test_a_copy_serves_where_a_checkpoint_does(whole: Path, place: Path, tmp_path: Path) -> None:
    config = StorageConfig(cache=tmp_path / "cache")
    newest = copies(place)[-1]
    for address in (str(place), str(newest.path)):
        path = local_checkpoint(address, config)
        assert verify_folder(path) == read_manifest(folder(whole / "run") / "step-00000006")
        assert (path.parent.parent / "train.json").is_file()
    with pytest.raises(CheckpointError, match="holds no copy of a checkpoint"):
        local_checkpoint(str(place / "files"))


def test_the_commands_list_and_verify_copies(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nextflow_orchestration.cli import app
    from typer.testing import CliRunner

    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    listed = CliRunner().invoke(app, ["checkpoint", "list", str(place)])
    assert listed.exit_code == 0 and all(one.path.name in listed.stdout for one in copies(place))
    newest = copies(place)[-1]
    assert [line for line in listed.stdout.splitlines() if "in force" in line and newest.path.name in line]
    for address in (place, newest.path):
        verified = CliRunner().invoke(app, ["checkpoint", "verify", str(address)])
        assert verified.exit_code == 0 and "whole" in verified.stdout and "of step 6" in verified.stdout
    shutil.rmtree(place / "files")
    (tmp_path / "other").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "other"))
    assert CliRunner().invoke(app, ["checkpoint", "verify", str(place)]).exit_code == 1
    assert CliRunner().invoke(app, ["checkpoint", "list", str(place / "nothing")]).exit_code == 2


def test_what_fails_is_counted_and_tried_again(whole: Path, tmp_path: Path) -> None:
    six = folder(whole / "run") / "step-00000006"
    notices = Notices()
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "files").write_text("in the way")
    one = Copier(tmp_path / "to", 1, notices)
    one.submit(six)
    with one._changed:
        assert one._changed.wait_for(lambda: one.failures == 1 and one._copying is None, timeout=60)
    (tmp_path / "to" / "files").unlink()
    one.finish(60)
    assert [copied.step for copied in copies(tmp_path / "to")] == [6]
    failed, copied = notices.take()
    assert (failed.kind, failed.details["failures"], copied.kind) == ("not-copied", 1, "copied")
    again = Copier(tmp_path / "to", 1, notices)  # the next start, which finds it there
    again.submit(six)
    again.finish(60)
    assert len(copies(tmp_path / "to")) == 1 and not notices.take()


def test_a_copy_that_hangs_is_waited_for_as_long_as_was_said(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, over = threading.Event(), threading.Event()

    def hangs(checkpoint: Path, place: Any, number: int) -> Copy:
        begun.set()
        over.wait(timeout=60)
        raise OSError("too late")

    monkeypatch.setattr(copier, "copy", hangs)
    notices = Notices()
    one = Copier(tmp_path / "to", 1, notices)
    one.submit(folder(whole / "run") / "step-00000006")
    assert begun.wait(timeout=60) and one.held() == {6}
    one.finish(0.1)
    (told,) = notices.take()
    assert told.kind == "not-copied" and "after 0.1 s (checkpoint.copy_wait)" in told.message
    over.set()
    one._thread.join(timeout=60)
    assert not one._thread.is_alive()


def test_a_place_that_cannot_be_written_is_refused_before_the_first_step(
    make_config: Config, training_data: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    checkpoint = CheckpointConfig(copy_to=str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match="file"):
        loop.train(make_config(training_data, tmp_path / "run", checkpoint=checkpoint), CPU)
    assert not (tmp_path / "run").exists()
