"""The whole way with its root in a bucket, behind a network that fails: the bytes of the local run, and found from there."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fault_proxy import FaultProxy
from nextflow_data.storage.files import put
from nextflow_data.storage.store_path import AnyPath, StorePath
from nextflow_orchestration.runs.lineage import Commit, chain
from nextflow_pipelines.contract.stage import stage_file

STAGES = ("ingest", "filter", "dedup", "caption", "vision_tokenizer", "text_tokenizer", "tokenize", "pack")


@dataclass(frozen=True)
class Machine:
    """A machine that has nothing but a recipe, whose root is in a store; its working folder and cache lie in `folder`."""

    runner: Any
    folder: Path
    recipe: Path

    @classmethod
    def of(cls, local: Any, folder: Path, root: StorePath, endpoint: str, name: str = "tiny") -> Machine:
        """`local`: the runner whose recipe it has, but for its places."""
        folder.mkdir()
        text = local.recipe.read_text().replace("name: tiny", f"name: {name}").replace(str(local.root), str(root))
        reached = f"{{s3: {{endpoint: '{endpoint}', path_style: true, attempts: 12}}, cache: {folder}/cache}}"
        recipe = folder / f"{name}.yaml"
        recipe.write_text(f"{text}work: {folder}/work\nstorage: {reached}\n")
        return cls(local, folder, recipe)

    def finish(self, *arguments: str) -> str:
        """What `mnf` printed."""
        out: str = self.runner.finish(*(arguments or ("run", str(self.recipe))))
        return out


def content(folder: AnyPath, entry: Any) -> bytes:
    return stage_file(folder, entry).read_bytes()


def same_bytes(one: Commit, other: Commit) -> None:
    """Every file of two commits of one stage, read back and compared."""
    assert one.manifest == other.manifest
    for entry in one.manifest["files"]:
        here, there = content(one.folder, entry), content(other.folder, entry)
        assert here == there and hashlib.sha256(here).hexdigest() == entry["sha256"], entry["path"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_in_a_bucket_through_a_failing_network_is_the_local_run(
    whole: Any, s3_root: StorePath, fault_proxy: FaultProxy, tmp_path: Path
) -> None:
    local, _ = whole
    fault_proxy.rates = dict.fromkeys(("error_500", "slow_down", "cut", "slow", "lost", "stale", "refused"), 0.02)
    runner = Machine.of(local, tmp_path / "first", s3_root, fault_proxy.endpoint)
    said = runner.finish()
    assert set(fault_proxy.done) >= {"error_500", "slow_down", "cut", "lost"}, fault_proxy.done
    mine, its = chain(local.root), chain(s3_root)
    assert list(mine) == list(its) == list(STAGES)
    for stage in STAGES:
        same_bytes(mine[stage], its[stage])
    # Nothing that runs was put into the bucket: what is there is committed, or a record of it.
    kept = {path.name for path in s3_root.iterdir()}
    assert {name.partition("-")[0] for name in kept} - {"train", "generate"} <= {
        *STAGES, "metrics", "recipes", "recipe.json", "run.json", "report.html", "sources", ".locks", ".leases",
    }, kept  # fmt: skip
    assert any((runner.folder / "work").glob("train-*/checkpoints/latest"))

    # Another machine: nothing of the first is there but the bucket.
    fault_proxy.rates = {}
    fault_proxy.requests.clear()
    fresh = Machine.of(local, tmp_path / "second", s3_root, fault_proxy.endpoint)
    said = fresh.finish()
    assert said.count("kept") >= len(STAGES) + 3, said  # train, generate and report too
    read = [path for method, path in fault_proxy.requests if method == "GET" and ".tar" in path]
    assert read == [] and len(fault_proxy.requests) < 600, fault_proxy.requests
    report = s3_root / "report.html"
    assert "https://docs.example/0.html" in report.read_text() and "as they were written" not in report.read_text()

    shards = its["pack"].folder / "shards"
    option = ("--recipe", str(fresh.recipe))
    assert "nothing is wrong" in fresh.finish("audit", str(shards), *option, "--report", str(tmp_path / "audit.html"))
    told = fresh.finish("explain", "https://docs.example/0.html", *option)
    assert "In the shards" in told
    picture = tmp_path / "picture.png"
    fresh.finish("generate", "--prompt", "a cup", "--out", str(picture), *option)
    assert picture.is_file()
    said = fresh.finish("train", str(fresh.recipe), "--set", "train.steps=5")
    assert "step 5: done" in said
    (resumed,) = (fresh.folder / "work").glob("train-*")
    assert "fetched" in (resumed / "events.jsonl").read_text()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_reads_its_input_from_the_bucket_too(whole: Any, s3_root: StorePath, tmp_path: Path) -> None:
    local, _ = whole
    source = s3_root / "input" / "small.warc.gz"
    put(source, local.warc.read_bytes())
    machine = Machine.of(local, tmp_path / "machine", s3_root / "run", s3_root.config.s3.endpoint or "")
    machine.recipe.write_text(machine.recipe.read_text().replace(f"[{local.warc}]", f"['{source}']"))
    machine.finish("run", str(machine.recipe), "--to", "pack")
    mine, its = chain(local.root)["pack"], chain(s3_root / "run")["pack"]
    tars = [entry for entry in mine.manifest["files"] if entry["path"].endswith(".tar")]
    assert tars and [entry for entry in its.manifest["files"] if entry["path"].endswith(".tar")] == tars
