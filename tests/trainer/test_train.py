"""What the training program refuses, and how it says so."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_nextflow import loop
from megatron_nextflow.config import TrainConfig
from megatron_nextflow.inputs import InputError
from megatron_nextflow.training import DivergedError, Trainer

Config = Callable[..., TrainConfig]
CPU = torch.device("cpu")


@pytest.fixture
def data(training_data: Any, tmp_path: Path) -> Any:
    """A copy to damage."""
    copy = tmp_path / "data"
    shutil.copytree(training_data.shards.parent, copy)
    return type(training_data)(copy / "shards", copy / "vision")


def _flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def test_a_shard_with_one_flipped_byte_is_refused(data: Any, make_config: Config, tmp_path: Path) -> None:
    shard = sorted(data.shards.glob("*.tar"))[-1]
    _flip(shard, shard.stat().st_size // 2)
    with pytest.raises(InputError, match=rf"{shard.name} was changed after it was written.*mnf audit"):
        loop.train(make_config(data, tmp_path / "run"), CPU)
    assert not (tmp_path / "run").exists()


def test_another_tokenizer_than_the_shards_is_refused(data: Any, make_config: Config, tmp_path: Path) -> None:
    _flip(data.vision_tokenizer / "weights.safetensors", -1)
    with pytest.raises(InputError, match=r"was made with the vision tokenizer .*name the tokenizer that made the shards"):
        loop.train(make_config(data, tmp_path / "run"), CPU)
    config = make_config(data, tmp_path / "run")
    without = config.model_copy(update={"data": config.data.model_copy(update={"vision_tokenizer": None})})
    with pytest.raises(InputError, match=r"data\.vision_tokenizer is not set"):
        loop.train(without, CPU)


def test_a_model_shorter_than_the_packs_is_refused(data: Any, make_config: Config, tmp_path: Path) -> None:
    config = make_config(data, tmp_path / "run")
    short = config.model_copy(update={"model": config.model.model_copy(update={"max_length": 100})})
    with pytest.raises(InputError, match=r"packed for 192 slots, model\.max_length is 100"):
        loop.train(short, CPU)


def test_a_loss_that_is_no_number_stops_the_run_before_the_update(
    data: Any, make_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    build = Trainer.__init__

    def poisoned(self: Trainer, *args: Any) -> None:
        build(self, *args)
        seen.append(self.model.output_layer.weight)
        with torch.no_grad():
            self.model.decoder.final_layernorm.weight[0] = torch.nan
        self.optimizer.reload_model_params()

    monkeypatch.setattr(Trainer, "__init__", poisoned)
    with pytest.raises(DivergedError, match="not a finite number"):
        loop.train(make_config(data, tmp_path / "run"), CPU)
    assert seen[0].isfinite().all()
    assert not list((tmp_path / "run").glob("checkpoints/step-*"))


def test_the_program_says_why_in_one_line(data: Any, make_config: Config, tmp_path: Path) -> None:
    index = sorted(data.shards.glob("*.tar.idx"))[0]
    _flip(index, 3)
    config = tmp_path / "train.json"
    config.write_text(make_config(data, tmp_path / "run").model_dump_json(), encoding="utf-8")
    done = _run(config)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("train: ") and index.name in done.stderr


def test_a_configuration_that_cannot_work_never_loads_torch(tmp_path: Path) -> None:
    config = tmp_path / "train.json"
    config.write_text('{"parallel": {"tp": 3}, "stepz": 1}', encoding="utf-8")
    done = _run(config)
    assert done.returncode == 2
    assert "stepz" in done.stderr


def _run(config: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "megatron_nextflow.train", "--config", str(config)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)
