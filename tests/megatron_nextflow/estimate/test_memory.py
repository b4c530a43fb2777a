"""The estimate of memory against what a real model keeps, and what Megatron's own objects hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel.schedules import get_pp_rank_microbatches
from torch import Tensor

from megatron_nextflow.config.loss import LossConfig
from megatron_nextflow.config.model import ModelConfig, ParallelConfig
from megatron_nextflow.config.train import FeedConfig, TrainConfig
from megatron_nextflow.estimate import memory
from megatron_nextflow.feeding.inputs import open_inputs
from megatron_nextflow.model import layer_spec
from megatron_nextflow.model.attention import BlockRangeParams
from megatron_nextflow.model.initialise import initialise
from megatron_nextflow.model.nextflow import NextFlowModel
from megatron_nextflow.model.precision import precision_of
from megatron_nextflow.sequence.batch import collate
from megatron_nextflow.sequence.pack_layout import build_pack_layout
from megatron_nextflow.sequence.vocabulary import Vocabulary
from megatron_nextflow.step.process_groups import start_parallel
from megatron_nextflow.step.trainer import Trainer

CPU = torch.device("cpu")
VOCABULARY = Vocabulary(61, 48)
LENGTH = 600


def _config(layers: int, **settings: Any) -> TrainConfig:
    model = ModelConfig(
        hidden_size=64, layers=layers, heads=8, query_groups=2, ffn_size=160, max_length=LENGTH, max_scales=12
    )
    return TrainConfig(model=model, data=FeedConfig(global_batch_size=1), **settings)


class _FusedNorm(torch.autograd.Function):
    """Keeps what the GPU's kernel keeps, input and weight; on a CPU torch takes the norm apart and keeps its parts too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.nn.functional.rms_norm(x, x.shape[-1:], weight, 1e-6)


def _kept(config: TrainConfig) -> int:
    """Bytes that the forward pass of one full text keeps for the backward pass, weights apart."""
    start_parallel(config)
    model = NextFlowModel(
        layer_spec.transformer_config(config, precision_of(config, CPU)), config.model, VOCABULARY, torch.randn(48, 10)
    )
    initialise(model.sharded_state_dict(), config.model)
    ids, none = np.arange(LENGTH) % VOCABULARY.text, np.zeros(0, dtype=np.int64)
    segments: Any = [{"kind": "text", "doc": "a", "tokens": LENGTH, "loss": True}]
    batch = collate([build_pack_layout(segments, ids, none, none, VOCABULARY, LENGTH, 64.0, LossConfig())])
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in weights:
            kept[place] = tensor  # holding it, so that nothing else comes to lie there
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(batch, BlockRangeParams.of(batch.visible), loss=LossConfig(chunk=64))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_layer_keeps_what_is_reckoned(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_spec.RMSNorm, "forward", lambda self, x: _FusedNorm.apply(x, self.weight))
    two, four = _kept(_config(2, precision=precision)), _kept(_config(4, precision=precision))
    assert memory.layer_bytes(_config(2, precision=precision)) == pytest.approx((four - two) / 2, rel=0.01)


def test_a_recomputed_layer_keeps_its_input() -> None:
    two, four = _config(2, precision="bf16", recompute=True), _config(4, precision="bf16", recompute=True)
    reckoned = memory.activations(four, 0, 1) - memory.activations(two, 0, 1)
    assert reckoned == _kept(four) - _kept(two) == 2 * LENGTH * 64 * 2


