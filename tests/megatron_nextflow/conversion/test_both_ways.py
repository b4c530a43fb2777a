"""Qwen2.5-VL weights to a checkpoint and back, against transformers itself: logits, and every bit of every tensor."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from nextflow_tokenize.vision.identity import load_codebook
from safetensors.torch import load_file
from torch import Tensor

from megatron_nextflow.checkpoint.verify import verify_folder
from megatron_nextflow.conversion.hf_folder import INDEX
from megatron_nextflow.conversion.tensor_names import ConvertError
from megatron_nextflow.conversion.to_hf import export_hf
from megatron_nextflow.generation.generator import load_model

_spec = importlib.util.spec_from_file_location("qwen_weights", Path(__file__).with_name("qwen_weights.py"))
assert _spec is not None and _spec.loader is not None
qwen = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(qwen)
ROWS, HIDDEN, FFN = qwen.ROWS, qwen.HIDDEN, qwen.FFN


@pytest.fixture(scope="module")
def model() -> Any:
    """A tiny random Qwen2.5-VL of transformers', vision encoder included, biases and norms random too."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    text = {name: qwen.CONFIG[name] for name in (*names, "intermediate_size", "rms_norm_eps")}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 2e5, "mrope_section": [2, 3, 3]}
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": HIDDEN}
    tokens = {f"{name}_token_id": 1 for name in ("image", "video", "vision_start", "vision_end")}
    torch.manual_seed(0)
    made = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **tokens)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory, training_data: Any, model: Any) -> Any:
    """As transformers saves it, in several files."""
    root = tmp_path_factory.mktemp("qwen")
    made = qwen.Given.make(
        root, training_data.vision_tokenizer, lambda to: model.save_pretrained(to, max_shard_size="200KB")
    )
    assert len(list(made.folder.glob("*.safetensors"))) > 2
    return made


def _files(run: Path) -> dict[str, str]:
    """Hash of every file of the checkpoint: equal where every bit of every tensor is."""
    return {name: entry.sha256 for name, entry in verify_folder(qwen.step(run)).files.items()}


def _indexed(folder: Path) -> dict[str, Tensor]:
    index = json.loads((folder / INDEX).read_text())["weight_map"]
    return {name: load_file(folder / file)[name] for name, file in index.items()}


def test_text_logits_equal_transformers(given: Any, model: Any) -> None:
    from megatron_nextflow.config.loss import LossConfig
    from megatron_nextflow.model.attention import BlockRangeParams
    from megatron_nextflow.sequence.batch import collate
    from megatron_nextflow.sequence.pack_layout import build_pack_layout

    ids = torch.randint(0, ROWS, (1, 50), generator=torch.Generator().manual_seed(1))
    ours, state = load_model(qwen.step(given.run), "cpu")
    segment: Any = {"kind": "text", "doc": "a", "tokens": 50, "loss": True}
    none = np.zeros(0, np.int64)
    layout = build_pack_layout([segment], ids[0].numpy(), none, none, ours.vocabulary, 50, 64.0, LossConfig())
    batch = collate([layout])
    with torch.no_grad():
        found = ours(batch, BlockRangeParams.of(batch.visible))[:, 0, :ROWS]
        expected = model(input_ids=ids).logits[0]
    assert state.step == 0 and float(expected.std()) > 0.5
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_a_round_trip_is_exact_to_the_bit(given: Any) -> None:
    qwen.require_equal(_indexed(given.back), given.language)


def test_transformers_loads_what_was_exported(given: Any, model: Any) -> None:
    from transformers import AutoModel

    found, report = AutoModel.from_pretrained(given.back, output_loading_info=True)
    assert not report["missing_keys"] and set(report["unexpected_keys"]) == {"lm_head.weight"}
    ids = torch.arange(20)[None]
    with torch.no_grad():
        expected = model.model(input_ids=ids).last_hidden_state
        assert torch.equal(found.eval()(input_ids=ids).last_hidden_state, expected)


def test_an_export_comes_back_whole(given: Any, tmp_path: Path) -> None:
    again = given.into(tmp_path / "again", given.back)
    assert again.kept and again.state == qwen.state(given.run)
    assert _files(tmp_path / "again") == _files(given.run)


