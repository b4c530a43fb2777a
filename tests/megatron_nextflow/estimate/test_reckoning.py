"""Dry runs: of every recipe for training that comes with the project, over layouts, and of what cannot be."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
import yaml
from nextflow_orchestration.recipes.run import load
from nextflow_orchestration.recipes.training import TrainingRecipe
from nextflow_tokenize.packing.cost import attended_pairs
from nextflow_tokenize.segments import slots_of
from nextflow_tokenize.shards.reader import ShardSet
from pydantic import ValidationError

from megatron_nextflow import dry_run
from megatron_nextflow.config.model import ModelConfig, ParallelConfig
from megatron_nextflow.config.train import TrainConfig
from megatron_nextflow.estimate import flops
from megatron_nextflow.estimate.reckoning import reckon
from megatron_nextflow.runtime import device
from megatron_nextflow.sequence.vocabulary import Vocabulary

RECIPES = Path(__file__).parents[3] / "recipes"
PAPER = {
    "align": (1e-3, 0.01e12, 0.0, 12),
    "pretrain_256": (1e-4, 3.4e12, 0.0, 12),
    "pretrain_512": (1e-4, 1.8e12, 0.9, 16),
    "pretrain_1024": (1e-4, 0.2e12, 0.9, 18),
    "continue": (5e-5, 0.2e12, 0.9, 18),
    "sft": (1e-5, 0.02e12, 0.9, 18),
}
"""NextFlow's table 2 and §3: learning rate, tokens, α and number of scales of each stage, in order."""


@pytest.fixture(scope="module", autouse=True)
def no_processes() -> Iterator[None]:
    """A dry run pretends to be in a process group of its own, so there must be none."""
    from megatron.core import parallel_state

    from megatron_nextflow.step.process_groups import stop_parallel

    if parallel_state.model_parallel_is_initialized():
        stop_parallel()
    dist.destroy_process_group()
    yield
    device.setup("cpu")


def _recipe(name: str) -> TrainConfig:
    return load(TrainingRecipe, RECIPES / f"{name}.yaml").train


def _tiny(**settings: Any) -> TrainConfig:
    model = ModelConfig(hidden_size=48, layers=12, heads=12, query_groups=6, ffn_size=96, text_vocabulary=61, max_length=64)
    data = {"codebook_size": 48, "codebook_dim": 10, "global_batch_size": 24}
    return TrainConfig.model_validate({"model": model, "data": data, "optimizer": {"warmup_steps": 0}} | settings)


def test_all_stages_of_the_7b_model_have_a_recipe() -> None:
    assert {path.stem for path in RECIPES.glob("nextflow_7b_*.yaml")} == {f"nextflow_7b_{stage}" for stage in PAPER}


@pytest.mark.parametrize("stage", PAPER)
def test_a_stage_of_the_7b_model_can_be_trained_and_is_the_papers(stage: str) -> None:
    config = _recipe(f"nextflow_7b_{stage}")
    lr, tokens, alpha, scales = PAPER[stage]
    assert (config.optimizer.lr, config.loss.alpha, config.model.max_scales) == (lr, alpha, scales)
    assert config.trainable == ("connector_and_head" if stage == "align" else "all")
    assert config.loss.responses_only == (stage == "sft")
    for processes in (8, config.slurm.nodes * config.slurm.gpus_per_node, 1024):
        run = reckon(config, processes)
        assert run.too_large(config.memory_gib) == []
        assert run.parameters == flops.parameter_count(config.model, Vocabulary(152_064, 32_768), 40)
        assert tokens <= run.step_tokens * config.steps < tokens + run.step_tokens


def test_each_stage_begins_where_the_one_before_ends() -> None:
    outputs = [f"runs/{yaml.safe_load((RECIPES / f'nextflow_7b_{stage}.yaml').read_text())['name']}" for stage in PAPER]
    assert [str(_recipe(f"nextflow_7b_{stage}").init_from) for stage in PAPER] == ["runs/qwen2.5-vl-7b", *outputs[:-1]]


@pytest.mark.parametrize(("name", "parameters"), [("10m", 10e6), ("100m", 100e6), ("1b", 1e9)])
def test_the_small_shapes_are_of_their_size(name: str, parameters: float) -> None:
    config = _recipe(f"nextflow_small_{name}")
    run = reckon(config, 8)
    assert run.parameters == pytest.approx(parameters, rel=0.1)
    assert run.too_large(config.memory_gib) == []


