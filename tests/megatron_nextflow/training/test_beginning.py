"""One training stage after another: what is learnt, what is inherited, and what cannot be."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.dist_checkpointing import load_plain_tensors
from torch import Tensor

from megatron_nextflow.config.train import OptimizerConfig, TrainConfig
from megatron_nextflow.feeding import inputs
from megatron_nextflow.feeding.inputs import InputError
from megatron_nextflow.runtime import training_folder
from megatron_nextflow.runtime.training_folder import CheckpointError
from megatron_nextflow.step import trainer as trainer_module
from megatron_nextflow.step.process_groups import start_parallel
from megatron_nextflow.step.trainer import Trainer
from megatron_nextflow.training import loop
from megatron_nextflow.training.beginning import begin, find_origin

Config = Callable[..., TrainConfig]
CPU = torch.device("cpu")
LEARNT_IN_ALIGNMENT = {
    "embedding.connector.fc1.weight",
    "embedding.connector.fc1.bias",
    "embedding.connector.fc2.weight",
    "embedding.connector.fc2.bias",
    "embedding.scale_embeddings",
    "embedding.scale_count_gain",
    "output_layer.weight",
}


def _weights(output: Path) -> dict[str, Tensor]:
    """The model's tensors of the newest checkpoint, as torch finds them in its files."""
    path = training_folder.latest(output)
    assert path is not None
    found = load_plain_tensors(str(path / "megatron"))
    return {name: value for name, value in found.items() if not name.startswith("optimizer")}


def _stage(config: TrainConfig, **model: Any) -> TrainConfig:
    return config.model_copy(update={"model": config.model.model_copy(update=model)})


@pytest.fixture(scope="module")
def base(make_config: Config, training_data: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model to begin from, with rows for 4 scales: all that the images have."""
    output = tmp_path_factory.mktemp("base")
    loop.train(_stage(make_config(training_data, output, steps=3), max_scales=4), CPU)
    return output


@pytest.fixture(scope="module")
def aligned(base: Path, make_config: Config, training_data: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The alignment stage after it."""
    output = tmp_path_factory.mktemp("aligned")
    config = make_config(training_data, output, steps=3, init_from=base, trainable="connector_and_head")
    loop.train(_stage(config, max_scales=4), CPU)
    return output


def test_alignment_learns_connector_and_head_and_leaves_the_rest_bit_for_bit(base: Path, aligned: Path) -> None:
    before, after = _weights(base), _weights(aligned)
    assert before.keys() == after.keys()
    assert {name for name in before if not torch.equal(before[name], after[name])} == LEARNT_IN_ALIGNMENT


def test_pretraining_after_it_learns_everything(
    aligned: Path, make_config: Config, training_data: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(training_data, tmp_path, steps=3, init_from=aligned)
    loop.train(_stage(config, max_scales=6), CPU)
    before, after = _weights(aligned), _weights(tmp_path)
    after["embedding.scale_embeddings"] = after["embedding.scale_embeddings"][:4]
    assert [name for name in before if torch.equal(before[name], after[name])] == []
    said = " ".join(capsys.readouterr().out.split())
    assert (
        f"inherited from {training_folder.latest(aligned)} (step 3): words, codebook, connector, 4 layers, output head"
        in said
    )
    assert "scale embeddings 4 of 6 rows (2 new ones begin as row 4)" in said


@pytest.mark.parametrize(("precision", "scales"), [("float32", 6), ("bf16", 7), ("float32", 3)])
def test_more_scales_begin_as_the_last_and_fewer_are_the_first(
    precision: str, scales: int, aligned: Path, make_config: Config, training_data: Any, tmp_path: Path
) -> None:
    """Also after an update that moves nothing: in bf16 the optimizer holds the weights too, and would put its own back."""
    optimizer = OptimizerConfig(lr=1e-30, min_lr=0, warmup_steps=0)
    config = make_config(training_data, tmp_path, init_from=aligned, precision=precision, optimizer=optimizer)
    config = _stage(config, max_scales=scales)
    start_parallel(config)
    source = inputs.open_inputs(config)
    trainer = Trainer(config, source.vocabulary, source.codebook, CPU, draw=False)
    beginning = begin(find_origin(config, source), trainer)
    assert (beginning.state.step, beginning.state.consumed) == (0, 0)
    assert ("3 rows of its 4" if scales == 3 else f"4 of {scales} rows") in beginning.said
    packed = (
        "packed to equal cost for another model (hidden_size 3584, here 64; ffn_size 18944, here 96; layers 28, here 4; "
    )
    assert packed in beginning.said
    trainer.set_step(0)
    trainer.update()
    stored = _weights(aligned)
    found = dict(trainer.model.named_parameters())
    rows = found["embedding.scale_embeddings"]
    expected = stored["embedding.scale_embeddings"].to(rows.dtype)
    assert torch.equal(rows, torch.cat([expected, *[expected[-1:]] * max(0, scales - 4)])[:scales])
    assert not torch.equal(rows[0], rows[1])
    for name in ("output_layer.weight", "embedding.word_embeddings.weight", "decoder.final_layernorm.weight"):
        assert torch.equal(found[name], stored[name].to(rows.dtype))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_size": 32}, r"model\.hidden_size 64, this recipe has 32: weights of another shape.*set it to 64"),
        ({"layers": 2}, r"model\.layers 4, this recipe has 2: weights of another shape"),
        (
            {"rope_theta": 1e4},
            r"model\.rope_theta 1000000\.0, this recipe has 10000\.0: the same weights would mean something",
        ),
        ({"rope_sections": (4, 2, 2)}, r"model\.rope_sections \(2, 3, 3\), this recipe has \(4, 2, 2\)"),
    ],
)
def test_weights_of_another_model_are_not_inherited(
    change: dict[str, Any], said: str, aligned: Path, make_config: Config, training_data: Any, tmp_path: Path
) -> None:
    config = _stage(make_config(training_data, tmp_path / "run", init_from=aligned), **change)
    with pytest.raises(CheckpointError, match=said):
        loop.train(config, CPU)
    assert not (tmp_path / "run").exists()


