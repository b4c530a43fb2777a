"""The peer of bench_train: Megatron-Core's own GPT of the same shape, with a plain causal mask and everything by the book.

Same width, depth, heads, feed-forward and vocabulary; Megatron's rotary positions, loss, data parallelism, distributed
optimizer and schedule. `sdpa` puts torch's causal attention in the place of Megatron's unfused one, which without
Transformer Engine writes out all scores: a harder peer.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.module import Float16Module, MegatronModule
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from megatron_nextflow.config.train import TrainConfig
from megatron_nextflow.model.layer_spec import transformer_config


class CausalAttention(MegatronModule):
    """torch's causal attention as a core attention."""

    def __init__(self, config: Any, *_: Any, **__: Any) -> None:
        super().__init__(config=config)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        out = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.size(1) != k.size(1))
        return out.permute(2, 0, 1, 3).reshape(query.size(0), query.size(1), -1)


class PlainGPT:
    """One step on random ids; `micro_batches` passes of one row of `slots` slots on each process."""

    def __init__(
        self, config: TrainConfig, vocabulary: int, slots: int, micro_batches: int, sdpa: bool, device: torch.device
    ) -> None:
        self.slots, self.micro_batches, self.device, self.vocabulary = slots, micro_batches, device, vocabulary
        self.config = transformer_config(config)
        spec = get_gpt_layer_local_spec(normalization="RMSNorm")
        if sdpa:
            spec.submodules.self_attention.submodules.core_attention = CausalAttention
        self.config.init_method = self.config.output_layer_init_method = partial(torch.nn.init.normal_, std=0.02)
        model = GPTModel(
            config=self.config,
            transformer_layer_spec=spec,
            vocab_size=vocabulary,
            max_sequence_length=slots,
            share_embeddings_and_output_weights=False,
            position_embedding_type="rope",
            rotary_base=int(config.model.rope_theta),
        ).to(device)
        bf16 = config.precision == "bf16"
        wrapped: torch.nn.Module = Float16Module(self.config, model) if bf16 else model
        ddp = DistributedDataParallelConfig(grad_reduce_in_fp32=True, use_distributed_optimizer=True)
        self.stage = DistributedDataParallel(self.config, ddp, wrapped)
        self.stage.broadcast_params()
        settings = OptimizerConfig(
            optimizer="adam", lr=1e-4, weight_decay=0.05, clip_grad=1.0, bf16=bf16, params_dtype=self.config.params_dtype,
            use_distributed_optimizer=True,
        )  # fmt: skip
        self.optimizer = get_megatron_optimizer(settings, [self.stage])
        self.config.finalize_model_grads_func = finalize_model_grads
        self.config.grad_scale_func = self.optimizer.scale_loss
        self.positions = torch.arange(slots, device=device)[None]
        # Megatron's own attention needs the mask; torch's is told that it is causal.
        self.mask = None if sdpa else torch.ones(1, 1, slots, slots, dtype=torch.bool, device=device).triu(1)

    def step(self) -> None:
        """Forward, backward, update."""
        self.stage.zero_grad_buffer()
        self.optimizer.zero_grad()
        get_forward_backward_func()(
            forward_step_func=self._forward,
            data_iterator=self._rows(),
            model=self.stage,
            num_microbatches=self.micro_batches,
            seq_length=self.slots,
            micro_batch_size=1,
            forward_only=False,
        )
        self.optimizer.step()

    def _rows(self) -> Iterator[Tensor]:
        for _ in range(self.micro_batches):
            yield torch.randint(0, self.vocabulary, (1, self.slots + 1), device=self.device)

    def _forward(self, rows: Iterator[Tensor], stage: Any) -> tuple[Tensor, Any]:
        row = next(rows)
        return stage(row[:, :-1], self.positions, self.mask, labels=row[:, 1:].contiguous()), self._loss

    def _loss(self, losses: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        total = losses.float().sum()
        return total, torch.tensor(losses.numel(), dtype=torch.int, device=losses.device), total.detach().clone()