def test_every_process_of_any_layout_finds_its_part(given: Any) -> None:
    """The third layer's part of the second of two tensor-parallel processes, against transformers' own tensors."""
    hf = given.language
    layer = {name.removeprefix("model.layers.2."): t for name, t in hf.items() if name.startswith("model.layers.2.")}
    weights = [layer[f"self_attn.{x}_proj.weight"].reshape(qwen.GROUPS, -1, HIDDEN)[1] for x in "qkv"]
    biases = [layer[f"self_attn.{x}_proj.bias"].reshape(qwen.GROUPS, -1)[1] for x in "qkv"]
    expected = {
        ("self_attention.linear_qkv.weight", 0): torch.cat(weights),
        ("self_attention.linear_qkv.bias", 0): torch.cat(biases),
        ("self_attention.linear_proj.weight", 1): layer["self_attn.o_proj.weight"][:, HIDDEN // 2 :],
        ("mlp.linear_fc1.weight", 0): layer["mlp.up_proj.weight"],
        ("mlp.linear_fc2.weight", 1): layer["mlp.down_proj.weight"][:, FFN // 2 :],
    }

    def read(key: str, empty: Tensor, *place: tuple[int, int, int]) -> Tensor:
        asked = {"it": ShardedTensor.from_rank_offsets(key, empty, *place)}
        folder = str(qwen.step(given.run) / "megatron")
        found: Tensor = dist_checkpointing.load(asked, folder, validate_access_integrity=False)["it"]
        return found

    for (name, axis), tensor in expected.items():
        empty = torch.empty_like(tensor, memory_format=torch.contiguous_format)[None]
        found = read(f"decoder.layers.{name}", empty, (0, 2, qwen.LAYERS), (1 + axis, 1, 2))
        assert torch.equal(found[0], tensor), name
    # 320 + 2 + 48 rows are padded to 384; the second half begins with row 192.
    head = read("output_layer.weight", torch.empty(192, HIDDEN), (0, 1, 2))
    assert torch.equal(head[: ROWS - 192], hf["lm_head.weight"][192:])


def test_what_is_new_follows_the_rules_of_a_fresh_model(given: Any) -> None:
    found = qwen.plain(given.run)
    assert torch.equal(found["embedding.codebook"], torch.from_numpy(load_codebook(given.vision)))
    assert found["embedding.word_embeddings.weight"].shape == (384, HIDDEN)
    for new in (found["embedding.word_embeddings.weight"][ROWS:], found["output_layer.weight"][ROWS:]):
        assert float(new.std()) == pytest.approx(0.02, rel=0.05)
    assert float(found["embedding.connector.fc1.weight"].std()) == pytest.approx(1.0, rel=0.1)
    assert (found["embedding.connector.fc1.bias"] == 0).all()
    assert float(found["embedding.scale_count_gain"]) == pytest.approx(0.02)
    assert found["embedding.scale_embeddings"].shape == (18, HIDDEN)


def test_all_ways_of_writing_a_checkpoint_are_read(given: Any, tmp_path: Path) -> None:
    """In one file with flat settings and transformers 5's names; and the text model alone, with nested settings."""
    own = {"model": "model.language_model", "visual": "model.visual"}
    parts = {name: name.partition(".") for name in given.tensors}
    new = {own.get(first, first) + dot + rest: given.tensors[name] for name, (first, dot, rest) in parts.items()}
    assert "model.language_model.layers.0.mlp.up_proj.weight" in new and "model.visual.patch_embed.proj.weight" in new
    one = given.into(tmp_path / "1", qwen.write(tmp_path / "new", new), max_length=192)
    vision = [tensor for name, tensor in given.tensors.items() if name not in given.language]
    assert (one.vision, one.vision_parameters) == (len(vision), sum(tensor.numel() for tensor in vision))
    alone = {name.removeprefix("model."): tensor for name, tensor in given.language.items()}
    nested = {"model_type": "qwen2_5_vl", "text_config": {**qwen.CONFIG, "model_type": "qwen2_5_vl_text"}}
    two = given.into(tmp_path / "2", qwen.write(tmp_path / "alone", alone, nested), max_length=192)
    assert two.vision == 0 and two.state == one.state == qwen.state(given.run)
    assert _files(tmp_path / "1") == _files(tmp_path / "2") == _files(given.run)


def test_a_tied_head_is_a_copy_and_stays_tied(given: Any, tmp_path: Path) -> None:
    tensors = {name: tensor for name, tensor in given.language.items() if name != "lm_head.weight"}
    source = qwen.write(tmp_path / "hf", tensors, {**qwen.CONFIG, "tie_word_embeddings": True})
    assert given.into(tmp_path / "run", source).tied
    found = qwen.plain(tmp_path / "run")
    for name in ("output_layer.weight", "embedding.word_embeddings.weight"):
        assert torch.equal(found[name][:ROWS], tensors["model.embed_tokens.weight"])
    assert export_hf(tmp_path / "run", tmp_path / "back").tied
    qwen.require_equal(_indexed(tmp_path / "back"), tensors)
    assert json.loads((tmp_path / "back" / "config.json").read_text())["tie_word_embeddings"] is True


def test_a_head_that_is_there_counts_though_config_calls_it_tied(given: Any, tmp_path: Path) -> None:
    """As in transformers, which keeps it where it differs and warns of the config."""
    source = qwen.write(tmp_path / "hf", given.language, {**qwen.CONFIG, "tie_word_embeddings": True})
    assert not given.into(tmp_path / "run", source, max_length=192).tied
    assert _files(tmp_path / "run") == _files(given.run)


def test_weights_may_be_rounded_on_the_way(given: Any, tmp_path: Path) -> None:
    assert given.into(tmp_path / "run", precision="bf16").precision == "bf16"
    found = qwen.plain(tmp_path / "run")
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    norm = given.language["model.norm.weight"]
    assert torch.equal(found["decoder.final_layernorm.weight"], norm.to(torch.bfloat16))
    source = qwen.write(tmp_path / "half", {name: tensor.half() for name, tensor in given.language.items()})
    with pytest.raises(ConvertError, match="holds F16, a checkpoint bf16 or float32 throughout"):
        given.into(tmp_path / "no", source)
    given.into(tmp_path / "wide", source, precision="float32")
    assert torch.equal(qwen.plain(tmp_path / "wide")["decoder.final_layernorm.weight"], norm.half().float())
