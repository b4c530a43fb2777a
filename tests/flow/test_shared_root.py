"""Two recipes with one root, at once: what both need is made once, what differs is kept apart, and each finds its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from nextflow_orchestration.runs.lineage import chain
from nextflow_orchestration.runs.records import recipes_of

pytestmark = pytest.mark.slow


@pytest.mark.timeout(1800)
def test_two_recipes_run_at_once_in_one_root(whole: Any, tmp_path: Path) -> None:
    local, _ = whole
    runner = type(local)(tmp_path, local.warc, local.home)
    text = runner.recipe.read_text()
    recipes = {"tiny": runner.recipe, "other": tmp_path / "other.yaml"}
    recipes["other"].write_text(text.replace("name: tiny", "name: other").replace("vocab_size: 400", "vocab_size: 350"))
    processes = {name: runner.start("run", str(path), "--to", "pack") for name, path in recipes.items()}
    said = {name: process.communicate()[0] for name, process in processes.items()}
    assert all(process.returncode == 0 for process in processes.values()), said
    assert any("is also the root of" in one for one in said.values())
    assert recipes_of(runner.root) == ["other", "tiny"]
    made = {name: chain(runner.root, recipe=name) for name in recipes}
    for stage in ("ingest", "filter", "dedup", "caption", "vision_tokenizer"):
        assert made["tiny"][stage] == made["other"][stage] and len(list(runner.root.glob(f"{stage}-*/manifest.json"))) == 1
    assert made["tiny"]["pack"].folder != made["other"]["pack"].folder
    assert made["tiny"]["pack"].manifest == chain(local.root)["pack"].manifest
    for name, path in recipes.items():
        told = runner.finish("explain", "shard-000000:000000-000000", "--recipe", str(path))
        assert f"Of the run of '{name}'; " in told
    # A training of the one that did not end last is on its own shards.
    assert "step 2: done" in runner.finish(
        "train", str(recipes["tiny"]), "--set", "train.steps=2", "--set", "train.checkpoint_interval=2"
    )
    (training,) = runner.root.glob("train-*/train.json")
    assert str(made["tiny"]["pack"].folder / "shards") in training.read_text()
