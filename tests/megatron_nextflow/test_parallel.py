"""Real runs of several processes over gloo: kill -9 and going on exactly, a signal that stops and saves."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from megatron_nextflow.checkpoint.format import read_manifest
from megatron_nextflow.config.model import ParallelConfig
from megatron_nextflow.config.train import TrainConfig
from megatron_nextflow.launching.launcher import launch
from megatron_nextflow.runtime import training_folder
from megatron_nextflow.watch.reporter import read_metrics

Config = Callable[..., TrainConfig]


def _rows(output: Path) -> list[dict[str, Any]]:
    rows = read_metrics(output)
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return rows


_PROGRAM = """
import sys
from pathlib import Path
from megatron_nextflow.config.train import TrainConfig
from megatron_nextflow.launching.launcher import launch
config = TrainConfig.model_validate_json(Path(sys.argv[1]).read_bytes())
sys.exit(launch(config, Path.cwd(), int(sys.argv[2])))
"""


def _start(config: TrainConfig, processes: int, folder: Path) -> subprocess.Popen[bytes]:
    file = folder / "config.json"
    file.write_text(config.model_dump_json(), encoding="utf-8")
    return subprocess.Popen([sys.executable, "-c", _PROGRAM, str(file), str(processes)], stderr=subprocess.DEVNULL)


def _wait_for_step(output: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 240
    while not any(row["step"] >= step for row in read_metrics(output)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


def _members(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """torchrun, then the two training processes."""
    (torchrun,) = psutil.Process(process.pid).children()
    workers = [p for p in torchrun.children() if "megatron_nextflow.train" in p.cmdline()]
    assert len(workers) == 2
    return [torchrun, *workers]


def _gone(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=20)[1]


def _go_back(output: Path, step: int) -> None:
    """As if the kill had come before any later checkpoint."""
    (training_folder.folder(output) / training_folder.LATEST).write_text(f"step-{step:08d}\n", encoding="utf-8")


def test_killed_then_resumed_gives_the_same_losses(make_config: Config, training_data: Any, tmp_path: Path) -> None:
    """To the last bit; the killed run's own later steps are what is expected. Other layouts: test_reshard."""
    output = tmp_path / "run"
    config = make_config(
        training_data, output, parallel=ParallelConfig(tp=2), steps=100_000, checkpoint_interval=2, keep=1000
    )
    process = _start(config, 2, tmp_path)
    _wait_for_step(output, 5, process)
    family = psutil.Process(process.pid).children(recursive=True)
    torchrun, first, orphan = _members(process)
    for one in (psutil.Process(process.pid), torchrun, first):
        one.kill()
    process.wait()
    assert _gone([*family, orphan])  # the one that was not killed leaves by itself
    assert training_folder.latest(output) is not None
    expected = read_metrics(output)
    step = (len(expected) - 2) // 2 * 2
    (training_folder.folder(output) / f".step-{step:08d}.writing").mkdir(exist_ok=True)  # what a kill while saving leaves

    _go_back(output, step)
    assert launch(config.model_copy(update={"steps": step + 2}), tmp_path, 2) == 0
    rows = _rows(output)
    assert len(rows) == step + 2
    for found, before in zip(rows, expected, strict=False):
        for name in ("loss", "grad_norm", "lr", "by_kind", "consumed"):
            assert found[name] == before[name], f"step {found['step']}: {name}"


def test_a_stop_signal_saves_and_leaves_nobody(make_config: Config, training_data: Any, tmp_path: Path) -> None:
    output = tmp_path / "run"
    process = _start(make_config(training_data, output, steps=100_000), 1, tmp_path)
    _wait_for_step(output, 2, process)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 0
    assert _gone(family)
    saved = training_folder.latest(output)
    assert saved is not None
    assert read_manifest(saved).state.step == _rows(output)[-1]["step"]
