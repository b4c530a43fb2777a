"""What a training leaves for its watchers: rows, events, heartbeat, TensorBoard, Weights & Biases."""

from __future__ import annotations

import json
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from megatron_nextflow.config.loss import LossConfig
from megatron_nextflow.config.train import TrainConfig, WandbConfig
from megatron_nextflow.loss_terms.z_loss import ZLoss
from megatron_nextflow.training import loop
from megatron_nextflow.watch import trackers
from megatron_nextflow.watch.heartbeat import Heartbeat, read_heartbeat
from megatron_nextflow.watch.reporter import Reporter, read_events, read_metrics

Config = Callable[..., TrainConfig]
CPU = torch.device("cpu")
KEY = "5ecret" * 6 + "0123"


@pytest.fixture(scope="module")
def nobody() -> Iterator[socket.socket]:
    """A proxy that nobody should ask for anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


@pytest.fixture(scope="module")
def run(make_config: Config, training_data: Any, tmp_path_factory: pytest.TempPathFactory, nobody: socket.socket) -> Path:
    """Two steps, then resumed for a third, with every tracker and a device of 0.5 TFLOP/s."""
    output = tmp_path_factory.mktemp("metrics") / "run"
    wandb = WandbConfig(project="a-project", mode="offline")
    with pytest.MonkeyPatch.context() as patch:
        proxy = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "WANDB_BASE_URL"):
            patch.setenv(name, proxy)
        patch.setenv("WANDB_API_KEY", KEY)
        for steps in (2, 3):
            loss = LossConfig(terms={"z_loss": ZLoss(weight=1e-4)})
            loop.train(make_config(training_data, output, steps=steps, wandb=wandb, peak_tflops=0.5, loss=loss), CPU)
    return output


def test_utilisation_is_work_over_time_over_the_peak(run: Path) -> None:
    """At least 6 FLOPs a token for each of the 4 layers' 30,720 weights: those for QKV, projection and three of the MLP."""
    for row in read_metrics(run):
        assert row["mfu"] == pytest.approx(row["tflops"] / 0.5)
        assert row["tokens_per_second"] == pytest.approx(row["tokens"] / row["seconds"])
        matrices = 4 * (64 * (64 + 2 * 32) + 64 * 64 + 3 * 64 * 96)
        work = row["tflops"] * 1e12 * row["seconds"]
        assert 6 * matrices * row["tokens"] < work < 12 * matrices * row["tokens"]
        assert row["pairs"] > row["tokens"]


def test_events_and_heartbeat_tell_the_run(run: Path) -> None:
    events = read_events(run)
    assert [(event["kind"], event["step"]) for event in events] == [
        ("saved", 2), ("finished", 2), ("resumed", 2), ("saved", 3), ("finished", 3)
    ]  # fmt: skip
    assert all(event["message"] and event["time"] > 1.7e9 for event in events)
    last = read_metrics(run)[-1]
    heartbeat = read_heartbeat(run)
    assert heartbeat is not None and heartbeat.pop("time") >= events[-2]["time"]
    speed = heartbeat.pop("tokens_per_second")
    assert speed == last["tokens_per_second"]
    assert heartbeat == {"step": 3, "steps": 3, "loss": last["loss"], "state": "finished"}


def _curves(output: Path) -> dict[str, list[tuple[int, float]]]:
    found = EventAccumulator(str(output / "tensorboard"))
    found.Reload()
    return {name: [(e.step, e.value) for e in found.Scalars(name)] for name in found.Tags()["scalars"]}


def test_tensorboard_has_every_curve(run: Path) -> None:
    rows, curves = read_metrics(run), _curves(run)
    for name in ("loss", "grad_norm", "lr", "tokens_per_second", "tflops", "mfu"):
        assert curves[name] == [(row["step"], pytest.approx(row[name])) for row in rows]
    for kind in ("text", "image/1"):
        assert curves[f"loss/{kind}"] == [(row["step"], pytest.approx(row["by_kind"][kind])) for row in rows]
    for term in ("text", "image", "z_loss"):
        assert curves[f"term/{term}"] == [(row["step"], pytest.approx(row["terms"][term])) for row in rows]
    assert [sum(row["terms"].values()) for row in rows] == [pytest.approx(row["loss"]) for row in rows]


def _records(output: Path) -> list[tuple[str, dict[str, Any]]]:
    """(run id, values) of each logged step in the offline files, oldest first."""
    found = []
    for file in sorted((output / "wandb").glob("offline-run-*/*.wandb")):
        deadline = time.monotonic() + 60
        while not (read := _read(file)) or not read[-1].HasField("exit"):  # its process writes on after the run is finished
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for record in read:
            if record.HasField("history"):
                values = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
                found.append((file.stem, values))
    return found


def _read(file: Path) -> list[Any]:
    from wandb.proto.wandb_internal_pb2 import Record
    from wandb.sdk.internal.datastore import DataStore

    store, found = DataStore(), []
    store.open_for_scan(str(file))
    while (data := store.scan_data()) is not None:
        found.append(Record.FromString(data))
    return found


def test_weights_and_biases_goes_on_in_one_run(run: Path) -> None:
    rows, records = read_metrics(run), _records(run)
    assert len({name for name, _ in records}) == 1
    for row, (_, values) in zip(rows, records, strict=True):
        assert values["step"] == row["step"]
        assert values["loss"] == pytest.approx(row["loss"])
        assert values["loss/image/1"] == pytest.approx(row["by_kind"]["image/1"])


