"""What `mnf train` makes of a recipe, of an end, and of a training that is at work already. No training runs here."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from nextflow_orchestration.cli import app
from nextflow_orchestration.flow import final_stages
from nextflow_orchestration.recipes.errors import RecipeError
from nextflow_orchestration.recipes.run import Recipe
from nextflow_orchestration.recipes.training import TrainingRecipe, load_either
from nextflow_orchestration.training import here, start
from nextflow_orchestration.training.job import LocalJob, SlurmJob, start_or_find
from nextflow_orchestration.training.outcome import TrainingFailed, TrainingOutcome, TrainingRefused
from nextflow_orchestration.training.prepare import Prepared, prepare
from nextflow_orchestration.training.watch import Watch
from typer.testing import CliRunner

from megatron_nextflow.config.train import TrainConfig
from megatron_nextflow.launching.launch_record import LaunchRecord, read_record, write_record
from megatron_nextflow.watch.heartbeat import Heartbeat

TINY = "name: tiny\ntrain: {steps: 20, data: {shards: data/shards}}\n"


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


def mnf(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def saved(output: Path, step: int) -> None:
    whole = output / "checkpoints" / f"step-{step:08d}"
    whole.mkdir(parents=True, exist_ok=True)
    (whole / "manifest.json").write_text("{}")
    (output / "checkpoints" / "latest").write_text(f"{whole.name}\n")


def record(output: Path, **fields: Any) -> LaunchRecord:
    given = {"pid": 0, "started": 0.0, "host": socket.gethostname(), "processes": 1, "status": "running", "began": 0.0}
    made = LaunchRecord.model_validate(given | fields)
    output.mkdir(parents=True, exist_ok=True)
    write_record(output, made)
    return made


def test_a_training_recipe_is_known_by_its_keys_and_names_its_folder(recipe: Path) -> None:
    loaded = load_either(recipe)
    assert isinstance(loaded, TrainingRecipe) and loaded.train.output == Path("runs/tiny")
    assert load_either(recipe, ["train.output=there"]).train.output == Path("there")
    assert isinstance(load_either(Path(__file__).parents[3] / "recipes" / "quickstart.yaml"), Recipe)
    with pytest.raises(RecipeError, match=r"--set: unknown key 'train\.stepz'; did you mean 'steps'"):
        load_either(recipe, ["train.stepz=3"])
    printed = mnf("recipe", recipe)
    assert printed.exit_code == 0 and "output: runs/tiny" in printed.output and "hidden_size" in printed.output


def test_paths_are_made_absolute_and_options_replace_the_recipes_own(recipe: Path, tmp_path: Path) -> None:
    prepared = prepare(recipe, [], None, None)
    assert prepared.config.output == tmp_path / "runs" / "tiny" == prepared.home
    assert prepared.config.data.shards == str(tmp_path / "data" / "shards")
    other = prepare(recipe, [], "mine", Path("here"))
    assert (other.config.data.shards, other.config.output) == (str(tmp_path / "mine"), tmp_path / "here")


@pytest.mark.parametrize(
    ("status", "step", "raised", "says"),
    [
        (0, 20, None, "step 20: done"),
        (0, 7, None, "stopped early at step 7 of 20, saved; the same command goes on from there"),
        (143, 7, KeyboardInterrupt, ""),
        (2, 0, TrainingRefused, "the line above says why"),
        (1, 7, TrainingFailed, "status 1 .*the checkpoint of step 7 is kept"),
    ],
)
def test_how_a_training_ended(
    status: int, step: int, raised: Any, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(here, "launch", lambda *_: status)
    config = TrainConfig(output=tmp_path, steps=20)
    if step:
        saved(tmp_path, step)
    if raised:
        with pytest.raises(raised, match=says):
            here.run_training(config)
    else:
        outcome = here.run_training(config)
        assert (str(outcome), outcome.finished) == (says, step == 20)


def test_a_recipe_for_data_alone_is_not_trained(recipe: Path) -> None:
    recipe.write_text("name: r\nroot: r\ninput: sample\n")
    for option in ((), ("--dry-run",)):
        said = mnf("train", recipe, *option)
        assert said.exit_code == 2 and "has no `train` section" in said.output.replace("\n", " ")


def test_a_launcher_that_refuses_is_a_mistake_in_the_request(recipe: Path) -> None:
    said = mnf("train", recipe, "--processes", 3)
    assert said.exit_code == 2 and "not divisible by 3 data-parallel copies" in said.output


def test_a_whole_run_that_was_stopped_in_training_is_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though `mnf train` calls the same a success: what comes after training was not done."""
    monkeypatch.setattr(final_stages, "run_training", lambda config: TrainingOutcome(config.output, 3, config.steps))
    loaded = Recipe(name="r", root=tmp_path, input=["sample"])
    monkeypatch.setattr(final_stages, "training_folder", lambda *_: tmp_path / "train-0")
    stage = type("Stage", (), {"dir": tmp_path})()
    results = dict.fromkeys(("pack", "vision_tokenizer", "text_tokenizer"), stage)
    with pytest.raises(KeyboardInterrupt):
        final_stages.train_stage(loaded, TrainConfig(), results)


