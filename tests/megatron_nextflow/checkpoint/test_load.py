"""Checkpoints on disk: verified, refused where damaged or where they do not belong, gone on from. In one process."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nextflow_orchestration.cli import app
from nextflow_tokenize.shards.reader import ShardSet
from typer.testing import CliRunner, Result

from megatron_nextflow.checkpoint.format import read_manifest
from megatron_nextflow.checkpoint.verify import verify_folder
from megatron_nextflow.config.train import TrainConfig
from megatron_nextflow.runtime import training_folder
from megatron_nextflow.runtime.training_folder import CheckpointError
from megatron_nextflow.training import loop
from megatron_nextflow.watch.reporter import read_metrics

Config = Callable[..., TrainConfig]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(make_config: Config, training_data: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps with checkpoints at 2, 4 and 6, of which two are kept."""
    output = tmp_path_factory.mktemp("trained")
    assert loop.train(make_config(training_data, output, steps=6, checkpoint_interval=2, keep=2), CPU) == 6
    return output


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_the_newest_are_kept_and_nothing_half_written(trained: Path) -> None:
    names = sorted(p.name for p in training_folder.folder(trained).iterdir())
    assert names == ["latest", "step-00000004", "step-00000006"]
    assert training_folder.latest(trained) == training_folder.folder(trained) / "step-00000006"


def test_the_manifest_lists_every_file(trained: Path) -> None:
    path = training_folder.folder(trained) / "step-00000006"
    manifest = read_manifest(path)
    files = {str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()}
    assert set(manifest.files) == files - {training_folder.MANIFEST}
    assert (manifest.state.step, manifest.state.consumed) == (6, 24)


def test_a_finished_run_does_nothing_more(run: Path, make_config: Config, training_data: Any) -> None:
    before = (run / "metrics.jsonl").read_bytes()
    assert loop.train(make_config(training_data, run, steps=6), CPU) == 6
    assert (run / "metrics.jsonl").read_bytes() == before


def test_going_on_equals_never_stopping(run: Path, make_config: Config, training_data: Any, tmp_path: Path) -> None:
    loop.train(make_config(training_data, run, steps=9), CPU)
    loop.train(make_config(training_data, tmp_path / "straight", steps=9), CPU)
    ours, theirs = read_metrics(run), read_metrics(tmp_path / "straight")
    for name in ("step", "loss", "grad_norm", "lr", "by_kind", "consumed"):
        assert [row[name] for row in ours] == [row[name] for row in theirs]


@pytest.mark.parametrize("name", ["megatron/__0_0.distcp", "megatron/common.pt", "megatron/.metadata"])
def test_one_flipped_byte_is_seen(name: str, run: Path, make_config: Config, training_data: Any) -> None:
    file = training_folder.folder(run) / "step-00000006" / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    found = rf"step-00000006: {re.escape(name)} is damaged"
    with pytest.raises(CheckpointError, match=f"{found}.*; the newest older one that verifies is step-00000004: write that"):
        loop.train(make_config(training_data, run, steps=7), CPU)
    with pytest.raises(CheckpointError, match=found):
        verify_folder(file.parent.parent)


def test_a_missing_and_a_short_file_are_named(run: Path, make_config: Config, training_data: Any) -> None:
    newest, older = (training_folder.folder(run) / name for name in ("step-00000006", "step-00000004"))
    file = newest / "megatron" / "common.pt"
    file.write_bytes(file.read_bytes()[:-1])
    config = make_config(training_data, run, steps=7)
    with pytest.raises(CheckpointError, match=r"common\.pt has \d+ bytes, the manifest says \d+"):
        loop.train(config, CPU)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"common\.pt is missing; the newest older one that verifies is step-00000004"):
        loop.train(config, CPU)
    (older / "generators" / "rank-00000.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"common\.pt is missing; no older one beside it verifies; move .* to start"):
        loop.train(config, CPU)


def test_a_checkpoint_that_is_gone_is_named_with_another(run: Path, make_config: Config, training_data: Any) -> None:
    config = make_config(training_data, run, steps=7)
    (training_folder.folder(run) / "step-00000006" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"latest names step-00000006, which has no manifest.*write step-00000004"):
        loop.train(config, CPU)
    (training_folder.folder(run) / "latest").write_text("step-00000004\n", encoding="utf-8")
    assert loop.train(config.model_copy(update={"steps": 5}), CPU) == 5
    for name in ("step-00000004", "step-00000005"):
        shutil.rmtree(training_folder.folder(run) / name)
    with pytest.raises(CheckpointError, match=r"latest names step-00000005.*remove .*checkpoints to start anew"):
        loop.train(config, CPU)


@pytest.mark.parametrize("text", ["", "../..\n", "step-6\n"])
def test_a_pointer_to_no_checkpoint_is_refused(text: str, run: Path) -> None:
    (training_folder.folder(run) / "latest").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match="write step-00000006, the newest there is, into that file"):
        training_folder.latest(run)


