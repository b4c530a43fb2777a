"""One pipeline stage of the model: our embedding and head around megatron-core's transformer block.

The first embeds, the last has the head; each computes the rotary angles itself from the batch's positions, and hands each
layer the visible ranges, because both are two or three numbers a slot and cheaper to make than to send. The cost: every
process builds the pack layout of every pack it takes part in.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.models.common.language_module.language_module import LanguageModule
from megatron.core.transformer.enums import ModelType
from megatron.core.transformer.transformer_block import TransformerBlock
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_nextflow.config.loss import LossConfig
from megatron_nextflow.config.model import ModelConfig
from megatron_nextflow.model.attention import BlockRangeParams
from megatron_nextflow.model.embedding import NextFlowEmbedding
from megatron_nextflow.model.layer_spec import block_spec
from megatron_nextflow.model.loss import HeadShare, objective
from megatron_nextflow.model.rope import MultiScaleRotary
from megatron_nextflow.sequence.batch import LayoutBatch
from megatron_nextflow.sequence.vocabulary import Vocabulary


class NextFlowModel(LanguageModule):
    """The stage of the model that this process holds, or with interleaving one of its chunks, `vp_stage`.

    `codebook` [V, D] float32: the vision tokenizer's vectors; only its shape matters where a checkpoint is loaded after.
    Megatron's parallel state must exist. Parameters hold arbitrary values until `initialise` or a checkpoint fills them.
    """

    def __init__(
        self,
        config: TransformerConfig,
        model: ModelConfig,
        vocabulary: Vocabulary,
        codebook: Tensor,
        vp_stage: int | None = None,
    ) -> None:
        super().__init__(config=config)
        self.vocabulary = vocabulary
        self.vp_stage = vp_stage
        stage = {"ignore_virtual": vp_stage is None, "vp_stage": vp_stage}
        self.pre_process = parallel_state.is_pipeline_first_stage(**stage)
        self.post_process = parallel_state.is_pipeline_last_stage(**stage)
        self.model_type = ModelType.encoder_or_decoder
        self.share_embeddings_and_output_weights = False
        self.max_scales = model.max_scales
        if self.pre_process:
            self.embedding = NextFlowEmbedding(config, model, vocabulary, codebook)
        self.rotary = MultiScaleRotary(model.head_dim, model.rope_theta, model.sections)
        self.decoder = TransformerBlock(
            config=config,
            spec=block_spec(config, vp_stage),
            pre_process=self.pre_process,
            post_process=self.post_process,
            pg_collection=self.pg_collection,
            vp_stage=vp_stage,
        )
        if self.post_process:
            self.output_layer = tensor_parallel.ColumnParallelLinear(
                config.hidden_size,
                vocabulary.padded,
                config=config,
                init_method=config.init_method,
                bias=False,
                gather_output=False,
                tp_group=self.pg_collection.tp,
            )
        self.setup_embeddings_and_output_layer()

    def set_input_tensor(self, input_tensor: Tensor | list[Tensor]) -> None:
        """What the pipeline stage before sent, [L, B, H]; called by Megatron's schedules."""
        self.decoder.set_input_tensor(input_tensor[0] if isinstance(input_tensor, list) else input_tensor)

    def forward(
        self,
        batch: LayoutBatch,
        ranges: BlockRangeParams,
        *,
        hidden: Tensor | None = None,
        loss: LossConfig | None = None,
        **block: Any,
    ) -> Any:
        """Hidden states [L, B, H], or on the last pipeline stage logits [L, B, V/tp], padding rows at −∞.

        With `loss` the last stage gives the objective of the batch instead, a triple as `loss.objective` has it. `hidden`,
        where given, takes the place of the embedded batch. `block` goes to
        the transformer block as it is. L is the batch's, over tp under sequence parallelism except for logits.
        """
        if hidden is None and self.pre_process:
            hidden = self.embedding(batch)
        hidden = self.decoder(
            hidden_states=hidden,
            attention_mask=None,
            rotary_pos_emb=self.rotary(batch.positions),
            packed_seq_params=ranges,
            **block,
        )
        if not self.post_process:
            return hidden
        if loss is not None:
            return self._objective(hidden, batch, loss)
        logits, _ = self.output_layer(hidden)
        return self._mask_padding(logits)

    def _objective(self, hidden: Tensor, batch: LayoutBatch, loss: LossConfig) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        group = self.pg_collection.tp
        if self.config.sequence_parallel:
            hidden = tensor_parallel.gather_from_sequence_parallel_region(
                hidden, tensor_parallel_output_grad=True, group=group
            )
        else:
            hidden = tensor_parallel.copy_to_tensor_model_parallel_region(hidden, group=group)
        head = self.output_layer.weight
        share = HeadShare(self.vocabulary.size, head.shape[0] * group.rank(), group)
        return objective(hidden, head, batch, share, self.max_scales, loss)

    def _mask_padding(self, logits: Tensor) -> Tensor:
        """Padding rows of the head get no probability and no gradient."""
        rows = logits.shape[-1]
        first = max(0, self.vocabulary.size - rows * parallel_state.get_tensor_model_parallel_rank())
        if first < rows:
            logits[..., first:] = -torch.inf
        return logits