def test_a_dry_run_asks_for_the_jobs_processes_and_hands_on_the_status(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def run(command: list[str]) -> Any:
        config = json.loads(Path(command[command.index("--config") + 1]).read_text())
        asked.append([command[2], command[-1], config["data"]["shards"]])
        return subprocess.CompletedProcess(command, 2)

    monkeypatch.setattr(start.subprocess, "run", run)
    shards = str(Path("data/shards").absolute())
    assert mnf("train", recipe, "--dry-run").exit_code == 2
    mnf("train", recipe, "--dry-run", "--processes", 6)
    mnf("train", recipe, "--dry-run", "--set", "train.slurm.nodes=3")
    mnf("train", recipe, "--dry-run", "--launcher", "slurm")
    assert asked == [["megatron_nextflow.dry_run", n, shards] for n in ("1", "6", "24", "8")]
    assert not Path("runs").exists()


def test_options_that_do_not_go_together(recipe: Path) -> None:
    for options, says in ((("--submit",), "--launcher slurm"), (("--launcher", "slurm", "--processes", 2), "gpus_per_node")):
        said = mnf("train", recipe, *options)
        assert said.exit_code == 2 and says in said.output


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """sbatch and squeue of a cluster that does what the file `state` says."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, body in {
        "sbatch": "echo 77",
        "squeue": f"cat {folder}/state",
        "scancel": f'echo "$@" >> {folder}/cancelled',
    }.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    (folder / "state").write_text("PENDING\n")
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def test_a_slurm_job_is_written_submitted_once_and_found(recipe: Path, cluster: Path) -> None:
    one = ("--launcher", "slurm", "--set", "train.slurm.gpus_per_node=1")
    output = Path("runs/tiny").absolute()
    written = mnf("train", recipe, *one)
    assert written.exit_code == 0 and "submit it with sbatch" in written.output and read_record(output) is None
    text = (output / "train.sbatch").read_text()
    assert "#SBATCH --job-name=tiny" in text and f"nextflow_orchestration.cli page {output}" in text
    submitted = mnf("train", recipe, *one, "--submit")
    assert submitted.exit_code == 0 and "Slurm job 77" in submitted.output
    found = read_record(output)
    assert found is not None and (found.status, found.job, found.launcher) == ("submitted", "77", "slurm")
    again = mnf("train", recipe, *one, "--submit")
    assert again.exit_code == 2 and "Slurm job 77 (PENDING) trains into" in again.output

    prepared = prepare(recipe, ["train.slurm.gpus_per_node=1"], None, None)
    job, was_there = start_or_find(prepared, None, on_slurm=True)
    assert isinstance(job, SlurmJob) and was_there and job.job == "77" and job.at_work()
    (cluster / "state").write_text("RUNNING\n")
    job.stop()
    assert (cluster / "cancelled").read_text() == "--batch --signal=USR1 77\n" and (output / "no-requeue").exists()
    write_record(output, found.model_copy(update={"status": "stopped"}))  # in the queue again, to go on
    job, was_there = start_or_find(prepared, None, on_slurm=True)
    assert was_there and not job.waiting
    (cluster / "state").write_text("")
    (cluster / "sbatch").write_text("#!/bin/sh\necho 78\n")
    job, was_there = start_or_find(prepared, None, on_slurm=True)
    assert isinstance(job, SlurmJob) and (job.job, was_there) == ("78", False)  # the first is gone
    job.state = "TIMEOUT"
    assert job.ended().status == "failed"
    write_record(output, found.model_copy(update={"status": "finished"}))
    assert job.ended().status == "finished"


def test_a_training_at_work_is_found_and_never_begun_twice(tmp_path: Path) -> None:
    prepared = Prepared("tiny", TrainConfig(output=tmp_path), tmp_path)
    launcher = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = psutil.Process(launcher.pid).create_time()
    record(tmp_path, pid=launcher.pid, started=started)
    job, found = start_or_find(prepared, 1, on_slurm=False)
    assert isinstance(job, LocalJob) and found and job.at_work() and job.record.pid == launcher.pid
    job.stop()
    assert launcher.wait(timeout=30) == -signal.SIGTERM
    assert not job.at_work() and job.ended().status == "failed" and job.ended().exit_code is None
    record(tmp_path, pid=launcher.pid, started=started, status="stopped", exit_code=0)
    assert job.ended().status == "stopped"


def test_a_launcher_that_refuses_says_why_to_whoever_started_it(tmp_path: Path) -> None:
    """With the launcher's own program: the process that was there before has ended, and its number is another's now."""
    record(tmp_path, pid=os.getpid(), started=12345.0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = TrainConfig(output=tmp_path, master_port=taken.getsockname()[1], data={"shards": "none"})
        with pytest.raises(TrainingRefused, match=r"^port \d+ of this machine is taken"):
            start_or_find(Prepared("tiny", config, tmp_path), 8, on_slurm=False)
    with pytest.raises(TrainingRefused, match="3 data-parallel copies"):
        start_or_find(Prepared("tiny", config, tmp_path), 3, on_slurm=False)


def test_a_watch_tells_what_is_new_and_when_nothing_is_heard(tmp_path: Path) -> None:
    def happened(message: str, when: float) -> None:
        with open(tmp_path / "events.jsonl", "a") as file:
            file.write(json.dumps({"time": when, "step": 3, "kind": "saved", "message": message}) + "\n")

    happened("of an earlier run", 5.0)
    Heartbeat(tmp_path, 9, 10).beat("stopped")
    now = time.time()
    watch = Watch(tmp_path, since=now + 60, seen=now)  # begun after that heartbeat
    assert watch.look().words == "starting" and watch.look().percent == 0
    watch = Watch(tmp_path, since=now - 60, seen=now, quiet_seconds=30)
    beat = Heartbeat(tmp_path, 3, 12)
    beat.beat("training", 3, 1.5, 2000.0)
    happened("saved it", now)
    look = watch.look()
    assert (look.step, look.steps, look.percent, look.news) == (3, 12, 25.0, ("saved it",))
    assert look.words == "training, loss 1.5000, 2,000 tokens/s"
    assert watch.look().news == ()
    old = json.loads((tmp_path / "heartbeat.json").read_text()) | {"time": now - 40}
    (tmp_path / "heartbeat.json").write_text(json.dumps(old))
    assert "no word from the training for 40 s; it was at step 3" in watch.look().news[0]
    assert watch.look().news == ()
    beat.beat("training", 4)
    assert watch.look().news == ("the training is heard again",)
