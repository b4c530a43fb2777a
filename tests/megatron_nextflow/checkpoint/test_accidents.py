"""A disk that is full, a process that is killed: the checkpoint before is in force, and the run goes on from it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from megatron_nextflow.checkpoint.save import SaveError
from megatron_nextflow.config.model import ParallelConfig
from megatron_nextflow.config.train import TrainConfig
from megatron_nextflow.launching.launcher import launch
from megatron_nextflow.runtime import training_folder
from megatron_nextflow.runtime.training_folder import folder_name, steps
from megatron_nextflow.training import loop

Config = Callable[..., TrainConfig]
CPU = torch.device("cpu")


def _names(output: Path) -> list[str]:
    return sorted(path.name for path in training_folder.folder(output).iterdir())


def _path(output: Path, step: int) -> Path:
    return training_folder.folder(output) / folder_name(step)


def test_a_full_disk_ends_the_run_and_leaves_the_checkpoint_before(
    mounted_disk: Callable[[str], Path], make_config: Config, training_data: Any
) -> None:
    """On 8 MiB; a checkpoint here has 2.6."""
    small_disk = mounted_disk("8m")
    config = make_config(training_data, small_disk, steps=2, tensorboard=False)
    assert loop.train(config, CPU) == 2
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(4 << 20))
    more = config.model_copy(update={"steps": 4})
    pattern = (
        r"step-00000004\.writing.*: No space left on device \(.* of 0\.00781 GiB free there\); step-00000002 is in force"
    )
    with pytest.raises(SaveError, match=pattern):
        loop.train(more, CPU)
    assert _names(small_disk) == ["latest", "step-00000002"]
    ballast.unlink()
    assert loop.train(more, CPU) == 4
    assert training_folder.latest(small_disk) == _path(small_disk, 4)


_ONLY_ONE = """
import os, resource
if os.environ.get("RANK") == "1":
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
"""


@pytest.mark.slow
def test_what_one_process_cannot_write_ends_all_of_them(
    make_config: Config, training_data: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Files of the second of two processes may not grow beyond 1 MiB, and its part of the checkpoint has more."""
    output = tmp_path / "run"
    config = make_config(training_data, output, steps=1, parallel=ParallelConfig(tp=2))
    assert launch(config, tmp_path, 2) == 0
    (tmp_path / "sitecustomize.py").write_text(_ONLY_ONE, encoding="utf-8")
    more = config.model_copy(update={"steps": 1000, "checkpoint_interval": 2})
    assert launch(more, tmp_path, 2, {"PYTHONPATH": str(tmp_path)}) == 1
    said = capfd.readouterr().err
    assert "step-00000002 failed: " in said and "megatron/__1_0.distcp: File too large" in said
    assert "step-00000001 is in force" in said and _names(output) == ["latest", "step-00000001"]


_HELD = """
import sys, threading
from pathlib import Path
from megatron_nextflow import train
from megatron_nextflow.runtime import device
device.setup("cpu")
from megatron_nextflow.checkpoint import staging
write = staging.HashingFile.write
def held(file, data):
    if ".step-00000004.writing" in str(file.path) and file.size > 100_000:
        Path(sys.argv[2]).touch()
        threading.Event().wait()
    return write(file, data)
staging.HashingFile.write = held
sys.exit(train.main(["--config", sys.argv[1]]))
"""


def test_kill_9_while_saving_leaves_the_checkpoint_before_and_nobody(
    make_config: Config, training_data: Any, tmp_path: Path
) -> None:
    """Killed with half of step 4's file written and training already beyond it."""
    output, marker = tmp_path / "run", tmp_path / "writing"
    config = make_config(training_data, output, steps=1000, checkpoint_interval=2)
    (tmp_path / "config.json").write_text(config.model_dump_json(), encoding="utf-8")
    command = [sys.executable, "-c", _HELD, str(tmp_path / "config.json"), str(marker)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not (marker.exists() and "\n" in _metrics(output) and json.loads(_metrics(output).splitlines()[-1])["step"] >= 5):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not psutil.wait_procs(family, timeout=20)[1]
    assert training_folder.latest(output) == _path(output, 2)
    left = training_folder.folder(output) / ".step-00000004.writing"
    assert (left / "megatron" / "__0_0.distcp").stat().st_size > 100_000 and steps(output) == [2]

    assert loop.train(config.model_copy(update={"steps": 5}), CPU) == 5
    assert _names(output) == ["latest", "step-00000004", "step-00000005"]


def _metrics(output: Path) -> str:
    file = output / "metrics.jsonl"
    return file.read_text(encoding="utf-8").rpartition("\n")[0] + "\n" if file.is_file() else ""
