"""A run with a trained vision tokenizer of its own choosing: copied, scored on the run's images, known by content."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from bound import bind_sources
from nextflow_data.common.whole_files import file_sha256
from nextflow_pipelines.contract.stage import StageError, read_manifest
from nextflow_pipelines.contract.tables import read_table
from nextflow_pipelines.registry import run_stage
from nextflow_pipelines.spark.context import RunContext, StageResult
from nextflow_tokenize.config.vision import VisionTokenizerConfig
from nextflow_tokenize.vision.identity import identity
from nextflow_tokenize.vision.model import VisionTokenizer

Results = Mapping[str, StageResult]


@pytest.fixture
def home(tmp_path: Path, warc: Path) -> Path:
    """A root that knows the sources and has no stage yet."""
    bind_sources(tmp_path / "run", [warc])
    return tmp_path / "run"


def take(root: Path, path: Path, chain: ModuleType, results: Results) -> StageResult:
    sections = {**chain.SECTIONS, "vision_tokenizer": VisionTokenizerConfig(path=str(path))}
    return run_stage("vision_tokenizer", RunContext(root), sections, results)


def test_a_given_tokenizer_is_copied_scored_and_used_as_one_trained_here(
    damaged_files: Any, results: Results, chain: ModuleType, home: Path
) -> None:
    trained = results["vision_tokenizer"]
    given = take(home, trained.dir / "tokenizer", chain, results)
    assert damaged_files(given.dir) == [] and given.fingerprint != trained.fingerprint
    assert given.facts["tokenizer"] == trained.facts["tokenizer"] == identity(given.dir / "tokenizer")
    names = [path.name for path in sorted((given.dir / "tokenizer").iterdir())]
    assert names == ["config.json", "evaluation.json", "held_out.png", "weights.safetensors"]
    scores = json.loads((given.dir / "tokenizer" / "evaluation.json").read_text())
    assert len(scores["images"]) == given.facts["evaluated_images"] > 5
    assert given.facts["given"] and given.facts["psnr"] == scores["psnr"] > 0 and 0 < given.facts["usage"] <= 1
    assert given.facts["images"] == given.facts["evaluated_images"] + given.facts["failed_images"]

    tokenized = run_stage("tokenize", RunContext(home), chain.SECTIONS, {**results, "vision_tokenizer": given})
    assert read_table(tokenized.dir, "tokenized").equals(read_table(results["tokenize"].dir, "tokenized"))


def test_its_identity_counts_and_not_its_place(results: Results, chain: ModuleType, home: Path, tmp_path: Path) -> None:
    shutil.copytree(results["vision_tokenizer"].dir / "tokenizer", tmp_path / "elsewhere")
    first = take(home, results["vision_tokenizer"].dir / "tokenizer", chain, results)
    again = take(home, tmp_path / "elsewhere", chain, results)
    assert again.skipped and again.dir == first.dir
    for path in first.dir.rglob("*.json"):
        assert str(tmp_path) not in path.read_text() and "elsewhere" not in path.read_text()
    manifest = read_manifest(first.dir)
    assert manifest["inputs"]["tokenizer"] == first.facts["tokenizer"]
    assert manifest["parameters"] == {"vision_tokenizer": {"given": True, "images": 64}}


def test_where_no_image_fits_it_there_are_no_scores(results: Results, chain: ModuleType, home: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = VisionTokenizerConfig(
        levels=(1024,), codebook_size=16, channels=8, decoder_channels=8, semantic_channels=8, semantic_dim=4, pixel_dim=4
    )
    name = VisionTokenizer(config).save(tmp_path / "large")
    given = take(home, tmp_path / "large", chain, results)
    assert given.facts["tokenizer"] == name and given.facts["evaluated_images"] == 0 and "psnr" not in given.facts
    assert [path.name for path in sorted((given.dir / "tokenizer").iterdir())] == ["config.json", "weights.safetensors"]


def test_what_is_no_tokenizer_stops_it_before_any_work(
    results: Results, chain: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_session(self: RunContext) -> Any:
        raise AssertionError("a session was asked for")

    monkeypatch.setattr(RunContext, "session", no_session)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="absent is not a folder"):
        take(tmp_path / "run", tmp_path / "absent", chain, results)
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        take(tmp_path / "run", tmp_path / "empty", chain, results)
    assert not (tmp_path / "run").exists()

    folder = tmp_path / "other"
    shutil.copytree(results["vision_tokenizer"].dir / "tokenizer", folder)
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "weights.safetensors")
    save_file({name: value for name, value in weights.items() if "decoder" not in name}, folder / "weights.safetensors")
    with pytest.raises(ValueError, match=r"the weights in .*other do not fit its config\.json"):
        take(tmp_path / "run", folder, chain, results)


def test_one_that_changes_meanwhile_is_refused(
    results: Results, chain: ModuleType, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "moving"
    shutil.copytree(results["vision_tokenizer"].dir / "tokenizer", folder)
    before = file_sha256(folder / "config.json")
    real = VisionTokenizer.load

    def change(directory: Path, device: str = "cpu") -> VisionTokenizer:
        (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
        return real(directory, device)

    monkeypatch.setattr(VisionTokenizer, "load", change)
    with pytest.raises(StageError, match="changed while the run began"):
        take(home, folder, chain, results)
    assert file_sha256(folder / "config.json") != before
