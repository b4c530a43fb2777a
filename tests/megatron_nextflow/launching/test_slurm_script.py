"""The job script, run by bash with Slurm's commands played by small programs: what it starts, and how it comes back.

The played `srun` does as the real one with signals: it passes SIGUSR1 on and answers SIGTERM by killing.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from megatron_nextflow.config.slurm import SlurmConfig
from megatron_nextflow.config.train import TrainConfig
from megatron_nextflow.launching import slurm_queue
from megatron_nextflow.launching.launch_record import read_record
from megatron_nextflow.launching.slurm_script import script, write_script
from megatron_nextflow.runtime.training_folder import last_step
from megatron_nextflow.watch.reporter import read_metrics

Config = Callable[..., TrainConfig]
ONE = SlurmConfig(gpus_per_node=1, cpus_per_gpu=1)

_SRUN = """
import os, signal, subprocess, sys, time
words = sys.argv[1:]
options = []
while words[0].startswith("--"):
    options.append(words.pop(0))
print(*options, sep=chr(10), file=open(os.environ["PLAYED"] + "/srun-options", "w"))
tasks = []
def to_all(number):
    for task in tasks:
        task.send_signal(number)
signal.signal(signal.SIGTERM, lambda *_: to_all(signal.SIGKILL))
signal.signal(signal.SIGUSR1, lambda *_: to_all(signal.SIGUSR1))
nodes = int(options[0].partition("=")[2])
for node in range(nodes):
    tasks.append(subprocess.Popen(words, env={**os.environ, "SLURM_NODEID": str(node)}))
    # Here all nodes are one machine: the others come when the first has looked whether its port is free.
    record = words[words.index("--config") + 1].replace("train.json", "run.json")
    while node < nodes - 1 and not (os.path.exists(record) and '"running"' in open(record).read()):
        if tasks[0].poll() is not None:
            sys.exit(1)
        time.sleep(0.05)