@pytest.mark.parametrize(("precision", "trainable"), [("float32", "all"), ("bf16", "all"), ("bf16", "connector_and_head")])
def test_weights_gradients_and_optimizer_are_what_megatron_holds(
    precision: str, trainable: str, make_config: Callable[..., TrainConfig], training_data: Any, tmp_path: Any
) -> None:
    config = make_config(training_data, tmp_path, precision=precision, trainable=trainable)
    start_parallel(config)
    source = open_inputs(config)
    trainer = Trainer(config, source.vocabulary, source.codebook, CPU)
    trainer.set_step(0)
    trainer.update()
    parameters = list(trainer.model.parameters())
    count, trained = (sum(p.numel() for p in parameters if p.requires_grad or every) for every in (True, False))
    found = memory.estimate(config, source.vocabulary, 0, count, trained, copies=1)
    assert found.weights == sum(p.numel() * p.element_size() for p in parameters)
    buffers = sum(buffer.grad_data.numel() * buffer.grad_data.element_size() for buffer in trainer.stages[0].buffers)
    assert found.gradients == pytest.approx(buffers, rel=0.02)  # Megatron pads its buffers
    assert found.optimizer == _optimizer_bytes(trainer, {p.untyped_storage().data_ptr() for p in parameters})


def _optimizer_bytes(trainer: Trainer, weights: set[int]) -> int:
    """Bytes of Adam's moments and of weights that are not the model's own."""
    adam = trainer.optimizer.optimizer
    states = [value for state in adam.state.values() for value in state.values() if isinstance(value, Tensor)]
    own = [p for group in adam.param_groups for p in group["params"] if p.untyped_storage().data_ptr() not in weights]
    return sum(tensor.numel() * tensor.element_size() for tensor in [*states, *own])


@pytest.mark.parametrize(("pp", "vpp", "micro_batches"), [(4, 1, 8), (4, 1, 2), (4, 3, 8), (2, 2, 2)])
def test_passes_in_flight_are_those_of_megatrons_schedules(
    pp: int, vpp: int, micro_batches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _config(12, parallel=ParallelConfig(pp=pp, vpp=vpp))
    monkeypatch.setattr(parallel_state, "get_pipeline_model_parallel_world_size", lambda: pp)
    virtual = vpp if vpp > 1 else None
    monkeypatch.setattr(parallel_state, "get_virtual_pipeline_model_parallel_world_size", lambda: virtual)
    for stage in range(pp):
        monkeypatch.setattr(parallel_state, "get_pipeline_model_parallel_rank", lambda stage=stage: stage)
        total, _, warmup, _ = get_pp_rank_microbatches(micro_batches, vpp, pp)
        assert memory.passes_in_flight(config, stage, micro_batches) == min(total, warmup + 1)


def test_what_is_split_is_divided() -> None:
    """By hand, from the formulas of Korthikanti et al. for our layer: 8 slots, hidden 64, tp 2, in bf16."""
    model = ModelConfig(hidden_size=64, layers=4, heads=8, query_groups=2, ffn_size=160, max_length=8)
    one = TrainConfig(model=model, precision="bf16", data=FeedConfig(global_batch_size=4))

    def split(**parallel: Any) -> TrainConfig:
        return one.model_copy(update={"parallel": ParallelConfig(**parallel)})

    slot = 2 * (4 * 64 + 4 * 8 + 4 * 64 + 3 * 16 + 5 * 160) + 4 * 8
    assert memory.layer_bytes(one) == 8 * slot
    assert memory.layer_bytes(split(tp=2)) == 8 * (slot / 2 + 2 * (4 * 64 + 4 * 8) / 2)
    assert memory.layer_bytes(split(tp=2, sequence_parallel=True)) == 8 * (slot / 2 + 2 * (4 * 8) / 2)
    assert memory.layer_bytes(split(cp=2)) == 4 * (slot + 2 * 2 * 16 * 2)
    assert memory.optimizer(one, 1000, 2) == 6000 and memory.optimizer(split(cp=2), 1000, 2) == 3000
    state, inside = 8 * 64 * 2, 3 * 8 * 64 * 2
    assert memory.activations(split(pp=2), 0, 4) == 2 * (2 * 8 * slot + state + inside)
    assert memory.activations(split(pp=2), 1, 4) == 2 * 8 * slot + state + 2 * state
    assert memory.estimate(split(pp=2), VOCABULARY, 0, 10, 10, 1).loss == 0
    head = VOCABULARY.padded
    assert memory.loss(one, VOCABULARY) == 3 * state + 6 * 8 * head + 6 * head * 64
    assert memory.weights(one, 100, fp8=True) == 400
