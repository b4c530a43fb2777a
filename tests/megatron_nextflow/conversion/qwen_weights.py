"""Tiny Qwen2.5-VL weights as files, for the tests of `mnf convert`; imported by path, see `test_convert.py`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from nextflow_tokenize.config.tokenize import TextTokenizerConfig
from nextflow_tokenize.documents.text_tokenizer import train_bpe
from safetensors.torch import load_file, save_file
from torch import Tensor

from megatron_nextflow.checkpoint.format import CheckpointState, read_manifest
from megatron_nextflow.conversion.from_hf import Imported, import_hf
from megatron_nextflow.conversion.to_hf import export_hf
from megatron_nextflow.runtime import training_folder

ROWS, HIDDEN, LAYERS, HEADS, GROUPS, FFN = 320, 64, 4, 4, 2, 96
CONFIG: dict[str, Any] = {
    "model_type": "qwen2_5_vl", "vocab_size": ROWS, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "num_key_value_heads": GROUPS, "intermediate_size": FFN, "rms_norm_eps": 1e-5,
    "hidden_act": "silu", "rope_theta": 2e5, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
    "tie_word_embeddings": False, "use_sliding_window": False, "sliding_window": 32768,
}  # fmt: skip
"""As Qwen publishes them: flat, with the older names of the rotary settings."""


def tensors(layers: int = LAYERS) -> dict[str, Tensor]:
    """A language model's, random."""
    generator = torch.Generator().manual_seed(0)
    layer = {"input_layernorm.weight": [HIDDEN], "post_attention_layernorm.weight": [HIDDEN]}
    layer |= {f"mlp.{name}_proj.weight": [FFN, HIDDEN] for name in ("gate", "up")} | {"mlp.down_proj.weight": [HIDDEN, FFN]}
    layer |= {f"self_attn.{name}_proj.weight": [HIDDEN, HIDDEN] for name in "qo"} | {"self_attn.q_proj.bias": [HIDDEN]}
    layer |= {f"self_attn.{name}_proj.weight": [HIDDEN // 2, HIDDEN] for name in "kv"}
    layer |= {f"self_attn.{name}_proj.bias": [HIDDEN // 2] for name in "kv"}
    shapes = {"model.embed_tokens.weight": [ROWS, HIDDEN], "model.norm.weight": [HIDDEN], "lm_head.weight": [ROWS, HIDDEN]}
    shapes |= {f"model.layers.{number}.{name}": shape for number in range(layers) for name, shape in layer.items()}
    return {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}


def write(folder: Path, weights: dict[str, Tensor], config: dict[str, Any] = CONFIG) -> Path:
    """A checkpoint in one file."""
    folder.mkdir()
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


class Given(NamedTuple):
    """A folder that can be converted, the tokenizers to do it with, an import of it and an export of that."""

    folder: Path
    text: Path
    vision: Path
    run: Path
    back: Path

    @classmethod
    def make(cls, root: Path, vision: Path, save: Callable[[Path], Any]) -> Given:
        """Under `root`, from what `save` writes."""
        save(root / "hf")
        train_bpe(["a red square on a blue ground", "a fox"], TextTokenizerConfig(vocab_size=300), root / "t.json")
        given = cls(root / "hf", root / "t.json", vision, root / "run", root / "back")
        given.into(given.run, max_length=192)
        export_hf(given.run, given.back)
        return given

    def into(self, out: Path, folder: Path | None = None, **options: Any) -> Imported:
        """Import `folder` or the one given."""
        return import_hf(folder or self.folder, self.vision, self.text, out, **options)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Those of the folder, by the names in its files."""
        return {name: tensor for file in self.folder.glob("*.safetensors") for name, tensor in load_file(file).items()}

    @property
    def language(self) -> dict[str, Tensor]:
        """The same without the vision encoder's."""
        return {name: tensor for name, tensor in self.tensors.items() if "visual" not in name}


def step(run: Path) -> Path:
    """The training's checkpoint."""
    found = training_folder.latest(run)
    assert found is not None
    return found


def state(run: Path) -> CheckpointState:
    """What it says of itself."""
    return read_manifest(step(run)).state


def plain(run: Path) -> dict[str, Tensor]:
    """The model's tensors, whole."""
    from megatron.core import dist_checkpointing

    found: dict[str, Tensor] = dist_checkpointing.load_plain_tensors(str(step(run) / "megatron"))
    return {name: tensor for name, tensor in found.items() if name.startswith(("embedding.", "decoder.", "output_layer."))}


def require_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """The same names, types and bits."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
