"""Counts of FLOPs and parameters against the real model's, counted by torch; peaks against NVIDIA's data sheets."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from nextflow_tokenize.config.pack import CostModel
from nextflow_tokenize.packing.cost import cost_of
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from megatron_nextflow.config.model import ModelConfig
from megatron_nextflow.config.train import TrainConfig
from megatron_nextflow.estimate.flops import flops_per_token, parameter_count, peak_tflops, step_flops
from megatron_nextflow.sequence.vocabulary import Vocabulary

if TYPE_CHECKING:
    from megatron_nextflow.model.nextflow import NextFlowModel

VOCABULARY = Vocabulary(61, 48)
MODEL = ModelConfig(hidden_size=32, layers=2, heads=4, query_groups=2, ffn_size=48, max_length=192, max_scales=6)
CODE_WIDTH = 10


@pytest.fixture(scope="module", autouse=True)
def parallel() -> None:
    from megatron_nextflow.step.process_groups import start_parallel

    start_parallel(TrainConfig(model=MODEL))


def _model() -> NextFlowModel:
    from megatron_nextflow.model.initialise import initialise
    from megatron_nextflow.model.layer_spec import transformer_config
    from megatron_nextflow.model.nextflow import NextFlowModel

    config = transformer_config(TrainConfig(model=MODEL))
    model = NextFlowModel(config, MODEL, VOCABULARY, torch.randn(VOCABULARY.codes, CODE_WIDTH))
    initialise(model.sharded_state_dict(), MODEL)
    return model


def test_every_parameter_is_counted() -> None:
    assert parameter_count(MODEL, VOCABULARY, CODE_WIDTH) == sum(p.numel() for p in _model().parameters())


@pytest.mark.parametrize("frozen", [False, True])
def test_step_flops_are_those_that_torch_counts(frozen: bool) -> None:
    """Forward and backward of text in which all 40 slots see one another, so that the kernel computes no pair in vain."""
    from megatron_nextflow.config.loss import LossConfig
    from megatron_nextflow.model.attention import BlockRangeParams
    from megatron_nextflow.sequence.batch import collate
    from megatron_nextflow.sequence.pack_layout import build_pack_layout

    slots = 40
    text = np.arange(slots) % VOCABULARY.text
    segments = [{"kind": "text", "doc": "a", "tokens": slots, "loss": True}]
    none = np.zeros(0, dtype=np.int64)
    batch = collate([build_pack_layout(segments, text, none, none, VOCABULARY, slots, 64.0, LossConfig())])  # type: ignore[arg-type]
    visible = torch.stack([torch.zeros(1, slots, dtype=torch.int32), torch.full((1, slots), slots, dtype=torch.int32)])
    model = _model()
    model.decoder.requires_grad_(not frozen)
    # Each slot's logits are computed here, so each counts as a label; the kernel is one whose products torch counts.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(replace(batch, visible=visible), BlockRangeParams.of(visible))[..., : VOCABULARY.text].sum().backward()
    found = step_flops(MODEL, VOCABULARY, slots, slots * slots, slots, frozen_layers=frozen)
    assert found == counter.get_total_flops()


def test_a_packs_cost_is_what_its_step_takes() -> None:
    """Packing counts the head at every slot; so the two agree where every slot has a label."""
    model = ModelConfig(hidden_size=96, layers=3, heads=6, query_groups=2, ffn_size=256)
    cost = CostModel(hidden_size=96, layers=3, heads=6, query_groups=2, ffn_hidden_size=256, vocabulary=VOCABULARY.padded)
    assert step_flops(model, VOCABULARY, 700, 123_456, 700) == cost_of(700, 123_456, cost)
    assert flops_per_token(model, VOCABULARY, 3) == cost_of(3, 6, cost) / 3


def test_the_7b_shape_has_the_parameters_of_qwen() -> None:
    """Qwen2.5-7B: 7.61 B parameters, 6.53 B of them outside the embeddings (its model card)."""
    model = ModelConfig(hidden_size=3584, layers=28, heads=28, query_groups=4, ffn_size=18944)
    vocabulary = Vocabulary(text=151_665, codes=32_768)
    tables = (vocabulary.padded + vocabulary.padded_words) * 3584
    vision = 32_768 * 40 + 41 * 3584 + 3585 * 3584 + 18 * 3584 + 1
    assert (parameter_count(model, vocabulary, 40) - tables - vision) / 1e9 == pytest.approx(6.53, abs=0.005)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA B200", 2250),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("Tesla V100-SXM2-16GB", None),
        ("cpu", None),
    ],
)
def test_peaks_by_the_drivers_name(name: str, peak: float | None) -> None:
    assert peak_tflops(name) == peak
