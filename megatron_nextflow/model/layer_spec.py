"""The layer spec: which modules a transformer layer is made of, and the settings that megatron-core needs for it.

megatron-core is not forked: its TransformerBlock builds whatever a spec names. Ours names the block-range attention and a
norm; the linear layers are Megatron's own, or Transformer Engine's where FP8 is asked for. Fusions that need Transformer
Engine or APEX, or that torch compiles at the first step, are off, so a CPU run and a GPU run execute the same code. The
cost: on a GPU the unfused SwiGLU keeps more activations than it must.
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

from megatron_nextflow.config.train import TrainConfig
from megatron_nextflow.model.attention import BlockRangeAttention
from megatron_nextflow.model.precision import Precision, precision_of


class RMSNorm(nn.Module):
    """x / √(mean x² + ε) · weight, over the last axis (Zhang and Sennrich, 2019)."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **_: Any) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        # Under sequence parallelism each process norms its own slots; Megatron adds up the gradients of what is so marked.
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


def _leave(weight: Tensor) -> Tensor:
    """An initialiser that does nothing."""
    return weight


def transformer_config(config: TrainConfig, precision: Precision | None = None) -> TransformerConfig:
    """megatron-core's configuration of the transformer for this training; without `precision`, the recipe's without FP8."""
    model, parallel = config.model, config.parallel
    if precision is None:
        precision = precision_of(config.model_copy(update={"fp8": None}), torch.device("cpu"))
    dtype = precision.dtype
    fp8: dict[str, Any] = {"fp8": "hybrid", "fp8_recipe": precision.fp8} if precision.fp8 else {}
    if precision.fp8 and config.first_last_bf16:
        ends = {f"num_layers_at_{end}_in_bf16": config.first_last_bf16 for end in ("start", "end")}
        fp8 |= {"first_last_layers_bf16": True, **ends}
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
        bf16=dtype == torch.bfloat16,
        **parallel.megatron(),
        sequence_parallel=parallel.sequence_parallel,
        calculate_per_token_loss=True,
        # Rows differ in length; Megatron allows that only beside this dispatcher, which no dense layer uses.
        variable_seq_lengths=parallel.pp > 1,
        moe_token_dispatcher_type="alltoall",
        # On gloo, freeing a pipeline stage's output while it is still being sent gives random losses.
        deallocate_pipeline_outputs=False,
        # Two pipeline stages interleaved with batched sends are deterministically wrong on gloo, so these go together.
        overlap_p2p_comm=parallel.interleaved,
        batch_p2p_comm=not parallel.interleaved,
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


def block_spec(config: TransformerConfig, vp_stage: int | None = None) -> TransformerBlockSubmodules:
    """The submodules of this pipeline stage's transformer block, or of its chunk `vp_stage`."""
    layer = _layer_spec(config)
    layer.submodules.self_attention.submodules.core_attention = BlockRangeAttention
    return TransformerBlockSubmodules(layer_specs=[layer] * get_num_layers_to_build(config, vp_stage), layer_norm=RMSNorm)


def _layer_spec(config: TransformerConfig) -> ModuleSpec:
    if config.fp8 is not None:
        from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec

        return get_gpt_layer_with_transformer_engine_spec()
    layer = get_gpt_layer_local_spec(normalization="RMSNorm")
    layer.submodules.input_layernorm = RMSNorm
    layer.submodules.pre_mlp_layernorm = RMSNorm
    return layer
