"""A vision tokenizer named by the recipe: refused before any work where it cannot be used, and shown with its own values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from nextflow_orchestration.recipes.errors import RecipeError
from nextflow_orchestration.recipes.run import Recipe, load_recipe
from nextflow_orchestration.report.from_tokenizer import tokenizer
from nextflow_orchestration.report.pictures import Gallery
from nextflow_orchestration.runs.lineage import Commit
from nextflow_tokenize.config.vision import VisionTokenizerConfig
from nextflow_tokenize.vision.model import VisionTokenizer


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained tokenizer for level 128."""
    folder = tmp_path_factory.mktemp("given") / "tokenizer"
    sizes = {"codebook_size": 48, "semantic_dim": 3, "pixel_dim": 5, "levels": (128,), "channels": 8, "decoder_channels": 8}
    torch.manual_seed(0)
    VisionTokenizer(VisionTokenizerConfig(**sizes)).save(folder)  # type: ignore[arg-type]
    return folder


def recipe(tmp_path: Path, *overrides: str) -> Recipe:
    path = tmp_path / "r.yaml"
    path.write_text("name: tiny\nroot: runs/tiny\ninput: sample\n")
    return load_recipe(path, list(overrides))


def test_a_tokenizer_that_can_be_used_passes(given: Path, tmp_path: Path) -> None:
    recipe(tmp_path).check_inputs()
    levels = ("tokenize.level=128", "tokenize.lower_levels=[]")
    recipe(tmp_path, f"vision_tokenizer.path={given}", *levels).check_inputs()
    recipe(tmp_path, f"vision_tokenizer.path={given}", "vision_tokenizer.training.steps=3", *levels).check_inputs()


def test_what_cannot_be_used_is_one_line_before_any_work(given: Path, tmp_path: Path) -> None:
    def refuse(*overrides: str) -> str:
        with pytest.raises(RecipeError) as caught:
            recipe(tmp_path, *overrides).check_inputs()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "absent is not a folder" in refuse(f"vision_tokenizer.path={tmp_path}/absent")
    assert "config.json is missing" in refuse(f"vision_tokenizer.path={tmp_path}")
    message = refuse(f"vision_tokenizer.path={given}")
    assert message.startswith("tokenize: levels [256] were not trained: the vision tokenizer has [128]; set tokenize.level")
    assert "levels [512]" in refuse("tokenize.level=512")


def commit(folder: Path, source: Path, evaluation: dict[str, Any] | None, **facts: Any) -> Commit:
    (folder / "tokenizer").mkdir(parents=True)
    for path in source.iterdir():
        (folder / "tokenizer" / path.name).write_bytes(path.read_bytes())
    if evaluation is not None:
        (folder / "tokenizer" / "evaluation.json").write_text(json.dumps(evaluation))
    manifest = {"facts": {"tokenizer": "ab" * 32, **facts}, "parameters": {"vision_tokenizer": {"given": True}}}
    return Commit(folder, manifest)  # type: ignore[arg-type]


def test_the_report_shows_the_given_tokenizers_own_values(given: Path, tmp_path: Path) -> None:
    scale = {"scale": 1, "tokens": 1, "distinct": 1, "perplexity": 1.0}
    scored = {"sha256": "cd" * 32, "grid": [8, 8], "scales": 8, "psnr": 11.25}
    evaluation = {"images": [scored], "scales": [scale], "psnr": 11.25, "usage": 0.5}
    part = tokenizer(commit(tmp_path / "stage", given, evaluation, given=True), Gallery())
    assert part is not None and part.codebook == 48 and part.curves == ()
    facts = {fact.name: fact.value for fact in part.facts}
    assert facts["Codebook"].startswith("48 entries, each a semantic code of 3 and a pixel code of 5 ")
    assert facts["PSNR"] == "11.25 dB over 1 images" and "Trained on" not in facts
    assert part.note == "The tokenizer was given and not trained by this run: these scores are of this run's images."


def test_a_given_tokenizer_without_scores_is_shown_too(given: Path, tmp_path: Path) -> None:
    part = tokenizer(commit(tmp_path / "stage", given, None, given=True), Gallery())
    assert part is not None and part.pairs == () and part.usage == ()
    assert "PSNR" not in {fact.name for fact in part.facts} and part.note.endswith("none of this run's images fits it.")
