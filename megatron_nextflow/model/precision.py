"""What a training computes in, decided once and said: float32, bf16, or bf16 with FP8 matrix products.

Megatron-Core ignores an FP8 setting where Transformer Engine is missing, and trains on in bf16 without a word. Here a recipe
that names FP8 gets it or is refused; one that says `auto` gets the best there is, and the training says which. The cost: a
recipe with a named FP8 recipe cannot be tried on a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from megatron_nextflow.config import installed
from megatron_nextflow.config.train import TrainConfig

_NEEDS = {"tensorwise": (8, 9), "delayed": (8, 9), "blockwise": (9, 0)}
"""Least compute capability: Ada and Hopper multiply FP8, scaling by blocks begins with Hopper."""


@dataclass(frozen=True)
class Precision:
    """`dtype` of parameters and activations, Transformer Engine's FP8 recipe or None, and both in `words`."""

    dtype: torch.dtype
    fp8: Literal["tensorwise", "delayed", "blockwise"] | None
    words: str


def precision_of(config: TrainConfig, device: torch.device) -> Precision:
    """What `config` means on `device`. Raises ValueError where a named FP8 recipe cannot be had."""
    if config.precision == "float32":
        return Precision(torch.float32, None, "float32")
    if config.fp8 is None:
        return Precision(torch.bfloat16, None, "bf16")
    wanted = "tensorwise" if config.fp8 == "auto" else config.fp8
    missing = _missing(wanted, device)
    if missing is None:
        kept = f", first and last {config.first_last_bf16} layers in bf16" if config.first_last_bf16 else ""
        return Precision(torch.bfloat16, wanted, f"bf16 with FP8 ({wanted}) matrix products{kept}")
    if config.fp8 == "auto":
        return Precision(torch.bfloat16, None, f"bf16 (fp8: auto, but {missing})")
    raise ValueError(
        f"fp8: {config.fp8} cannot be had: {missing}. Megatron would train in bf16 and not say so; leave fp8 out, or set it "
        "to auto, which does that and says it"
    )


def _missing(recipe: str, device: torch.device) -> str | None:
    """Why an FP8 recipe cannot be had on `device`, or None."""
    if device.type != "cuda":
        return "it needs an NVIDIA GPU"
    if not installed.transformer_engine():
        return "Transformer Engine is not installed (pip install 'megatron-nextflow[gpu]')"
    found, needed = torch.cuda.get_device_capability(device), _NEEDS[recipe]
    if found < needed:
        return f"the GPU has compute capability {found[0]}.{found[1]}, {recipe} needs {needed[0]}.{needed[1]}"
    return None