codes = [task.wait() for task in tasks]
sys.exit(max(code if code >= 0 else 128 - code for code in codes))
"""
_PLAYED = {
    "srun": f'exec "{sys.executable}" "$PLAYED/srun.py" "$@"\n',
    "scontrol": 'if [ "$1" = show ]; then echo localhost; else echo "$@" >> "$PLAYED/requeued"; fi\n',
    "squeue": 'echo "$@" >> "$PLAYED/asked"; if [ -e "$PLAYED/state" ]; then cat "$PLAYED/state"; else echo RUNNING; fi\n',
    "sbatch": 'echo "$@" >> "$PLAYED/submitted"; echo "4242;cluster"\n',
    "scancel": 'echo "$@" >> "$PLAYED/cancelled"\n',
}


@dataclass(frozen=True)
class Played:
    """A folder of played commands, and what they were asked."""

    folder: Path

    def environment(self, job: int = 4242) -> dict[str, str]:
        played = {"PATH": f"{self.folder}:{os.environ['PATH']}", "PLAYED": str(self.folder)}
        return {**os.environ, **played, "SLURM_JOB_ID": str(job), "SLURM_JOB_NODELIST": "localhost"}

    def said(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def played(tmp_path: Path) -> Played:
    folder = tmp_path / "played"
    folder.mkdir()
    for name, body in _PLAYED.items():
        (folder / name).write_text("#!/bin/bash\n" + body)
        (folder / name).chmod(0o755)
    (folder / "srun.py").write_text(_SRUN)
    return Played(folder)


def _job() -> int:
    """A job number whose port is free."""
    for number in range(20000, 30000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", number)):
                return 70000 + number - 20000
    raise AssertionError


def _stopped_job(played: Played, config: TrainConfig, job: int) -> Path:
    """Runs the job script until its second step, and sends what Slurm sends when the time is nearly up. The script."""
    path = write_script(config, config.output.parent, "a job")
    process = subprocess.Popen(["bash", str(path)], env=played.environment(job), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while len(read_metrics(config.output)) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    return path


def test_a_job_whose_time_is_up_saves_and_returns_to_the_queue(
    played: Played, make_config: Config, training_data: Any, tmp_path: Path
) -> None:
    config = make_config(training_data, tmp_path / "the training's folder", steps=100_000, slurm=ONE)
    job = _job()
    _stopped_job(played, config, job)
    assert played.said("requeued") == [f"requeue {job}"]
    record, step = read_record(config.output), last_step(config.output)
    assert record is not None and (record.launcher, record.job, record.status) == ("slurm", str(job), "stopped")
    assert step == read_metrics(config.output)[-1]["step"] and step >= 2


@pytest.mark.slow
def test_the_next_run_of_a_job_on_two_nodes_goes_on(
    played: Played, make_config: Config, training_data: Any, tmp_path: Path
) -> None:
    output, job, two = tmp_path / "run", _job(), ONE.model_copy(update={"nodes": 2})
    path = _stopped_job(played, make_config(training_data, output, steps=100_000, slurm=two), job)
    record = read_record(output)
    assert record is not None and (record.processes, record.nodes, record.status) == (2, 2, "stopped")
    step, settings = last_step(output), json.loads((output / "train.json").read_text())
    (output / "train.json").write_text(json.dumps(settings | {"steps": step + 1}))
    again = {**played.environment(job), "SLURM_RESTART_COUNT": "1"}
    done = subprocess.run(["bash", str(path)], env=again, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert last_step(output) == step + 1 and f"going on from step {step}" in done.stdout
    assert len(played.said("requeued")) == 1  # of the first run; this one is finished


_LAUNCHER = """#!/bin/bash
# Plays the launcher: says how it ended, and ends so when told to, or at once.
echo "$0 $@" > "$PLAYED/launched"; env > "$PLAYED/environment"
end() { printf '{"pid":1,"status"\\n\\t: "%s"}' "$STATUS" > "$RUN/run.json"; exit "$CODE"; }
trap end USR1
echo ready > "$PLAYED/ready"
[ -n "${WAIT:-}" ] || end
while :; do sleep 0.05; done
"""


def _play(played: Played, config: TrainConfig, number: int = 0, after: tuple[str, ...] = (), **settings: str) -> int:
    """Runs the script with a played launcher; sends `number` once it is there. Returns the script's exit status."""
    launcher = played.folder / "a launcher"
    launcher.write_text(_LAUNCHER)
    launcher.chmod(0o755)
    config.output.mkdir(exist_ok=True)
    for name in ("ready", "requeued"):
        (played.folder / name).unlink(missing_ok=True)
    with_launcher = config.model_copy(update={"slurm": config.slurm.model_copy(update={"python": launcher})})
    environment = {**played.environment(), "RUN": str(config.output), **settings, **({"WAIT": "yes"} if number else {})}
    text = script(with_launcher, "job", after)
    process = subprocess.Popen(["bash", "-c", text], env=environment, stderr=subprocess.PIPE, text=True)
    while number and not (played.folder / "ready").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    if number:
        process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert not said or process.returncode, said
    return process.returncode


def test_what_ends_a_job_and_what_returns_it(played: Played, tmp_path: Path) -> None:
    config = TrainConfig(output=tmp_path / "run")
    requeued = ["requeue 4242"]
    assert _play(played, config, signal.SIGTERM, STATUS="stopped", CODE="0") == 0
    assert played.said("requeued") == requeued
    assert _play(played, config, STATUS="stopped", CODE="143") == 0  # pre-empted before training began
    assert played.said("requeued") == requeued
    assert _play(played, config, STATUS="finished", CODE="0", after=("touch", str(tmp_path / "after it"))) == 0
    assert not played.said("requeued") and (tmp_path / "after it").exists()
    assert _play(played, config, STATUS="failed", CODE="3", after=("false",)) == 3
    assert not played.said("requeued")

    never = config.model_copy(update={"slurm": SlurmConfig(requeue=False)})
    assert _play(played, never, signal.SIGUSR1, STATUS="stopped", CODE="0") == 0
    assert not played.said("requeued")
    (played.folder / "state").write_text("COMPLETING\n")  # what squeue says of a job that was cancelled
    assert _play(played, config, signal.SIGTERM, STATUS="stopped", CODE="0") == 0
    assert not played.said("requeued")


