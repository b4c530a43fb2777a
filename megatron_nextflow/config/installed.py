"""Which optional packages are there, asked without importing them: they take seconds, and a GPU."""

from __future__ import annotations

import importlib.util


def transformer_engine() -> bool:
    """Whether Transformer Engine is installed: FP8 needs it, and Megatron-Core does without it in silence."""
    return importlib.util.find_spec("transformer_engine") is not None


def wandb() -> bool:
    """Whether Weights & Biases is installed."""
    return importlib.util.find_spec("wandb") is not None
