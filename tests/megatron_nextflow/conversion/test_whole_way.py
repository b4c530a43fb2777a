"""What an imported checkpoint is for: training, generating; and conversion as a person runs it, in little memory."""

from __future__ import annotations

import gc
import hashlib
import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nextflow_orchestration.cli import app
from nextflow_tokenize.documents.text_tokenizer import TextTokenizer
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from megatron_nextflow.checkpoint.format import read_manifest
from megatron_nextflow.config.train import TrainConfig
from megatron_nextflow.conversion import from_hf, to_hf
from megatron_nextflow.conversion.nextflow_part import FILE, write_kept
from megatron_nextflow.conversion.to_hf import export_hf
from megatron_nextflow.feeding.inputs import InputError
from megatron_nextflow.runtime import training_folder
from megatron_nextflow.training import loop
from megatron_nextflow.watch.reporter import read_metrics

_spec = importlib.util.spec_from_file_location("qwen_weights", Path(__file__).with_name("qwen_weights.py"))
assert _spec is not None and _spec.loader is not None
qwen = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(qwen)
CPU = torch.device("cpu")
Config = Callable[..., TrainConfig]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory, training_data: Any) -> Any:
    root = tmp_path_factory.mktemp("given")
    return qwen.Given.make(root, training_data.vision_tokenizer, lambda folder: qwen.write(folder, qwen.tensors()))