def test_what_does_not_change_the_weights_may_change_and_is_said(
    aligned: Path, make_config: Config, training_data: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(training_data, tmp_path, steps=1, init_from=aligned, optimizer=OptimizerConfig(warmup_steps=0))
    loop.train(_stage(config, max_scales=4, max_length=256, rope_extent=32.0), CPU)
    said = " ".join(capsys.readouterr().out.split())
    assert "scale embeddings, 4 rows; optimizer" in said
    assert "changed: rope_extent 64.0 → 32.0, max_length 192 → 256" in said


def test_another_part_to_learn_is_another_run(
    aligned: Path, make_config: Config, training_data: Any, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(aligned, tmp_path / "run"))
    with pytest.raises(
        CheckpointError, match=r"with trainable connector_and_head, this training has all: its optimizer.*init_from"
    ):
        loop.train(_stage(make_config(training_data, run, steps=4), max_scales=4), CPU)


@pytest.mark.parametrize(("name", "value"), [("codebook_size", 32), ("codebook_dim", 12)])
def test_a_codebook_of_another_range_than_the_recipes_is_refused(
    name: str, value: int, make_config: Config, training_data: Any, tmp_path: Path
) -> None:
    config = make_config(training_data, tmp_path / "run")
    config = config.model_copy(update={"data": config.data.model_copy(update={name: value})})
    with pytest.raises(
        InputError, match=rf"a codebook of 48 codes of width 10, data\.{name} is {value}: .*correct the recipe"
    ):
        loop.train(config, CPU)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("resumed", [True, False])
def test_no_initial_value_is_drawn_where_a_checkpoint_overwrites_it(
    resumed: bool,
    aligned: Path,
    make_config: Config,
    training_data: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And what was there instead is nowhere in the model: here it is no number."""
    build, before = Trainer.__init__, _weights(aligned)

    def undrawn(self: Trainer, *args: Any, **given: Any) -> None:
        build(self, *args, **given)
        for parameter in self.model.parameters():
            parameter.data.fill_(torch.nan)
        self.optimizer.reload_model_params()

    def drawn(*args: Any) -> None:
        raise AssertionError("an initial value was drawn")

    monkeypatch.setattr(Trainer, "__init__", undrawn)
    monkeypatch.setattr(trainer_module, "initialise", drawn)
    run = tmp_path / "run"
    if not resumed:
        config = make_config(training_data, run, steps=1, init_from=aligned, optimizer=OptimizerConfig(warmup_steps=0))
    else:
        shutil.copytree(aligned, run)
        config = make_config(training_data, run, steps=4, trainable="connector_and_head")
    loop.train(_stage(config, max_scales=4), CPU)
    after = _weights(run)
    assert all(value.isfinite().all() for value in after.values())
    if resumed:
        assert {name for name in before if not torch.equal(before[name], after[name])} == LEARNT_IN_ALIGNMENT
