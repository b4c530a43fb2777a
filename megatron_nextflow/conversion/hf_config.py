"""Hugging Face's config.json of Qwen2.5-VL to our model's settings, and back.

Both layouts are read: transformers 5's, with the language model's settings in `text_config`, and the older flat one. What
our transformer does not compute is refused by name, not converted into a model that computes something else. Rotary sections
keep their order: Qwen2.5-VL's are time, height, width, ours scale or text position, row, column (see `rope`); for text all
three positions are equal, and the order is of no effect. The cost: settings that only a tokenizer or a sampler reads
(special tokens, the longest sequence) are lost.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from megatron_nextflow.config.model import ModelConfig
from megatron_nextflow.conversion.tensor_names import ConvertError

CONFIG = "config.json"
MODEL_TYPES = ("qwen2_5_vl", "qwen2_5_vl_text")
_SAME = {
    "hidden_size": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads",
    "query_groups": "num_key_value_heads", "ffn_size": "intermediate_size", "layernorm_epsilon": "rms_norm_eps",
    "text_vocabulary": "vocab_size",
}  # fmt: skip
"""Our setting to Hugging Face's, of those that mean the same."""


@dataclass(frozen=True)
class LanguageModel:
    """What a config.json describes: the model, the rows of its embedding, and whether the head is the embedding."""

    model: ModelConfig
    rows: int
    tied: bool


def read_config(folder: Path, own: Mapping[str, Any]) -> LanguageModel:
    """The language model that `folder`/config.json describes; `own`: fields of ModelConfig that it knows nothing of.

    Raises ConvertError for what is no config.json of Qwen2.5-VL, or asks for what our transformer does not compute.
    """
    file = folder / CONFIG
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConvertError(f"{file} cannot be read ({error}): name the folder of a Qwen2.5-VL checkpoint") from error
    kind = content.get("model_type") if isinstance(content, dict) else None
    if kind not in MODEL_TYPES:
        raise ConvertError(f"{file}: model_type is {kind!r}; {' and '.join(MODEL_TYPES)} can be converted")
    text = content.get("text_config") or content
    try:
        missing = [name for name in _SAME.values() if text.get(name) is None]
        if missing:
            raise ConvertError(f"{file} does not say {', '.join(missing)}: it is not whole")
        rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
        rope = {"rope_theta": text.get("rope_theta"), "rope_type": rope.get("type", "default"), **rope}
        settings = {ours: text[theirs] for ours, theirs in _SAME.items()}
        settings |= {"rope_theta": rope["rope_theta"], "rope_sections": rope.get("mrope_section")}
        problem = _problem({**content, **text}, rope)
    except (AttributeError, TypeError) as error:
        raise ConvertError(f"{file} has a setting of the wrong type ({error}): it is another model's, or damaged") from error
    try:
        model = ModelConfig.model_validate({**own, **settings})
    except ValidationError as error:
        problem = problem or "; ".join(f"{' '.join(map(str, e['loc']))} {e['msg']}".strip() for e in error.errors())
    if problem:
        raise ConvertError(f"{file}: {problem}")
    tied = content.get("tie_word_embeddings") or text.get("tie_word_embeddings")
    return LanguageModel(model, settings["text_vocabulary"], bool(tied))


def _problem(settings: Mapping[str, Any], rope: Mapping[str, Any]) -> str | None:
    """What our transformer does not compute of what is asked for, in words; None: nothing."""
    head_dim = settings.get("head_dim")
    if settings.get("quantization_config") is not None:
        return "the weights are quantised (quantization_config); take the checkpoint in bf16 or float32"
    if settings.get("use_sliding_window") or {*(settings.get("layer_types") or ())} - {"full_attention"}:
        return "some layers attend within a sliding window, which this transformer does not"
    if settings.get("hidden_act") != "silu":
        return f"hidden_act is {settings.get('hidden_act')!r}, this transformer has silu"
    if settings.get("attention_bias") is False:
        return "attention_bias is false, this transformer has a bias on queries, keys and values"
    if head_dim is not None and head_dim * settings["num_attention_heads"] != settings["hidden_size"]:
        return f"head_dim {head_dim} × {settings['num_attention_heads']} heads is not hidden_size {settings['hidden_size']}"
    if rope["rope_type"] not in ("default", "mrope") or None in (rope["rope_theta"], rope.get("mrope_section")):
        return f"the rotary positions are {dict(rope)}, not Qwen2.5-VL's with rope_theta and mrope_section"
    return None


def write_config(folder: Path, model: ModelConfig, rows: int, tied: bool, dtype: str) -> None:
    """Write config.json of a Qwen2.5-VL text model with `rows` embeddings, all of its weights of `dtype` (torch's word)."""
    content = {
        "architectures": ["Qwen2_5_VLTextModel"],
        "model_type": "qwen2_5_vl_text",
        **{theirs: getattr(model, ours) for ours, theirs in _SAME.items()},
        "vocab_size": rows,
        "hidden_act": "silu",
        "rope_parameters": {
            "rope_type": "default", "rope_theta": model.rope_theta, "mrope_section": list(model.sections),
        },
        "max_position_embeddings": model.max_length,
        "use_sliding_window": False,
        "tie_word_embeddings": tied,
        "bos_token_id": None,
        "eos_token_id": None,
        "dtype": dtype,
    }  # fmt: skip
    (folder / CONFIG).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