def test_a_job_stopped_for_good_stays_out_of_the_queue(played: Played, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("PATH", f"{played.folder}:{os.environ['PATH']}")
    monkeypatch.setenv("PLAYED", str(played.folder))
    monkeypatch.setenv("STATUS", "stopped")
    slurm_queue.stop("4242", tmp_path)
    assert played.said("cancelled") == ["--batch --signal=USR1 4242"]
    config, marker = TrainConfig(output=tmp_path), tmp_path / slurm_queue.NO_REQUEUE
    after = ("touch", str(marker))  # the request, which came while the job ran
    assert _play(played, config, STATUS="stopped", CODE="0", after=after) == 0
    assert not played.said("requeued")
    assert _play(played, config, STATUS="stopped", CODE="0") == 0  # submitted again, it is as any other
    assert played.said("requeued") and not marker.exists()


HOSTILE = "it's $(touch pwned) `touch pwned` \"; touch pwned; # %j \\"


def test_no_setting_reaches_the_shell(played: Played, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "site's.sh").write_text("export FROM_SITE=yes\n")
    slurm = SlurmConfig(
        setup=tmp_path / "site's.sh", container=HOSTILE, container_mounts=("/a:/a", "/b:/b"), mem="0", exclusive=True,
        environment={"MINE": HOSTILE}, partition="a,b", constraint="h100&ib", options=("--mail-type=END",), qos="q",
    )  # fmt: skip
    config = TrainConfig(output=tmp_path / HOSTILE.replace("/", ""), slurm=slurm)
    assert _play(played, config, STATUS="finished", CODE="0") == 0
    assert not list(tmp_path.rglob("pwned"))
    assert f"MINE={HOSTILE}" in played.said("environment") and "FROM_SITE=yes" in played.said("environment")
    assert {f"--container-image={HOSTILE}", "--container-mounts=/a:/a,/b:/b"} <= set(played.said("srun-options"))
    launched = played.said("launched")[0]
    assert f"--config {config.output}/train.json --processes 8 --nodes 1 --rendezvous localhost:24242" in launched
    head = script(config, "the name; touch pwned").split("set -euo")[0]
    assert all(line.startswith("#SBATCH --") for line in head.splitlines()[1:] if line)
    assert "--job-name=the-name--touch-pwned\n" in head and "--constraint=h100&ib\n" in head and "%%j" in head


@pytest.mark.parametrize(
    "wrong",
    [
        {"partition": "a b"}, {"account": "x;y"}, {"qos": "$(id)"}, {"reservation": "a\nb"}, {"time": "soon"},
        {"mem": "8 G"}, {"modules": ("cuda; rm",)}, {"environment": {"A-B": "x"}}, {"environment": {"A": "x\ny"}},
        {"options": ("--wrap=a b",)}, {"options": ("-p x",)}, {"container": "a\nb"}, {"container_mounts": ("/a b:/c",)},
        {"signal_seconds": 0},
    ],
)  # fmt: skip
def test_what_could_break_out_of_an_option_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        SlurmConfig(**wrong)


def test_a_script_for_processes_that_do_not_fit_is_not_written(
    make_config: Config, training_data: Any, tmp_path: Path
) -> None:
    three = SlurmConfig(nodes=3, gpus_per_node=1)
    with pytest.raises(ValueError, match="3 data-parallel copies"):
        write_script(make_config(training_data, tmp_path / "run", slurm=three), tmp_path, "job")
    assert not (tmp_path / "run").exists()


def test_the_queue(played: Played, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{played.folder}:/usr/bin:/bin")
    monkeypatch.setenv("PLAYED", str(played.folder))
    assert slurm_queue.submit(tmp_path / "a script") == "4242"
    assert played.said("submitted") == [f"--parsable {tmp_path}/a script"]
    assert slurm_queue.state("4242") == "RUNNING"
    (played.folder / "state").write_text("PENDING\n")
    slurm_queue.stop("4242", tmp_path)
    assert played.said("cancelled") == ["4242"] and not (tmp_path / slurm_queue.NO_REQUEUE).exists()
    (played.folder / "state").write_text("")  # it ended, and this cluster keeps no accounts
    assert slurm_queue.state("4242") is None
    (played.folder / "sacct").write_text("#!/bin/bash\necho 'CANCELLED by 1000'\n")
    (played.folder / "sacct").chmod(0o755)
    assert slurm_queue.state("4242") == "CANCELLED"
    (played.folder / "sbatch").write_text("#!/bin/bash\necho 'sbatch: error: invalid partition' >&2; exit 1\n")
    with pytest.raises(slurm_queue.SlurmError, match="sbatch: error: invalid partition"):
        slurm_queue.submit(tmp_path)
    (played.folder / "sbatch").unlink()
    with pytest.raises(slurm_queue.SlurmError, match="sbatch was not found"):
        slurm_queue.submit(tmp_path)
