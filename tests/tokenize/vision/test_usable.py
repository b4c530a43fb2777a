"""What a folder must be to be used as a tokenizer, and which levels can be asked of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from nextflow_tokenize.config.vision import VisionTokenizerConfig
from nextflow_tokenize.vision.model import VisionTokenizer
from nextflow_tokenize.vision.usable import check_levels, read_tokenizer_config

CONFIG = VisionTokenizerConfig(
    levels=(128,), codebook_size=32, semantic_dim=4, pixel_dim=6, channels=8, decoder_channels=8, semantic_channels=8
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    VisionTokenizer(CONFIG).save(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def test_a_saved_tokenizer_is_read(folder: Path) -> None:
    assert read_tokenizer_config(folder) == CONFIG


def test_what_is_no_tokenizer_is_named_in_one_line(folder: Path, tmp_path: Path) -> None:
    def refuse(error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message) as caught:
            read_tokenizer_config(folder)
        assert "\n" not in str(caught.value) and str(folder) in str(caught.value)

    weights, settings = (folder / "weights.safetensors").read_bytes(), (folder / "config.json").read_text()
    (folder / "weights.safetensors").write_bytes(weights[: len(weights) // 2])
    refuse(ValueError, r"weights\.safetensors holds no tokenizer's weights")
    (folder / "weights.safetensors").write_bytes(weights)
    (folder / "config.json").write_text(settings.replace('"codebook_size": 32', '"codebook_size": 64'))
    refuse(ValueError, r"codebook of \(32, 10\), its config.json says \(64, 10\)")
    (folder / "config.json").write_text(settings.replace('"codebook_size": 32', '"codebook_size": "many"'))
    refuse(ValueError, r"config\.json is no tokenizer's settings: codebook_size")
    (folder / "config.json").write_text(json.dumps({"model_type": "other"}))
    refuse(ValueError, "not a vision tokenizer of format 2")
    (folder / "config.json").unlink()
    refuse(FileNotFoundError, r"config\.json is missing")
    with pytest.raises(FileNotFoundError, match="absent is not a folder"):
        read_tokenizer_config(tmp_path / "absent")


def test_levels_that_were_not_trained_and_square_schedules_are_refused() -> None:
    check_levels(CONFIG, [128])
    with pytest.raises(ValueError, match=r"levels \[256\] were not trained: the vision tokenizer has \[128\]; set tokenize"):
        check_levels(CONFIG, [256, 128])
    with pytest.raises(ValueError, match=r"one square schedule of sides \[1, 2, 4\]"):
        check_levels(CONFIG.model_copy(update={"sides": (1, 2, 4)}), [128])
