"""`mnf train` as a person starts it, on the shards of a real run: in the terminal, and as a Prefect flow that is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from megatron_nextflow.launching.launch_record import LaunchRecord, alive, read_record
from megatron_nextflow.runtime.training_folder import last_step
from megatron_nextflow.watch.reporter import read_metrics

pytestmark = pytest.mark.slow


def ask(home: Path, path: str, **body: Any) -> Any:
    """An answer of the Prefect server's API."""
    api = json.loads((home / "server.json").read_text())["api_url"]
    request = urllib.request.Request(
        f"{api}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def start(whole: Any, out: Path, *options: str) -> subprocess.Popen[str]:
    runner, _ = whole
    endless = ("--set", "train.steps=100000", "--set", "train.checkpoint_interval=100000")
    return runner.start("train", str(runner.recipe), "--out", str(out), *endless, *options)


def wait_for_steps(out: Path, steps: int, process: subprocess.Popen[str]) -> None:
    before, deadline = len(read_metrics(out)), time.monotonic() + 240
    while len(read_metrics(out)) < before + steps:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)


def record(out: Path) -> LaunchRecord:
    found = read_record(out)
    assert found is not None
    return found


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """A folder to train into; what is left at work there when a test fails is ended."""
    yield tmp_path
    left = read_record(tmp_path)
    if left is not None and alive(left):
        os.kill(left.pid, signal.SIGTERM)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_with_0(whole: Any, out: Path, number: signal.Signals) -> None:
    process = start(whole, out)
    wait_for_steps(out, 2, process)
    process.send_signal(number)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    step = last_step(out)
    assert step >= 2 and f"stopped early at step {step} of 100000, saved; the same command goes on from there" in said
    assert record(out).status == "stopped" and (out / "training.html").is_file()


def test_a_flow_that_is_killed_finds_its_training_again(whole: Any, prefect_home: Path, out: Path) -> None:
    """One training all along, of which the second flow sees the end."""
    first = start(whole, out, "--flow")
    wait_for_steps(out, 2, first)
    launcher = record(out)
    first.kill()
    said, _ = first.communicate()
    assert f"started: process {launcher.pid}" in said
    second = start(whole, out, "--flow")
    wait_for_steps(out, 2, second)  # the training goes on meanwhile
    watcher = out / "watcher.json"
    while json.loads(watcher.read_text())["pid"] == first.pid:
        assert second.poll() is None, second.communicate()[0]
        time.sleep(0.1)
    assert record(out).pid == launcher.pid and alive(launcher)
    at_work = [p.pid for p in psutil.process_iter(["cmdline"]) if f"{out}/.requested.json" in (p.info["cmdline"] or ())]
    assert at_work == [launcher.pid]

    second.send_signal(signal.SIGINT)
    said, _ = second.communicate()
    assert second.returncode == 0, said
    step = last_step(out)
    assert f"found at work: process {launcher.pid}" in said and f"stopped early at step {step} of 100000" in said
    assert not alive(launcher) and record(out).status == "stopped"
    assert [row["step"] for row in read_metrics(out)] == list(range(1, step + 1))

    name = str(whole[0].recipe)
    runs = {run["state_type"]: run for run in ask(prefect_home, "flow_runs/filter", flow_runs={"name": {"any_": [name]}})}
    trainings = {kind: run for kind, run in runs.items() if run["parameters"].get("out") == str(out)}
    assert set(trainings) == {"CRASHED", "CANCELLED"}
    artifacts = ask(prefect_home, "artifacts/filter", artifacts={"flow_run_id": {"any_": [trainings["CANCELLED"]["id"]]}})
    by_key = {artifact["key"]: artifact for artifact in artifacts}
    assert (out / "training.html").as_uri() in by_key["training-page"]["data"]
    assert f"step {step:,} of 100,000: stopped" in by_key["training-progress"]["description"]


def test_a_flow_sees_the_end_and_a_failure(whole: Any, out: Path) -> None:
    runner, _ = whole
    said = runner.finish("train", str(runner.recipe), "--out", str(out), "--flow")
    assert "step 4: done" in said and "finished" not in said.splitlines()[0]
    assert record(out).status == "finished"
    runner.finish("page", str(out), "--samples", "2", "--prompt", "A picture & more")
    page = (out / "training.html").read_text()
    assert page.count("A picture &amp; more") == page.count("data:image/jpeg") == 2
    process = runner.start("train", str(runner.recipe), "--out", str(out), "--flow", "--set", "train.data.seed=7")
    said, _ = process.communicate()
    assert process.returncode == 2 and "was trained with seed 0, this training has 7" in said, said
