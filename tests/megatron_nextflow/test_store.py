"""A training on a real S3 server, through a proxy that does what networks do: the losses of a disk, and of one never
interrupted."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fault_proxy import FaultProxy
from nextflow_data.storage.config import S3Config, StorageConfig
from nextflow_data.storage.errors import StoreError, StoreRefused
from nextflow_data.storage.files import put
from nextflow_data.storage.store_path import StorePath
from s3_server import S3Server

from megatron_nextflow.checkpoint.copies import copies
from megatron_nextflow.config.train import CheckpointConfig, TrainConfig
from megatron_nextflow.feeding import stored
from megatron_nextflow.feeding.inputs import InputError, open_inputs
from megatron_nextflow.runtime import training_folder
from megatron_nextflow.training import loop
from megatron_nextflow.training.agreed_batch import UnreadableError
from megatron_nextflow.watch.reporter import read_events, read_metrics

pytestmark = pytest.mark.slow
Config = Callable[..., TrainConfig]
CPU = torch.device("cpu")
SAME = ("step", "loss", "grad_norm", "lr", "by_kind", "consumed")
RATES = {"error_500": 0.04, "slow_down": 0.04, "cut": 0.04, "slow": 0.04, "lost": 0.04, "refused": 0.02}


@pytest.fixture
def at_store(training_data: Any, s3_root: StorePath, make_config: Config, tmp_path: Path) -> Callable[..., TrainConfig]:
    """The training with its shards in the store."""
    for path in training_data.shards.rglob("*"):
        if path.is_file():
            put(s3_root / "shards" / path.relative_to(training_data.shards), path.read_bytes())

    def make(output: Path, endpoint: str | None = None, **settings: Any) -> TrainConfig:
        storage = StorageConfig(
            s3=S3Config(endpoint=endpoint or s3_root.config.s3.endpoint, path_style=True), cache=tmp_path / "cache"
        )
        config = make_config(training_data, output, storage=storage, **settings)
        return config.model_copy(
            update={"data": config.data.model_copy(update={"shards": f"{s3_root}/shards", "verify": False})}
        )

    return make


def _rows(output: Path) -> list[dict[str, Any]]:
    return [{name: row[name] for name in SAME} for row in read_metrics(output)]


def test_the_losses_are_those_of_a_disk_whatever_the_network_does(
    at_store: Config, make_config: Config, training_data: Any, fault_proxy: FaultProxy, tmp_path: Path
) -> None:
    """More than an epoch, with and without ranges on this machine's disk."""
    assert loop.train(make_config(training_data, tmp_path / "disk", steps=8), CPU) == 8
    fault_proxy.rates = RATES
    fault_proxy.order("cut", "GET", ".tar", times=2)
    assert loop.train(at_store(tmp_path / "store", fault_proxy.endpoint, steps=8), CPU) == 8
    assert fault_proxy.done["cut"] >= 2
    assert _rows(tmp_path / "store") == _rows(tmp_path / "disk")
    fault_proxy.requests.clear()
    assert loop.train(at_store(tmp_path / "again", fault_proxy.endpoint, steps=8), CPU) == 8
    assert _rows(tmp_path / "again") == _rows(tmp_path / "disk")
    assert not [path for _, path in fault_proxy.requests if ".tar" in path]


def test_starting_asks_for_the_same_few_things_whatever_the_number_of_shards(
    at_store: Config, fault_proxy: FaultProxy, tmp_path: Path
) -> None:
    packs = open_inputs(at_store(tmp_path / "run", fault_proxy.endpoint)).packs
    assert {path.partition("?")[0].rpartition("/")[2] for _, path in fault_proxy.requests} == {"manifest.json"}
    assert 0 < len(fault_proxy.requests) <= 2 and len(packs) > 0


def test_killed_and_gone_on_elsewhere_gives_the_losses_of_one_never_interrupted(
    at_store: Config, make_config: Config, training_data: Any, s3_root: StorePath, fault_proxy: FaultProxy, tmp_path: Path
) -> None:
    copy_to = CheckpointConfig(copy_to=f"{s3_root}/copy")
    fault_proxy.rates = RATES
    config = at_store(tmp_path / "killed", fault_proxy.endpoint, checkpoint=copy_to, steps=100_000, checkpoint_interval=2)
    file = tmp_path / "train.json"
    file.write_text(config.model_dump_json(), encoding="utf-8")
    command = [sys.executable, "-m", "megatron_nextflow.train", "--config", str(file)]
    environment = {**os.environ, "TORCH_COMPILE_DISABLE": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not any(event["kind"] == "copied" for event in read_events(config.output)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    process.kill()
    process.wait()
    newest = copies(s3_root / "copy")[-1]
    steps = newest.step + 3
    assert loop.train(make_config(training_data, tmp_path / "never", steps=steps), CPU) == steps

    fresh = config.model_copy(update={"output": tmp_path / "fresh", "steps": steps})
    assert loop.train(fresh, CPU) == steps
    assert _rows(tmp_path / "fresh") == _rows(tmp_path / "never")[newest.step :]
    assert copies(s3_root / "copy")[-1].step == steps and len(copies(s3_root / "copy")) <= 2
    (fetched,) = (event for event in read_events(fresh.output) if event["kind"] == "storage")
    assert f"was fetched from {newest.path}" in fetched["message"]


def test_credentials_that_end_in_mid_run_stop_it_with_everything_saved(
    at_store: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, asked = stored.read_range, [0]
    said = "the credentials in use have expired; renew them and run again: all that was committed is kept"

    def expires(path: Any, offset: int, length: int) -> bytes:
        asked[0] += path.name.endswith(".tar")
        if asked[0] > 8:
            raise StoreError(f"{path}: {said}")
        return read(path, offset, length)

    monkeypatch.setattr(stored, "read_range", expires)
    config = at_store(tmp_path / "run", steps=50)
    config = config.model_copy(update={"data": config.data.model_copy(update={"read_ahead": 0})})
    with pytest.raises(UnreadableError, match=f"rank 0 cannot read s3://.*{said}"):
        loop.train(config, CPU)
    before = read_metrics(config.output)
    assert before and training_folder.last_step(config.output) == len(before)
    monkeypatch.undo()


def test_what_cannot_be_read_or_written_is_refused_before_the_first_step(
    at_store: Config, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = at_store(tmp_path / "run")
    missing = config.model_copy(update={"data": config.data.model_copy(update={"shards": "s3://no-such-bucket/shards"})})
    with pytest.raises(StoreRefused, match="there is no bucket no-such-bucket"):
        loop.train(missing, CPU)
    with pytest.raises(StoreRefused, match="there is no bucket no-such-bucket"):
        loop.train(config.model_copy(update={"checkpoint": CheckpointConfig(copy_to="s3://no-such-bucket/copy")}), CPU)
    for name, value in s3_server.environment("part").items():
        monkeypatch.setenv(name, value)
    other = config.model_copy(update={"storage": config.storage.model_copy(update={"read_ahead": 1 << 20})})
    s3 = other.storage.s3.model_copy(update={"concurrency": 7})  # other settings have a client of their own
    with pytest.raises(InputError, match="not allowed: the credentials in use need s3:GetObject"):
        loop.train(other.model_copy(update={"storage": other.storage.model_copy(update={"s3": s3})}), CPU)
    assert not (tmp_path / "run").exists()