def test_without_a_pointer_the_newest_is_gone_on_from(run: Path, make_config: Config, training_data: Any) -> None:
    """As after a kill before the first one was written; beginning anew would write over what there is."""
    before = (run / "metrics.jsonl").read_bytes()
    (training_folder.folder(run) / "latest").unlink()
    assert loop.train(make_config(training_data, run, steps=6), CPU) == 6
    assert (run / "metrics.jsonl").read_bytes() == before
    assert (training_folder.folder(run) / "latest").read_text(encoding="utf-8") == "step-00000006\n"


def test_a_manifest_that_is_none_is_named(run: Path, make_config: Config, training_data: Any) -> None:
    (training_folder.folder(run) / "step-00000006" / "manifest.json").write_text('{"files": {}}', encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"manifest\.json cannot be read as a checkpoint manifest"):
        loop.train(make_config(training_data, run, steps=7), CPU)


def test_a_checkpoint_of_the_first_version_is_gone_on_from(run: Path, make_config: Config, training_data: Any) -> None:
    file = training_folder.folder(run) / "step-00000006" / "manifest.json"
    manifest = json.loads(file.read_text(encoding="utf-8"))
    state = manifest["state"]
    for new in ("skipped", "losses", "trainable", "parallel", "run"):
        del state[new]
    state |= {"version": 1, "tp": 1, "pp": 1, "shards": ShardSet.open(training_data.shards).manifest.sha256}
    file.write_text(json.dumps(manifest), encoding="utf-8")
    assert loop.train(make_config(training_data, run, steps=7), CPU) == 7


def test_checkpoints_are_listed_and_verified_from_the_command_line(run: Path) -> None:
    def mnf(verb: str, path: Path) -> Result:
        return CliRunner().invoke(app, ["checkpoint", verb, str(path)], env={"COLUMNS": "200"})

    listed = mnf("list", run).output
    assert re.search(r"step-00000004 .* 16 ", listed) and re.search(r"step-00000006 .* 24 .* 1 process .* in force", listed)
    newest = training_folder.folder(run) / "step-00000006"
    (training_folder.folder(run) / "latest").unlink()
    assert mnf("list", run).output == listed
    assert f"{newest}: whole; 5 files" in mnf("verify", run).output and mnf("verify", newest).exit_code == 0
    (newest / "megatron" / "common.pt").write_bytes(b"")
    damaged = mnf("verify", newest)
    assert damaged.exit_code == 1 and "common.pt has 0 bytes, the manifest says" in damaged.output
    assert mnf("list", run / "checkpoints").exit_code == 2 and mnf("verify", run / "checkpoints").exit_code == 2


def _state(run: Path, **changes: Any) -> None:
    """Rewrite the newest checkpoint's manifest as if it had been trained otherwise."""
    path = training_folder.folder(run) / "step-00000006"
    manifest = read_manifest(path)
    changed = manifest.model_copy(update={"state": manifest.state.model_copy(update=changes)})
    (path / training_folder.MANIFEST).write_text(changed.model_dump_json(), encoding="utf-8")


