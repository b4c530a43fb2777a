"""Initial values drawn by name, so that every parallel layout starts from the same model.

Megatron draws a layer's values from its process's generator, so another number of pipeline stages is another model, and a
layout can only be compared with another from a checkpoint. Here each parameter's *whole* value comes from a generator seeded
with its name and the training's seed, and a process keeps the part that is its own. Names and parts are those of Megatron's
distributed checkpoints, so they agree by construction. The cost: the processes of the first data-parallel copy each draw
whole tensors, one at a time, of which tensor parallelism keeps a part: for the largest (the head) that needs its full size
in memory for a moment.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from torch import Tensor

from megatron_nextflow.config.model import ModelConfig

_RESIDUAL = ("linear_proj.weight", "linear_fc2.weight")


@torch.no_grad()
def initialise(sharded_state: dict[str, Any], model: ModelConfig) -> None:
    """Fill the parameters that `sharded_state` (a model's `sharded_state_dict()`) refers to, in place.

    Matrices are normal with `init_std`, divided by √(2·layers) where they write to the residual stream (GPT-2); norms are 1,
    biases 0; the connector's first layer has a deviation of 1, because code vectors have unit length. The codebook is left
    as it is: it comes from the vision tokenizer. Raises ValueError at a parameter that no rule knows.
    """
    for sharded in _tensors(sharded_state):
        if sharded.key.endswith("embedding.codebook") or sharded.data is None:
            continue
        axes = sharded.prepend_axis_num
        name = ".".join([sharded.key, *map(str, sharded.global_offset[:axes])])
        value = draw(name, tuple(sharded.global_shape[axes:]), model)
        part = tuple(
            slice(offset, offset + size)
            for offset, size in zip(sharded.global_offset[axes:], sharded.local_shape, strict=True)
        )
        sharded.data.copy_(value[part])


def _tensors(state: Any) -> Iterator[ShardedTensor]:
    if isinstance(state, dict):
        for value in state.values():
            yield from _tensors(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from _tensors(value)
    elif isinstance(state, ShardedTensorFactory):
        yield from _tensors(state.build())
    elif isinstance(state, ShardedTensor):
        yield state


def draw(name: str, shape: tuple[int, ...], model: ModelConfig) -> Tensor:
    """The whole initial value, float32, of the parameter called `name`; by the rules of `initialise`."""
    base = name.rstrip("0123456789.")
    if base.endswith(("norm.weight", "layer_norm_weight")):
        return torch.ones(shape)
    if base.endswith("scale_count_gain"):
        return torch.full(shape, model.init_std)
    if base.endswith("bias"):
        return torch.zeros(shape)
    if len(shape) != 2:
        raise ValueError(f"no rule for the initial value of {name} with shape {shape}")
    std = model.init_std
    if base.endswith(_RESIDUAL):
        std /= (2 * model.layers) ** 0.5
    elif base.endswith("connector.fc1.weight"):
        std = 1.0
    seed = int.from_bytes(hashlib.sha256(f"{model.seed}:{name}".encode()).digest()[:8], "big") >> 1
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * std
