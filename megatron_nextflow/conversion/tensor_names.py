"""Which tensor of Qwen2.5-VL's language model is which of ours: names, shapes, and how rows are put together.

Both sides have the same numbers, cut differently: Megatron keeps queries, keys and values in one matrix, ordered by group so
that tensor parallelism can cut it, and gate and up projection in another. Putting together and taking apart only moves rows,
so a round trip is exact to the bit. Checkpoints name the language model in three ways (`model.`, `model.language_model.`, or
the text model saved alone), so names are first brought to the bare form. The cost: a table that must be kept in step with
the model; a checkpoint made by it that lacks or misshapes a tensor cannot be loaded, and tests load it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from nextflow_data.common.errors import RequestError
from torch import Tensor

from megatron_nextflow.config.model import ModelConfig

WORDS, NORM, HEAD = "embedding.word_embeddings.weight", "decoder.final_layernorm.weight", "output_layer.weight"
HF_WORDS, HF_NORM, HF_HEAD = "embed_tokens.weight", "norm.weight", "lm_head.weight"
LAYERS = "decoder.layers"
"""Our layers: one tensor a kind, [layers, …]."""

_VISION = re.compile(r"(?:model\.)?visual\.")
_PREFIX = re.compile(r"(?:model\.)?(?:language_model\.)?(?=(?:embed_tokens|layers|norm)\.)")

Shape = tuple[int, ...]


class ConvertError(RequestError):
    """Weights that cannot be converted; the message says what is wrong, where, and what to do."""


def bare_name(name: str) -> str | None:
    """A tensor's name without the prefix, as in "layers.0.mlp.up_proj.weight"; None for one of the vision encoder."""
    return None if _VISION.match(name) else _PREFIX.sub("", name, count=1)


def exported_name(bare: str) -> str:
    """The name in a checkpoint as Qwen publishes them: "model." before all but the head."""
    return bare if bare == HF_HEAD else f"model.{bare}"


def layer_tensors(model: ModelConfig) -> dict[str, list[tuple[str, Shape]]]:
    """Of one layer: our name within it to the names and shapes of the tensors that it is put together from, in order."""
    hidden, ffn = model.hidden_size, model.ffn_size
    queries, keys = model.heads * model.head_dim, model.query_groups * model.head_dim
    rows = (("q", queries), ("k", keys), ("v", keys))
    return {
        "self_attention.linear_qkv.layer_norm_weight": [("input_layernorm.weight", (hidden,))],
        "self_attention.linear_qkv.weight": [(f"self_attn.{x}_proj.weight", (n, hidden)) for x, n in rows],
        "self_attention.linear_qkv.bias": [(f"self_attn.{x}_proj.bias", (n,)) for x, n in rows],
        "self_attention.linear_proj.weight": [("self_attn.o_proj.weight", (hidden, queries))],
        "mlp.linear_fc1.layer_norm_weight": [("post_attention_layernorm.weight", (hidden,))],
        "mlp.linear_fc1.weight": [(f"mlp.{x}_proj.weight", (ffn, hidden)) for x in ("gate", "up")],
        "mlp.linear_fc2.weight": [("mlp.down_proj.weight", (hidden, ffn))],
    }


def language_model_tensors(model: ModelConfig, rows: int, tied: bool) -> dict[str, Shape]:
    """Bare name to shape of every tensor that a checkpoint of the language model holds; `rows` of its embedding."""
    found: dict[str, Shape] = {HF_WORDS: (rows, model.hidden_size), HF_NORM: (model.hidden_size,)}
    if not tied:
        found[HF_HEAD] = (rows, model.hidden_size)
    for layer in range(model.layers):
        found |= {f"layers.{layer}.{n}": shape for parts in layer_tensors(model).values() for n, shape in parts}
    return found


def put_together(name: str, parts: Sequence[Tensor], groups: int) -> Tensor:
    """Our tensor `name` of a layer from `parts`, in the order of `layer_tensors`; `groups` key-value heads.

    Rows of queries, keys and values lie group by group: a group's queries, its key, its value (Megatron's order).
    """
    if len(parts) == 1:
        return parts[0]
    if "linear_qkv" not in name:
        return torch.cat(list(parts))
    by_group = [part.reshape(groups, -1, *part.shape[1:]) for part in parts]
    return torch.cat(by_group, dim=1).flatten(0, 1)


def take_apart(name: str, tensor: Tensor, shapes: Sequence[Shape], groups: int) -> list[Tensor]:
    """The inverse of `put_together`: contiguous tensors of `shapes`."""
    if len(shapes) == 1:
        return [tensor]
    if "linear_qkv" not in name:
        return [part.contiguous() for part in tensor.split([shape[0] for shape in shapes])]
    by_group = tensor.reshape(groups, -1, *tensor.shape[1:]).split([shape[0] // groups for shape in shapes], dim=1)
    return [part.flatten(0, 1).contiguous() for part in by_group]
