"""How much arithmetic a step is, how many parameters a model has, and what a GPU could do at best.

Model FLOPs utilisation is counted as PaLM (Chowdhery et al., 2022, appendix B) counts it: the matrix products of the forward
pass and twice as many for the backward pass, over the device's dense bf16 peak. Layers that are computed a second time to
save memory are work, not progress, and do not count; nor do norms, rotations, softmax and the connector. The cost: a
training that recomputes shows a lower utilisation than its hardware has. Needs no torch.
"""

from __future__ import annotations

import re

from megatron_nextflow.config.model import ModelConfig
from megatron_nextflow.sequence.vocabulary import Vocabulary

_PEAKS = (
    (r"\bGB200\b", 2500.0),
    (r"\bB200\b", 2250.0),
    (r"\bH[12]00 NVL\b", 835.0),
    (r"\bH100 PCIe\b", 756.0),
    (r"\bG?H200\b", 989.0),
    (r"\bH[18]00\b", 989.0),
    (r"\bA[18]00\b", 312.0),
    (r"\bA30\b", 165.0),
    (r"\bA40\b", 150.0),
    (r"\bA10\b", 125.0),
    (r"\bL40S\b", 362.0),
    (r"\bL40\b", 181.0),
    (r"\bL4\b", 121.0),
)


def step_flops(
    model: ModelConfig,
    vocabulary: Vocabulary,
    tokens: int,
    pairs: int,
    labels: int,
    frozen_layers: bool = False,
) -> float:
    """Model FLOPs of one training step, forward and backward, over the whole global batch.

    `tokens`: slots that are not padding; each goes through every layer's matrices at 2 FLOPs a weight. `pairs`: attended
    query-key pairs of one layer; each costs 4 FLOPs a channel of every head (score and value). `labels`: slots that predict
    something; the head runs only there, over its padded rows. The backward pass is two forward passes. The connector is left
    out: of a 7B model 0.2 % even if every slot were an image's. `frozen_layers`: the layers pass gradients on and have none
    themselves (the alignment stage), so their matrices' backward pass is one forward pass.
    """
    matrices = 2 * model.layers * _layer_matrices(model) * tokens
    attention = 4 * model.layers * model.heads * model.head_dim * pairs
    head = 2 * model.hidden_size * vocabulary.padded * labels
    return float((2 if frozen_layers else 3) * matrices + 3 * (attention + head))


def flops_per_token(model: ModelConfig, vocabulary: Vocabulary, length: int) -> float:
    """Model FLOPs a token of a training step on text of `length` tokens, all of which predict the next: for orientation."""
    return step_flops(model, vocabulary, length, length * (length + 1) // 2, length) / length


def parameter_count(model: ModelConfig, vocabulary: Vocabulary, codebook_dim: int) -> int:
    """Parameters of the whole model, each once, the rows that pad the vocabulary and the codebook included."""
    width = model.hidden_size
    layer = _layer_matrices(model) + _query_key_value(model) + 2 * width
    connector = (codebook_dim + 1) * width + (width + 1) * width
    vision = vocabulary.codes * codebook_dim + connector + model.max_scales * width + 1
    return model.layers * layer + width + (vocabulary.padded_words + vocabulary.padded) * width + vision


def peak_tflops(device_name: str) -> float | None:
    """Dense bf16 peak, TFLOP/s, of an NVIDIA GPU by the name that the driver gives it; None where it is not known.

    From NVIDIA's data sheets (those that print the figure with sparsity: half of it). A part of a GPU (MIG) is not known.
    """
    if "MIG" in device_name:
        return None
    return next((peak for pattern, peak in _PEAKS if re.search(pattern, device_name)), None)


def _query_key_value(model: ModelConfig) -> int:
    """Channels of queries, keys and values together."""
    return (model.heads + 2 * model.query_groups) * model.head_dim


def _layer_matrices(model: ModelConfig) -> int:
    """Weights of one layer's matrices: query, key and value, projection, gate, up and down."""
    width = model.hidden_size
    return width * (_query_key_value(model) + model.heads * model.head_dim + 3 * model.ffn_size)
