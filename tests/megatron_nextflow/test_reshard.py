"""A checkpoint of one layout of processes, gone on from on others: the same losses.

One training on TP 2 × PP 2 gives the checkpoint of step 3, saved beside the training, and the losses of the steps after it
that every other layout must give. Each launch takes some ten seconds, hence few.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_nextflow.checkpoint.verify import verify_folder
from megatron_nextflow.config.model import ParallelConfig
from megatron_nextflow.config.train import TrainConfig
from megatron_nextflow.launching.launcher import launch
from megatron_nextflow.runtime import training_folder
from megatron_nextflow.training import loop
from megatron_nextflow.watch.reporter import read_metrics

Config = Callable[..., TrainConfig]
SAVED, STEPS = 3, 5


@pytest.fixture(scope="module")
def saved(make_config: Config, training_data: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TP 2 × PP 2 with `latest` set back to step 3."""
    output = tmp_path_factory.mktemp("tp2-pp2")
    config = _config(make_config, training_data, output, tp=2, pp=2)
    assert launch(config, output, 4) == 0
    (training_folder.folder(output) / training_folder.LATEST).write_text(f"step-{SAVED:08d}\n", encoding="utf-8")
    return output


def _config(make_config: Config, training_data: Any, output: Path, **parallel: Any) -> TrainConfig:
    layout = ParallelConfig(**parallel)
    return make_config(training_data, output, parallel=layout, steps=STEPS, checkpoint_interval=SAVED, keep=9)


def _assert_goes_on_alike(output: Path, saved: Path) -> None:
    ours, expected = read_metrics(output), read_metrics(saved)
    assert [row["step"] for row in ours] == [row["step"] for row in expected] == list(range(1, STEPS + 1))
    for found, before in zip(ours[SAVED:], expected[SAVED:], strict=True):
        assert found["loss"] == pytest.approx(before["loss"], rel=1e-5)
        assert found["grad_norm"] == pytest.approx(before["grad_norm"], rel=1e-5)
        assert (found["lr"], found["consumed"], found["tokens"]) == (before["lr"], before["consumed"], before["tokens"])
    assert len({row["loss"] for row in expected}) == STEPS


def test_every_process_has_written_its_part(saved: Path) -> None:
    path = training_folder.folder(saved) / f"step-{SAVED:08d}"
    manifest = verify_folder(path)
    assert (manifest.state.parallel, manifest.state.processes) == ({"tp": 2, "pp": 2, "vpp": 1, "cp": 1}, 4)
    assert {f"megatron/__{rank}_0.distcp" for rank in range(4)} < manifest.files.keys()
    assert {f"generators/rank-{rank:05d}.safetensors" for rank in range(4)} < manifest.files.keys()


def test_four_processes_to_one(make_config: Config, training_data: Any, saved: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(saved, tmp_path / "run"))
    assert loop.train(_config(make_config, training_data, output), torch.device("cpu")) == STEPS
    _assert_goes_on_alike(output, saved)


@pytest.mark.parametrize(
    ("processes", "parallel"),
    [
        (2, {"pp": 2}),
        pytest.param(2, {}, marks=pytest.mark.slow),
        pytest.param(2, {"cp": 2}, marks=pytest.mark.slow),
        pytest.param(2, {"pp": 2, "vpp": 2}, marks=pytest.mark.slow),
        pytest.param(4, {"tp": 2, "sequence_parallel": True}, marks=pytest.mark.slow),
    ],
)
def test_four_processes_to_others(
    processes: int, parallel: dict[str, Any], make_config: Config, training_data: Any, saved: Path, tmp_path: Path
) -> None:
    output = Path(shutil.copytree(saved, tmp_path / "run"))
    assert launch(_config(make_config, training_data, output, **parallel), output, processes) == 0
    _assert_goes_on_alike(output, saved)


@pytest.mark.slow
def test_interleaved_stages_to_one_process(make_config: Config, training_data: Any, tmp_path: Path) -> None:
    """Two model chunks a process, each with its own names, saved and taken together again."""
    saved = tmp_path / "vpp"
    assert launch(_config(make_config, training_data, saved, pp=2, vpp=2), saved, 2) == 0
    output = Path(shutil.copytree(saved, tmp_path / "run"))
    (training_folder.folder(output) / training_folder.LATEST).write_text(f"step-{SAVED:08d}\n", encoding="utf-8")
    assert loop.train(_config(make_config, training_data, output), torch.device("cpu")) == STEPS
    _assert_goes_on_alike(output, saved)
