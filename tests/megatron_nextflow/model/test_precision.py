"""FP8 is had, refused, or replaced and said; never ignored."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from megatron_nextflow.config.train import TrainConfig
from megatron_nextflow.model import precision
from megatron_nextflow.model.layer_spec import transformer_config
from megatron_nextflow.model.precision import precision_of

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def config(**settings: Any) -> TrainConfig:
    return TrainConfig(precision="bf16", **settings)


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As on an H100 with Transformer Engine."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    return monkeypatch


@pytest.mark.parametrize("recipe", ["tensorwise", "delayed", "blockwise"])
def test_a_named_recipe_is_refused_without_a_gpu(recipe: str) -> None:
    with pytest.raises(ValueError, match=f"fp8: {recipe} cannot be had: it needs an NVIDIA GPU.*auto"):
        precision_of(config(fp8=recipe), CPU)


def test_auto_runs_in_bf16_and_says_why() -> None:
    found = precision_of(config(fp8="auto"), CPU)
    assert (found.dtype, found.fp8) == (torch.bfloat16, None)
    assert found.words == "bf16 (fp8: auto, but it needs an NVIDIA GPU)"


def test_without_transformer_engine(hopper: pytest.MonkeyPatch) -> None:
    hopper.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="Transformer Engine is not installed"):
        precision_of(config(fp8="tensorwise"), GPU)
    with pytest.raises(ValueError, match="Transformer Engine, which is not installed"):
        config(fp8="tensorwise", data={"shards": "x"}).check(1)  # type: ignore[arg-type]
    assert precision_of(config(fp8="auto"), GPU).fp8 is None


def test_with_everything(hopper: pytest.MonkeyPatch) -> None:
    found = precision_of(config(fp8="auto", first_last_bf16=1), GPU)
    assert found.fp8 == "tensorwise"
    assert found.words == "bf16 with FP8 (tensorwise) matrix products, first and last 1 layers in bf16"
    assert precision_of(config(fp8="blockwise"), GPU).fp8 == "blockwise"
    hopper.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    with pytest.raises(ValueError, match=r"compute capability 8\.9, blockwise needs 9\.0"):
        precision_of(config(fp8="blockwise"), GPU)
    assert precision_of(config(fp8="delayed"), GPU).fp8 == "delayed"


def test_megatron_is_told_the_recipe_and_the_layers_left_out() -> None:
    eight = precision.Precision(torch.bfloat16, "tensorwise", "")
    made = transformer_config(config(fp8="tensorwise", first_last_bf16=1), eight)
    assert (made.fp8, made.fp8_recipe, made.first_last_layers_bf16) == ("hybrid", "tensorwise", True)
    assert (made.num_layers_at_start_in_bf16, made.num_layers_at_end_in_bf16) == (1, 1)
    assert transformer_config(config(fp8="tensorwise")).fp8 is None


def test_what_does_not_go_together() -> None:
    for settings, message in (
        ({"fp8": "auto", "precision": "float32"}, "needs precision: bf16"),
        ({"fp8": "delayed", "first_last_bf16": 1}, "does not go with fp8: delayed"),
        ({"fp8": "auto", "first_last_bf16": 3}, "twice is more than model.layers 4"),
        ({"first_last_bf16": 1}, "first_last_bf16 keeps layers out of fp8, which is not set"),
        ({"fp8": "auto", "data": {"align": 8}}, "data.align 8: fp8 needs rows in multiples of 16"),
    ):
        with pytest.raises(ValidationError, match=message):
            TrainConfig(**{"precision": "bf16", **settings})
