"""The layer spec: which modules a transformer layer is made of, and the settings that megatron-core needs for it.

megatron-core is not forked: its TransformerBlock builds whatever a spec names. Ours names the block-range attention and a
norm; the linear layers are Megatron's own, or Transformer Engine's where FP8 is asked for. Fusions that need Transformer
Engine or APEX are off, so a CPU run and a GPU run without them execute the same code.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from torch.nn import functional as F

from megatron_nextflow.attention import BlockRangeAttention
from megatron_nextflow.config import TrainConfig


class RMSNorm(nn.Module):
    """x / √(mean x² + ε) · weight, over the last axis (Zhang and Sennrich, 2019)."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **_: Any) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


def _leave(weight: Tensor) -> Tensor:
    """An initialiser that does nothing."""
    return weight


def transformer_config(config: TrainConfig) -> TransformerConfig:
    """megatron-core's configuration of the transformer for this run."""
    model, parallel = config.model, config.parallel
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    fp8: dict[str, Any] = {"fp8": "hybrid", "fp8_recipe": config.fp8} if config.fp8 else {}
    recompute: dict[str, Any] = (
        {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
        if config.recompute
        else {}
    )
    return TransformerConfig(
        num_layers=model.layers,
        hidden_size=model.hidden_size,
        num_attention_heads=model.heads,
        num_query_groups=model.query_groups,
        ffn_hidden_size=model.ffn_size,
        normalization="RMSNorm",
        layernorm_epsilon=model.layernorm_epsilon,
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        add_qkv_bias=True,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        # The values are drawn by name afterwards (see `initialise`). Switching initialisation off instead would leave the
        # parameters unmarked as tensor-parallel, and gradient norms silently wrong.
        init_method=_leave,
        output_layer_init_method=_leave,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=config.precision == "bf16",
        tensor_model_parallel_size=parallel.tp,
        pipeline_model_parallel_size=parallel.pp,
        sequence_parallel=parallel.sequence_parallel,
        calculate_per_token_loss=True,
        # On gloo, freeing a stage's output while it is still being sent gives random losses.
        deallocate_pipeline_outputs=False,
        overlap_p2p_comm=False,
        batch_p2p_comm=True,
        batch_p2p_sync=False,
        gradient_accumulation_fusion=False,
        masked_softmax_fusion=False,
        bias_dropout_fusion=False,
        bias_activation_fusion=False,
        apply_rope_fusion=False,
        persist_layer_norm=False,
        **fp8,
        **recompute,
    )


def block_spec(config: TransformerConfig) -> TransformerBlockSubmodules:
    """The submodules of this pipeline stage's transformer block."""
    layer = _layer_spec(config)
    layer.submodules.self_attention.submodules.core_attention = BlockRangeAttention
    return TransformerBlockSubmodules(layer_specs=[layer] * get_num_layers_to_build(config), layer_norm=RMSNorm)


def _layer_spec(config: TransformerConfig) -> ModuleSpec:
    if config.fp8 is not None:
        from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec

        return get_gpt_layer_with_transformer_engine_spec()
    layer = get_gpt_layer_local_spec(normalization="RMSNorm")
    layer.submodules.input_layernorm = RMSNorm
    layer.submodules.pre_mlp_layernorm = RMSNorm
    return layer
