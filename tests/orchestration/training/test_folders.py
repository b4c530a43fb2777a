"""The folder of a training: the same for the same shards and settings, however they are named, and for one begun before."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from nextflow_orchestration.training.folders import training_folder
from nextflow_tokenize.shards.manifest import ShardManifest, from_bytes
from nextflow_tokenize.shards.records import canonical

from megatron_nextflow.checkpoint.format import CheckpointManifest, CheckpointState
from megatron_nextflow.config.model import ModelConfig, ParallelConfig
from megatron_nextflow.config.train import FeedConfig, LossConfig, TrainConfig
from megatron_nextflow.launching.launcher import with_absolute_paths

FIXTURE = Path(__file__).parents[2] / "tokenize" / "fixtures" / "shards"


def manifest_of(shards: Path) -> ShardManifest:
    return from_bytes((shards / "manifest.json").read_bytes())


def begun(folder: Path, config: TrainConfig, shards: str, step: int = 10) -> Path:
    """A training with a checkpoint, as its launcher and its trainer leave them."""
    state = CheckpointState(
        step=step, consumed=8, seed=0, shards=shards, text_tokenizer="t", vision_tokenizer="v", text_vocabulary=1,
        codebook_size=1, codebook_dim=1, model=config.model,
    )  # fmt: skip
    checkpoint = folder / "checkpoints" / f"step-{step:08d}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text(CheckpointManifest(state=state, files={}).model_dump_json())
    (folder / "train.json").write_text(with_absolute_paths(config, Path.cwd()).model_dump_json())
    return folder


def test_how_a_training_is_carried_out_does_not_name_it_and_what_is_learnt_does(tmp_path: Path) -> None:
    config = TrainConfig()
    name = training_folder(tmp_path, config, FIXTURE)
    assert name.parent == tmp_path and len(name.name) == len("train-") + 12
    for same in (
        {"steps": 7, "keep": 9, "recompute": True, "threads": 4, "output": tmp_path, "parallel": ParallelConfig(tp=2)},
        {"data": FeedConfig(shards="elsewhere", micro_batch_size=4, verify=False), "loss": LossConfig(chunk=8)},
    ):
        assert training_folder(tmp_path, config.model_copy(update=same), FIXTURE) == name
    others: list[dict[str, Any]] = [
        {"data": FeedConfig(seed=1)}, {"data": FeedConfig(global_batch_size=4)}, {"loss": LossConfig(alpha=0.5)},
        {"model": ModelConfig(layers=2)}, {"precision": "bf16"}, {"init_from": Path("x")},
    ]  # fmt: skip
    assert len({name, *(training_folder(tmp_path, config.model_copy(update=o), FIXTURE) for o in others)}) == 7


def test_the_same_packs_are_one_training_wherever_they_lie_and_whatever_they_were_made_from(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(FIXTURE, tmp_path / "copy"))
    again = json.loads((copy / "manifest.json").read_bytes()) | {"parents": {"tokenize": "f" * 64}}
    del again["sha256"]
    sealed = again | {"sha256": hashlib.sha256(canonical(again)).hexdigest()}
    (copy / "manifest.json").write_text(json.dumps(sealed, sort_keys=True, indent=1) + "\n")
    assert training_folder(tmp_path, TrainConfig(), copy) == training_folder(tmp_path, TrainConfig(), FIXTURE)


@pytest.mark.parametrize("known_by", ["sha256", "set_identity"])
def test_a_training_under_an_older_name_is_gone_on_with(
    known_by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = TrainConfig(init_from=Path("before"), steps=50)
    shards = getattr(manifest_of(FIXTURE), known_by)
    begun(tmp_path / "train-000000000001", config, shards, step=5)
    old = begun(tmp_path / "train-000000000002", config, shards, step=10)
    begun(tmp_path / "train-000000000003", config, "0" * 64, step=20)  # on another set
    begun(tmp_path / "train-000000000004", config.model_copy(update={"loss": LossConfig(alpha=0.1)}), shards, step=30)
    tree = json.loads((old / "train.json").read_text())
    for newer in ("recompute", "fp8"):  # settings that there were not when it was begun
        del tree[newer]
    (old / "train.json").write_text(json.dumps(tree))
    (tmp_path / "train-000000000005").mkdir()
    assert training_folder(tmp_path, config.model_copy(update={"steps": 100}), FIXTURE) == old
    new = training_folder(tmp_path, config.model_copy(update={"data": FeedConfig(seed=3)}), FIXTURE)
    assert not new.exists()
    begun(new, config, shards)
    assert training_folder(tmp_path, config.model_copy(update={"data": FeedConfig(seed=3)}), FIXTURE) == new