def test_weights_and_biases_is_told_nothing_of_the_machine(run: Path, nobody: socket.socket, training_data: Any) -> None:
    content = b"".join(p.read_bytes() for p in (run / "wandb").rglob("*") if p.is_file() and p.suffix in (".wandb", ".yaml"))
    assert b"a-project" in content and b"hidden_size" in content
    for private in (KEY, socket.gethostname() + '"', str(training_data.shards), sys.executable):
        assert private.encode() not in content
    with pytest.raises(BlockingIOError):
        nobody.accept()


def test_steps_that_come_again_are_forgotten(
    make_config: Config, training_data: Any, tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where TensorBoard's files of one second would be read in the wrong order: its count of them goes from 9 to 10."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(9))
    reporter = Reporter(make_config(training_data, tmp_path), 0)
    row = read_metrics(run)[0]
    for step in (1, 2, 3):
        reporter.step({**row, "step": step, "loss": float(step)})
    reporter.rewind(1)
    reporter.step({**row, "step": 2, "loss": 7.0})
    reporter.close()
    assert [(r["step"], r["loss"]) for r in read_metrics(tmp_path)] == [(1, 1.0), (2, 7.0)]
    assert _curves(tmp_path)["loss"] == [(1, 1.0), (2, 7.0)]


def test_rows_that_a_full_disk_does_not_take_wait_for_it(
    make_config: Config, training_data: Any, tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No file of this process may grow beyond a row and a half, as on a full disk."""
    row = read_metrics(run)[0]
    reporter = Reporter(make_config(training_data, tmp_path, tensorboard=False), 0)
    reporter.step({**row, "step": 1})
    size, before = (tmp_path / "metrics.jsonl").stat().st_size, resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + size // 2, before[1]))
    try:
        for step in (2, 3):
            reporter.step({**row, "step": step})
            reporter.event("saved", "x" * size, step)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [r["step"] for r in read_metrics(tmp_path)] == [1]
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("metrics.jsonl: File too large; its rows wait in memory") == 1 and said.count("events.jsonl: ") == 1
    reporter.step({**row, "step": 4})
    reporter.close()
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2, 3, 4]
    assert [e["step"] for e in read_events(tmp_path)] == [2, 3]


@pytest.mark.parametrize("tail", [b"", b'{"step": 3, "lo', b"\0\0\0", b"7\n"])
def test_what_a_kill_left_behind_is_cut_off(
    tail: bytes, make_config: Config, training_data: Any, tmp_path: Path, run: Path
) -> None:
    rows = read_metrics(run)
    (tmp_path / "metrics.jsonl").write_bytes((run / "metrics.jsonl").read_bytes() + tail)
    reporter = Reporter(make_config(training_data, tmp_path, tensorboard=False), 2)
    reporter.step({**rows[2], "loss": 7.0})
    reporter.close()
    assert read_metrics(tmp_path) == [*rows[:2], {**rows[2], "loss": 7.0}]


def test_a_tracker_that_cannot_end_loses_no_run(
    make_config: Config, training_data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trackers.TensorBoard, "close", fail)
    assert loop.train(make_config(training_data, tmp_path, steps=1), CPU) == 1
    last = read_events(tmp_path)[-1]
    assert (last["kind"], last["step"]) == ("tracker", 1) and "No space left" in last["message"]


def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on(
    make_config: Config, training_data: Any, tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object, step: int, values: dict[str, float]) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(trackers.TensorBoard, "scalars", fail)
    reporter = Reporter(make_config(training_data, tmp_path), 0)
    row = read_metrics(run)[0]
    for step in (1, 2):
        reporter.step({**row, "step": step})
    reporter.close()
    assert len(read_metrics(tmp_path)) == 2
    (event,) = read_events(tmp_path)
    assert event["kind"] == "tracker" and "TensorBoard" in event["message"] and "no route to host" in event["message"]


def test_a_tracker_that_cannot_begin_stops_the_run_before_its_first_step(
    make_config: Config, training_data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    def refuse(**settings: Any) -> None:
        raise wandb.errors.UsageError("no API key configured")

    monkeypatch.setattr(wandb, "init", refuse)
    config = make_config(training_data, tmp_path, wandb=WandbConfig(), tensorboard=False)
    with pytest.raises(ValueError, match=r"Weights & Biases: no API key configured.*offline"):
        loop.train(config, CPU)
    assert read_metrics(tmp_path) == [] and not (tmp_path / "tensorboard").exists()


def test_a_heartbeat_keeps_what_is_not_said_and_never_fails(tmp_path: Path) -> None:
    heart = Heartbeat(tmp_path, 4, 9)
    heart.beat("training", 5, 2.5, 100.0)
    heart.beat("saving")
    found = read_heartbeat(tmp_path)
    assert found is not None
    assert {k: found[k] for k in ("step", "steps", "loss", "state")} == {
        "step": 5,
        "steps": 9,
        "loss": 2.5,
        "state": "saving",
    }
    heart.beat("training", 6, float("nan"), 100.0)
    assert json.loads((tmp_path / "heartbeat.json").read_text(encoding="utf-8"))["loss"] is None
    Heartbeat(tmp_path / "gone", 0, 1).beat("starting")
    assert read_heartbeat(tmp_path / "gone") is None


def test_reading_needs_no_torch() -> None:
    program = (
        "import sys, megatron_nextflow.watch.reporter, megatron_nextflow.watch.rank_log, megatron_nextflow.watch.health; "
    )
    program += "sys.exit(sum(m in sys.modules for m in ('torch', 'megatron', 'tensorboard', 'wandb')))"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
