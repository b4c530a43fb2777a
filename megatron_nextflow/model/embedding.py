"""Inputs of the first stage: words from a table, vision slots from codebook vectors through the connector.

A code never enters as a row of a word table. As in NextFlow (§3.1, §3.2), the vision embedding *is* the codebook, from whose
vectors scale k−1 is upsampled to scale k's grid, and a connector maps them to the model's width; so new images share what
the tokenizer learnt, and resolution changes need no new rows. The shape of the connector is unpublished: TokenFlow's
Linear-GELU-Linear is taken. To each vision slot are added a learnable embedding of its scale and a sinusoidal one of the
image's number of scales (§3.2; that they are added is our reading). The cost: connector and codebook are replicated on every
tensor-parallel process, 1.3 M + 13 M parameters at 32,768 codes of 40 and a width of 3,584.
"""

from __future__ import annotations

import torch
from megatron.core.tensor_parallel import VocabParallelEmbedding, scatter_to_sequence_parallel_region
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from torch.nn import functional as F

from megatron_nextflow.config.model import ModelConfig
from megatron_nextflow.sequence.batch import LayoutBatch, vision_inputs
from megatron_nextflow.sequence.vocabulary import Vocabulary


def sinusoid(count: Tensor, width: int) -> Tensor:
    """Sinusoidal embedding of integers (Vaswani et al., 2017, §3.5): [...] to [..., width], sines then cosines."""
    half = width // 2
    rates = torch.exp(torch.arange(half, device=count.device, dtype=torch.float32) * (-torch.log(torch.tensor(1e4)) / half))
    angles = count[..., None].float() * rates
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=-1), (0, width - 2 * half))


class Connector(nn.Module):
    """Codebook vectors [N, D] to model width [N, H]: Linear, GELU, Linear."""

    def __init__(self, code_dim: int, hidden_size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.fc1 = nn.Linear(code_dim, hidden_size, dtype=dtype)
        self.fc2 = nn.Linear(hidden_size, hidden_size, dtype=dtype)

    def forward(self, vectors: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(vectors)))


class NextFlowEmbedding(MegatronModule):
    """Word table split over the tensor-parallel group; codebook, connector and scale embeddings replicated on it.

    The sinusoid of the number of scales is multiplied by one learnable number that begins at `init_std`, so that at first it
    is no louder than the rest (our choice).
    """

    def __init__(self, config: TransformerConfig, model: ModelConfig, vocabulary: Vocabulary, codebook: Tensor) -> None:
        super().__init__(config=config)
        width, dtype = config.hidden_size, config.params_dtype
        self.word_embeddings = VocabParallelEmbedding(
            num_embeddings=vocabulary.padded_words, embedding_dim=width, init_method=config.init_method, config=config
        )
        self.codebook = nn.Parameter(codebook.to(dtype).clone(), requires_grad=model.train_codebook)
        self.connector = Connector(codebook.shape[1], width, dtype)
        self.scale_embeddings = nn.Parameter(torch.zeros(model.max_scales, width, dtype=dtype))
        self.scale_count_gain = nn.Parameter(torch.full((1,), model.init_std, dtype=dtype))

    def forward(self, batch: LayoutBatch) -> Tensor:
        """The batch's inputs, [L, B, H]. Raises IndexError where an image has more scales than `max_scales`.

        Under sequence parallelism this process's L/tp of them. Each process computes all: then the gradients of what is
        replicated, gathered again on the way back, are whole on each.
        """
        hidden = self.word_embeddings(batch.token_ids)
        # Also without an image: overlapped gradient reduction waits for every parameter's gradient, be it zero.
        slots = batch.is_vision.flatten().nonzero().squeeze(1)
        scale, count = batch.scale.flatten()[slots], batch.num_scales.flatten()[slots]
        vision = self.vision(vision_inputs(self.codebook, batch.images, batch.vision_rows), scale, count)
        hidden = hidden.flatten(0, 1).index_copy(0, slots, vision).view_as(hidden)
        hidden = hidden.transpose(0, 1).contiguous()
        return scatter_to_sequence_parallel_region(hidden) if self.config.sequence_parallel else hidden

    def vision(self, vectors: Tensor, scale: Tensor, count: Tensor) -> Tensor:
        """Embeddings [N, H] of vision slots from their upsampled code vectors [N, D], scale [N] and number of scales [N]."""
        embedded = self.connector(vectors) + self.scale_embeddings[scale - 1]
        return embedded + self.scale_count_gain * sinusoid(count, embedded.shape[-1]).to(embedded.dtype)
