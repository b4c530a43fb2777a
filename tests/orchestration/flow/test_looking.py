"""What `mnf run` finds committed without running anything: `--from`, and what `--dry-run` says. No Spark runs here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from nextflow_data.document import SCHEMA_VERSION
from nextflow_orchestration.cli import app
from nextflow_orchestration.flow.dry_run import dry_run
from nextflow_orchestration.flow.looking import look, require_before
from nextflow_orchestration.recipes.errors import RecipeError
from nextflow_orchestration.recipes.run import Recipe, load_run
from nextflow_pipelines.contract.stage import Corrupt
from nextflow_pipelines.registry import STAGES
from typer.testing import CliRunner

FIXTURE = Path(__file__).parents[2] / "tokenize" / "fixtures" / "shards"
FACTS = {"vision_tokenizer": {"tokenizer": "v"}, "text_tokenizer": {"tokenizer": "t"}, "pack": {"packs": 3}}
TRAIN = "train: {model: {hidden_size: 128, layers: 2}, data: {global_batch_size: 2}}\n"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "pages.warc").write_bytes(b"x" * 1_500_000)
    path = tmp_path / "r.yaml"
    path.write_text(f"name: r\nroot: {tmp_path}/run\ninput: {tmp_path}/pages.warc\n{TRAIN}")
    return path


def commit(recipe: Recipe, last: str) -> None:
    """Every stage up to `last` as if it had run: under its fingerprint, with the facts that others read."""
    for number, name in enumerate(STAGES):
        found = look(recipe, list(STAGES)[: number + 1]).stages[name]
        found.dir.mkdir(parents=True)
        files = []
        if name == "pack":
            shutil.copytree(FIXTURE, found.dir / "shards")
            files = [{"path": "shards/shard-000000.tar", "bytes": (FIXTURE / "shard-000000.tar").stat().st_size}]
        manifest: dict[str, Any] = {"format": 1, "schema_version": SCHEMA_VERSION, "stage": name, "version": 1}
        manifest |= {"fingerprint": found.fingerprint, "parameters": {}, "inputs": {}, "files": files, "counts": {}}
        (found.dir / "manifest.json").write_text(json.dumps(manifest | {"facts": FACTS.get(name, {})}))
        if name == last:
            return


def said(path: Path, **stretch: str) -> dict[str, str]:
    """The dry run's lines by part."""
    return {line.split()[0]: line for line in dry_run(*load_run(path, None, **stretch), [])}


def everything(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_with_nothing_there_all_would_run_and_nothing_is_written(recipe: Path, tmp_path: Path) -> None:
    before = everything(tmp_path)
    done = CliRunner().invoke(app, ["run", str(recipe), "--dry-run"])
    assert done.exit_code == 0 and everything(tmp_path) == before
    lines = {line.split()[0]: line for line in done.output.splitlines()}
    assert list(lines)[: len(STAGES) + 4] == ["input", *STAGES, "train", "generate", "report"]
    assert "pages.warc (1.5 MB)" in lines["input"]
    assert "would run  into ingest-" in lines["ingest"] and "reads 1.5 MB" in lines["ingest"]
    into = lines["ingest"].split("into ")[1].split(";")[0]
    assert f"into filter-{lines['filter'].split('into filter-')[1][:12]}; reads {into} (not there yet)" in lines["filter"]
    assert "cannot be known before text_tokenizer has run" in lines["tokenize"]
    assert "cannot be known before pack has run" in lines["train"] and "before train has run" in lines["generate"]


def test_what_is_committed_is_kept_and_the_rest_says_what_it_reads(recipe: Path) -> None:
    commit(load_run(recipe)[0], "pack")
    lines = said(recipe)
    assert all(lines[name].split()[1] == "kept" for name in STAGES)
    size = (FIXTURE / "shard-000000.tar").stat().st_size / 1e6
    assert (
        "100 steps, into train-" in lines["train"] and f"reads pack-{lines['pack'][33:45]} ({size:.1f} MB)" in lines["train"]
    )
    assert list(said(recipe, last="pack"))[-1] == "pack"
    recipe.write_text(recipe.read_text() + "caption: {max_characters: 99}\n")
    lines = said(recipe)
    assert [name for name in STAGES if lines[name].split()[1] == "kept"] == ["ingest", "filter", "dedup", "vision_tokenizer"]


def test_from_a_stage_what_lies_before_must_be_there(recipe: Path) -> None:
    loaded, which = load_run(recipe, None, "caption", "pack")
    make = "run mnf run r.yaml --set 'a=b c' --to dedup"
    with pytest.raises(
        RecipeError, match=rf"^--from caption needs .* ingest \(ingest-[0-9a-f]+\) is not committed in .*: {make}$"
    ):
        require_before(loaded, which, ["mnf", "run", "r.yaml", "--set", "a=b c"])
    commit(loaded, "pack")
    assert list(require_before(loaded, which, []).stages) == ["ingest", "filter", "dedup"]
    with pytest.raises(RecipeError, match=r"--from generate needs .* train \(train-[0-9a-f]+\) is at step 0 of 100"):
        require_before(*load_run(recipe, None, "generate"), [])
    refused = CliRunner().invoke(app, ["run", str(recipe), "--from", "generate", "--dry-run"])
    assert refused.exit_code == 2 and "--to train" in refused.output.replace("\n", " ")


def test_a_damaged_commit_is_not_taken_for_one(recipe: Path) -> None:
    loaded, which = load_run(recipe)
    commit(loaded, "pack")
    next(loaded.root.glob("pack-*/shards/*.tar")).write_bytes(b"")
    with pytest.raises(Corrupt, match=r"has 0 bytes, not \d+ .*; remove the folder and run again"):
        list(dry_run(loaded, which, []))


def test_a_sample_that_is_not_made_yet_is_not_made(recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(f"name: r\nroot: {tmp_path}/run\ninput: sample\n")
    lines = said(recipe)
    assert "would be made" in lines["input"] and "before the input is there" in lines["pack"]
    assert list(lines)[-1] == "report" and "train" not in lines and not (tmp_path / "run").exists()