@pytest.mark.parametrize(
    ("parallel", "first", "last"),
    [
        ({}, 12, 12),
        ({"tp": 2, "sequence_parallel": True}, 12, 12),
        ({"pp": 3, "cp": 2}, 4, 4),
        ({"tp": 2, "pp": 2, "vpp": 3}, 6, 6),
    ],
)
def test_every_layout_holds_each_parameter_once(parallel: dict[str, Any], first: int, last: int) -> None:
    config = _tiny(parallel=parallel)
    run = reckon(config, 12)
    vocabulary, model, tp = Vocabulary(61, 48), config.model, config.parallel.tp
    assert run.parameters == run.trained == flops.parameter_count(model, vocabulary, 10)
    # By hand: 12 heads and twice 6 groups of 4 channels, with biases; norms and what embeds images are not split.
    layer = (96 * 48 + 96 + 48 * 48 + 3 * 96 * 48) // tp + 2 * 48
    words, vision = 128 * 48 // tp, 48 * 10 + 11 * 48 + 49 * 48 + 18 * 48 + 1
    expected = [config.model.layers // config.parallel.pp * layer for _ in range(config.parallel.pp)]
    expected[0] += words + vision
    expected[-1] += words + 48
    assert [stage.parameters for stage in run.stages] == expected
    assert (run.stages[0].layers, run.stages[-1].layers) == (first, last)


def test_alignment_learns_connector_scales_and_head() -> None:
    run = reckon(_tiny(trainable="connector_and_head"), 1)
    assert run.trained == run.stages[0].trained == 128 * 48 + 11 * 48 + 49 * 48 + 18 * 48 + 1


def test_with_shards_their_packs_are_counted(
    make_config: Callable[..., TrainConfig], training_data: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(training_data, tmp_path / "run")
    run = reckon(config, 2)
    packs = ShardSet.open(training_data.shards)
    samples = [packs.read(number).segments for number in range(len(packs))]
    slots, pairs = sum(map(slots_of, samples)), sum(map(attended_pairs, samples))
    whole = flops.step_flops(config.model, Vocabulary(61, 48), slots, pairs, slots)
    share = config.data.global_batch_size / len(packs)
    assert (run.packs, run.copies) == (len(packs), 2)
    assert run.step_tokens == pytest.approx(slots * share)
    assert run.step_flops == pytest.approx(whole * share)
    said = _program(config, tmp_path, 2)
    assert said == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f"{run.step_tokens:,.0f} tokens a step on average" in out
    assert f"{20 / len(packs):.2f} epochs of {len(packs)} packs" in out
    assert not (tmp_path / "run").exists()


def _program(config: TrainConfig | str, folder: Path, processes: int) -> int:
    file = folder / "config.json"
    file.write_text(config if isinstance(config, str) else config.model_dump_json(), encoding="utf-8")
    return dry_run.main(["--config", str(file), "--processes", str(processes)])


def _data(**changes: Any) -> dict[str, Any]:
    return {"codebook_size": 48, "codebook_dim": 10, "global_batch_size": 24} | changes


@pytest.mark.parametrize(
    ("settings", "processes", "reason"),
    [
        ({"parallel": {"pp": 2}}, 3, "3 processes cannot hold copies of parallel.pp 2 = 2"),
        ({"data": _data(global_batch_size=9)}, 2, "data.global_batch_size 9 is not divisible by 2 data-parallel copies"),
        ({"parallel": {"pp": 2, "vpp": 2}, "data": _data(global_batch_size=3)}, 2, "in multiples of parallel.pp 2"),
        ({"parallel": {"tp": 3}}, 3, "the output head's 128 rows are not divisible by parallel.tp 3: take a power of two"),
        ({"data": _data(codebook_size=None)}, 1, "no shards to tell the sizes of the vocabulary: set data.codebook_size"),
        ({"memory_gib": 0.001}, 1, "pipeline stage 0 needs 0.0 GiB a process, memory_gib is 0.001: raise parallel.tp"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    settings: dict[str, Any], processes: int, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _program(_tiny(**settings), tmp_path, processes) == 2
    said = capsys.readouterr().err
    assert reason in said
    assert said.startswith("dry run: ") and said.count("\n") == 1


def test_a_recipe_that_contradicts_itself_is_refused_by_field(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    heads = '{"model": {"heads": 4, "query_groups": 4}, "parallel": {"tp": 3}}'
    assert _program(heads, tmp_path, 3) == 2
    assert capsys.readouterr().err == "dry run: model.heads 4 is not divisible by parallel.tp 3\n"
    assert _program('{"model": {"layers": 0}, "stepz": 1}', tmp_path, 1) == 2
    said = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1] for line in said] == ["model.layers", "stepz"]
    with pytest.raises(ValidationError, match=r"model\.layers 12 is not divisible by parallel\.pp 2 × vpp 4"):
        _tiny(parallel={"pp": 2, "vpp": 4})


def test_shards_of_another_codebook_are_refused(
    make_config: Callable[..., TrainConfig], training_data: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(training_data, tmp_path / "run")
    data = config.data.model_copy(update={"codebook_size": 32})
    assert _program(config.model_copy(update={"data": data}), tmp_path, 1) == 2
    assert "a codebook of 48 codes of width 10, data.codebook_size is 32" in capsys.readouterr().err


def test_what_is_missing_here_but_may_be_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    data = _data(shards=str(tmp_path / "none"))
    run = reckon(_tiny(fp8="tensorwise", precision="bf16", wandb={}, parallel=ParallelConfig(tp=2), data=data), 2)
    assert [note.split(" ")[0] for note in run.notes] == ["fp8:", "wandb", str(tmp_path / "none")]
    assert run.stages[0].memory.weights == 4 * run.stages[0].parameters
