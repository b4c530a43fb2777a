"""What `mnf convert` is given and cannot convert: each is said in one line, and nothing is left of it."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nextflow_tokenize.config.tokenize import TextTokenizerConfig
from nextflow_tokenize.documents.text_tokenizer import train_bpe
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystem

from megatron_nextflow.conversion import to_hf
from megatron_nextflow.conversion.from_hf import import_hf
from megatron_nextflow.conversion.hf_folder import INDEX, SINGLE
from megatron_nextflow.conversion.nextflow_part import FILE
from megatron_nextflow.conversion.output_folder import DiskFilled
from megatron_nextflow.conversion.tensor_names import ConvertError
from megatron_nextflow.conversion.to_hf import export_hf

_spec = importlib.util.spec_from_file_location("qwen_weights", Path(__file__).with_name("qwen_weights.py"))
assert _spec is not None and _spec.loader is not None
qwen = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(qwen)
Change = Callable[[dict[str, Tensor], dict[str, Any]], None]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory, training_data: Any) -> Any:
    root = tmp_path_factory.mktemp("given")
    return qwen.Given.make(root, training_data.vision_tokenizer, lambda folder: qwen.write(folder, qwen.tensors()))


def _without(name: str) -> Change:
    def change(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        del tensors[name]

    return change


def _with(name: str, tensor: Tensor) -> Change:
    def change(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        tensors[name] = tensor

    return change


def _config(**settings: Any) -> Change:
    def change(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        config.update(settings)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("model.layers.1.mlp.up_proj.weight"), r"lacks layers\.1\.mlp\.up_proj\.weight; config\.json or the files"),
        (_without("model.layers.1.self_attn.k_proj.bias"), "no bias on queries, keys and values"),
        (_without("lm_head.weight"), r"lacks lm_head\.weight"),
        (_with("model.norm.weight", torch.ones(7)), r"model\.norm\.weight has shape \[7\], config\.json asks for \[64\]"),
        (_with("model.layers.0.self_attn.q_norm.weight", torch.ones(16)), "q_norm.weight, which Qwen2.5-VL's"),
        (_with("model.norm.weight", torch.ones(64, dtype=torch.int8)), "is I8, not one of BF16, F32, F16: quantised"),
        (_with("model.norm.weight", torch.ones(64).to(torch.float8_e4m3fn)), "is F8_E4M3, not one of BF16, F32, F16"),
        (_with("model.norm.weight", torch.ones(64).bfloat16()), "holds BF16 and F32, a checkpoint bf16 or float32"),
        (_with("norm.weight", torch.ones(64)), r"holds norm\.weight twice"),
        (_config(model_type="qwen3_vl"), "model_type is 'qwen3_vl'"),
        (_config(hidden_size=None), "does not say hidden_size"),
        (_config(quantization_config={"quant_method": "fp8"}), "the weights are quantised"),
        (_config(use_sliding_window=True), "sliding window"),
        (_config(layer_types=["full_attention", "sliding_attention"]), "sliding window"),
        (_config(hidden_act="gelu"), "hidden_act is 'gelu'"),
        (_config(attention_bias=False), "attention_bias is false"),
        (_config(head_dim=32), "head_dim 32 × 4 heads is not hidden_size 64"),
        (_config(rope_scaling={"rope_type": "yarn", "mrope_section": [2, 3, 3]}), "rotary positions are .*yarn"),
        (_config(rope_scaling=None), "not Qwen2.5-VL's with rope_theta and mrope_section"),
        (_config(rope_scaling="mrope"), "a setting of the wrong type"),
        (_config(text_config="text"), "a setting of the wrong type"),
        (_config(layer_types=3), "a setting of the wrong type"),
        (_config(head_dim="16", num_attention_heads="4"), "a setting of the wrong type"),
        (_config(num_key_value_heads=3), "heads 4 is not divisible by query_groups 3"),
        (_config(vocab_size="many"), "text_vocabulary Input should be a valid integer"),
        (_config(vocab_size=100), r"t\.json has \d+ ids, .* embedding 100 rows"),
    ],
)  # fmt: skip
def test_what_cannot_be_converted_is_refused(change: Change, message: str, given: Any, tmp_path: Path) -> None:
    tensors, config = qwen.tensors(), dict(qwen.CONFIG)
    change(tensors, config)
    with pytest.raises(ConvertError, match=message):
        given.into(tmp_path / "run", qwen.write(tmp_path / "hf", tensors, config))
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_a_folder_that_is_not_whole_is_refused(given: Any, tmp_path: Path) -> None:
    source = Path(shutil.copytree(given.back, tmp_path / "hf"))
    index = json.loads((source / INDEX).read_text())["weight_map"]
    file = source / index["model.layers.1.mlp.up_proj.weight"]
    names = sorted(name for name, where in index.items() if where == file.name)

    def refused(message: str) -> None:
        with pytest.raises(ConvertError, match=message):
            given.into(tmp_path / "run", source)
        assert not (tmp_path / "run").exists()

    content = file.read_bytes()
    for length in (len(content) - 1, 5, 0):
        file.write_bytes(content[:length])
        refused(rf"{file.name} is not a whole safetensors file")
    save_file({name: torch.ones(1) for name in names[1:]}, file)
    refused(rf"{file.name} lacks {names[0]}, which {INDEX} says it holds")
    file.unlink()
    refused(rf"{INDEX} names {file.name}, which is not in the folder")
    (source / INDEX).write_text('{"weight_map": {"a": "../t.json"}}', encoding="utf-8")
    refused("which is not in the folder")
    for wrong in ("{}", '{"weight_map": []}', "no json"):
        (source / INDEX).write_text(wrong, encoding="utf-8")
        refused("is not an index of safetensors files")
    (source / INDEX).unlink()
    refused(f"holds neither {INDEX} nor {SINGLE}")
    (source / "config.json").write_text("{", encoding="utf-8")
    refused(r"config\.json cannot be read")


def test_another_tokenizer_than_the_exports_is_refused(given: Any, tmp_path: Path) -> None:
    other = tmp_path / "t.json"
    train_bpe(["some other words altogether altogether"], TextTokenizerConfig(vocab_size=280), other)
    with pytest.raises(ConvertError, match=r"nextflow\.safetensors belongs to the text tokenizer .* remove the file"):
        import_hf(given.back, given.vision, other, tmp_path / "run")
    broken = Path(shutil.copytree(given.back, tmp_path / "broken"))
    kept = load_file(broken / FILE)
    with safe_open(given.back / FILE, "pt") as stream:
        metadata = stream.metadata()
    save_file({**kept, "embedding.codebook": torch.ones(9, 10)}, broken / FILE, metadata)
    with pytest.raises(ConvertError, match=r"embedding\.codebook is of shape \[9, 10\], the model's is \[48, 10\]"):
        given.into(tmp_path / "run", broken)
    save_file(kept, broken / FILE)
    with pytest.raises(ConvertError, match="does not say what it was exported from"):
        given.into(tmp_path / "run", broken)


def test_what_is_there_is_not_written_over(given: Any) -> None:
    with pytest.raises(ConvertError, match="exists and is not written over"):
        given.into(given.run)
    with pytest.raises(ConvertError, match="exists and is not written over"):
        export_hf(given.run, given.back)
    with pytest.raises(ConvertError, match="is neither a checkpoint's folder nor that of a training with one"):
        export_hf(given.back, given.back.parent / "new")


def test_a_full_disk_leaves_nothing(given: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def full(system: FileSystem, path: Path, mode: str) -> Iterator[Any]:
        """Of it torch says nothing but "unexpected pos"."""
        with open("/dev/full", "wb") as stream:
            yield stream

    def says_so(*_: Any, **__: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(FileSystem, "create_stream", full)
        free = iter([SimpleNamespace(free=10**9), SimpleNamespace(free=4096)])
        patch.setattr(shutil, "disk_usage", lambda _: next(free))
        with pytest.raises(DiskFilled, match=r"the disk filled up while .*run was written; nothing of it is left"):
            given.into(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(to_hf, "save_file", says_so)
        with pytest.raises(DiskFilled, match=r"the disk filled up while .*hf was written"):
            export_hf(given.run, tmp_path / "hf")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    for write in (lambda: given.into(tmp_path / "run"), lambda: export_hf(given.run, tmp_path / "hf")):
        with pytest.raises(ConvertError, match=r"will take 0\.00 GB, the disk has 0\.00 GB free"):
            write()
    assert list(tmp_path.iterdir()) == []