@pytest.mark.parametrize("name", ["text_tokenizer", "vision_tokenizer"])
def test_a_checkpoint_of_another_tokenizer_is_refused(name: str, run: Path, make_config: Config, training_data: Any) -> None:
    _state(run, **{name: "0" * 64})
    words = name.replace("_", " ")
    with pytest.raises(CheckpointError, match=f"was trained with {words} 0+, the shards were made with [0-9a-f]+"):
        loop.train(make_config(training_data, run, steps=7), CPU)
    fresh = make_config(training_data, run.parent / "other", init_from=run)
    with pytest.raises(CheckpointError, match=f"was trained with {words}"):
        loop.train(fresh, CPU)


def test_another_shard_set_or_model_or_seed_is_another_run(run: Path, make_config: Config, training_data: Any) -> None:
    config = make_config(training_data, run, steps=7)
    model = config.model.model_copy(update={"rope_theta": 5e5})
    with pytest.raises(
        CheckpointError, match=r"model \{'rope_theta': 1000000.0\}, this training has \{'rope_theta': 500000.0\}"
    ):
        loop.train(config.model_copy(update={"model": model}), CPU)
    with pytest.raises(CheckpointError, match="with seed 0, this training has 7"):
        loop.train(config.model_copy(update={"data": config.data.model_copy(update={"seed": 7})}), CPU)
    with pytest.raises(CheckpointError, match="with trainable all, this training has connector_and_head"):
        loop.train(config.model_copy(update={"trainable": "connector_and_head"}), CPU)
    with pytest.raises(CheckpointError, match="resume is false"):
        loop.train(config.model_copy(update={"resume": False}), CPU)
    _state(run, shards="1" * 64)
    with pytest.raises(CheckpointError, match=r"with shards 1+, this training has .*init_from"):
        loop.train(config, CPU)


def test_beginning_from_other_weights(trained: Path, make_config: Config, training_data: Any, tmp_path: Path) -> None:
    """The first loss is that of the trained weights, on the first batch, with the schedule at its start."""
    loop.train(make_config(training_data, tmp_path / "next", steps=3, init_from=trained), CPU)
    rows, before = read_metrics(tmp_path / "next"), read_metrics(trained)
    assert rows[0]["consumed"] == before[0]["consumed"] == 4
    assert rows[0]["lr"] == before[0]["lr"]
    assert rows[0]["loss"] < before[0]["loss"] - 0.05
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        loop.train(make_config(training_data, tmp_path / "none", init_from=tmp_path / "nothing"), CPU)


def test_a_changed_learning_rate_holds_after_resuming_and_is_said(
    run: Path, make_config: Config, training_data: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(training_data, run, steps=7)
    optimizer = config.optimizer.model_copy(update={"lr": 1e-4, "decay": "constant"})
    loop.train(config.model_copy(update={"optimizer": optimizer}), CPU)
    assert read_metrics(run)[-1]["lr"] == pytest.approx(1e-4)
    said = " ".join(capsys.readouterr().out.split())
    assert "changed since the checkpoint: steps 6 → 7, lr 0.003 → 0.0001, decay cosine → constant " in said


def test_bfloat16_saves_and_goes_on(make_config: Config, training_data: Any, tmp_path: Path) -> None:
    straight = make_config(training_data, tmp_path / "straight", steps=4, precision="bf16")
    loop.train(straight, CPU)
    broken = straight.model_copy(update={"output": tmp_path / "broken"})
    loop.train(broken.model_copy(update={"steps": 2}), CPU)
    loop.train(broken, CPU)
    assert [r["loss"] for r in read_metrics(tmp_path / "broken")] == [r["loss"] for r in read_metrics(tmp_path / "straight")]


def test_recomputation_changes_nothing(make_config: Config, training_data: Any, tmp_path: Path, trained: Path) -> None:
    loop.train(make_config(training_data, tmp_path, steps=3, recompute=True), CPU)
    for ours, theirs in zip(read_metrics(tmp_path), read_metrics(trained), strict=False):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-6)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-5)


def test_metrics_are_read_up_to_a_cut_line(trained: Path, tmp_path: Path) -> None:
    whole = (trained / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").write_bytes(whole[:-20])
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4, 5]
    assert any((trained / "tensorboard").glob("events.out.tfevents.*"))


def test_the_launcher_needs_no_torch() -> None:
    program = (
        "import sys, megatron_nextflow.launching.launcher; sys.exit(sum(m in sys.modules for m in ('torch', 'megatron')))"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