@pytest.fixture(scope="module")
def begin(given: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The import as if with the synthetic shards' text tokenizer, which has a hash and no file."""
    copy = tmp_path_factory.mktemp("begin") / "run"
    shutil.copytree(given.run, copy)
    manifest = read_manifest(qwen.step(copy))
    state = manifest.state.model_copy(update={"text_tokenizer": hashlib.sha256(b"text").hexdigest()})
    changed = manifest.model_copy(update={"state": state}).model_dump_json()
    (qwen.step(copy) / training_folder.MANIFEST).write_text(changed, encoding="utf-8")
    return copy


@pytest.fixture(scope="module")
def trained(begin: Path, make_config: Config, training_data: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps from the imported weights, on shards whose text tokenizer has fewer ids than the embedding rows."""
    output = tmp_path_factory.mktemp("trained")
    loop.train(make_config(training_data, output, steps=2, init_from=begin, model=qwen.state(begin).model), CPU)
    return output


def test_training_begins_from_the_imported_weights(
    trained: Path, begin: Path, make_config: Config, training_data: Any, tmp_path: Path
) -> None:
    rows = read_metrics(trained)
    assert [row["step"] for row in rows] == [1, 2] and all(np.isfinite(row["loss"]) for row in rows)
    before, after = qwen.plain(begin), qwen.plain(trained)
    assert before.keys() == after.keys()
    moved = {name: float((before[name] - after[name]).abs().max()) for name in before}
    # Two steps of Adam at 3e-3 and less move a weight by no more than about that; a fresh model's would be elsewhere.
    assert all(0 < distance < 0.01 for distance in moved.values()), moved
    fewer = qwen.state(begin).model.model_copy(update={"text_vocabulary": 60})
    with pytest.raises(InputError, match=r"model\.text_vocabulary 60 is below the 61 ids"):
        loop.train(make_config(training_data, tmp_path, model=fewer), CPU)


def test_a_trained_checkpoint_comes_back_whole(trained: Path, given: Any, tmp_path: Path) -> None:
    """All of the model's own tensors, NextFlow's included, after training has moved them."""
    export_hf(trained, tmp_path / "hf")
    own = {"text_tokenizer": TextTokenizer.load(given.text).hash}
    write_kept(tmp_path / "hf", load_file(tmp_path / "hf" / FILE), qwen.state(trained).model_copy(update=own))
    given.into(tmp_path / "again", tmp_path / "hf")
    qwen.require_equal(qwen.plain(tmp_path / "again"), qwen.plain(trained))


@pytest.mark.slow
def test_another_layout_gives_the_same_losses(
    trained: Path, begin: Path, make_config: Config, training_data: Any, tmp_path: Path
) -> None:
    from megatron_nextflow.config.model import ParallelConfig
    from megatron_nextflow.launching.launcher import launch

    model, layout = qwen.state(begin).model, ParallelConfig(tp=2, pp=2)
    config = make_config(training_data, tmp_path, steps=2, init_from=begin, parallel=layout, model=model)
    assert launch(config, tmp_path, 4) == 0
    for ours, theirs in zip(read_metrics(tmp_path), read_metrics(trained), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-5)


def test_an_imported_model_continues_a_text(given: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In words that its tokenizer has: the embedding has rows for more."""
    from megatron_nextflow.config.generate import GenerateConfig
    from megatron_nextflow.generation.generator import generate
    from megatron_nextflow.generation.prompt import parse_prompts
    from megatron_nextflow.generation.request import Request

    ids: list[int] = []
    monkeypatch.setattr(TextTokenizer, "decode", lambda self, drawn: ids.extend(drawn) or "words")
    wild = GenerateConfig(max_tokens=80, text_temperature=50, text_top_p=1)
    (result,) = generate(Request(given.run, parse_prompts(["a red square"]), settings=wild, device="cpu")).results
    known = TextTokenizer.load(given.text).vocab_size
    assert result.text == "words" and len(ids) > 40 and max(ids) < known < qwen.ROWS - 20


def test_memory_does_not_grow_with_the_layers(
    given: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """The most bytes of tensors alive when a chunk or file is about to be written, for models of 2 and of 10 layers."""
    most = 0

    def alive() -> int:
        found = [thing for thing in gc.get_objects() if type(thing) is Tensor and thing.device == CPU]
        return sum({tensor.data_ptr(): tensor.nbytes for tensor in found}.values())

    def watched(write: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal most
            result = write(*arguments, **options)
            most = max(most, alive() - before)
            return result

        return call

    monkeypatch.setattr(from_hf._Planner, "resolve_data", watched(from_hf._Planner.resolve_data))
    monkeypatch.setattr(to_hf, "save_file", watched(to_hf.save_file))
    peaks: list[tuple[int, int]] = []
    gc.collect()
    gc.freeze()  # what is there already is not looked through each time
    request.addfinalizer(gc.unfreeze)
    for layers in (2, 10):
        source = qwen.write(tmp_path / f"hf{layers}", qwen.tensors(layers), {**qwen.CONFIG, "num_hidden_layers": layers})
        before = alive()
        given.into(tmp_path / f"run{layers}", source)
        importing, most = most, 0
        export_hf(tmp_path / f"run{layers}", tmp_path / f"back{layers}")
        exporting, most = most, 0
        peaks.append((importing, exporting))
    assert peaks[1] == pytest.approx(peaks[0], abs=64)  # a number of somebody else's may go meanwhile; eight norms are more
    table = qwen.ROWS * qwen.HIDDEN * 4
    assert all(table <= peak < 3 * table for peak in peaks[0])


def test_from_the_command_line(given: Any, tmp_path: Path) -> None:
    def mnf(*arguments: Any) -> Any:
        return CliRunner().invoke(app, ["convert", *map(str, arguments)])

    tokenizers = ("--vision-tokenizer", given.vision, "--text-tokenizer", given.text)
    said = mnf("import", given.folder, *tokenizers, "--out", tmp_path / "run", "--max-length", 256)
    assert said.exit_code == 0, said.output
    assert "51 tensors" in said.output and "0 tensors of the vision encoder left out" in said.output
    assert "320 text rows" in said.output and "48 codes" in said.output
    assert f"init_from: {tmp_path / 'run'}" in said.output and "max_length: 256" in said.output
    said = mnf("export", tmp_path / "run", "--out", tmp_path / "hf")
    assert said.exit_code == 0 and "step 0, 51 tensors" in said.output and "in 6 files" in said.output
    said = mnf("import", given.folder, *tokenizers, "--out", tmp_path / "run")
    assert said.exit_code == 2 and "exists and is not written over" in said.output
