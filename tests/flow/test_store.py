"""The whole way with its root in a bucket, behind a network that fails: the bytes of the local run, and found from there."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from fault_proxy import FaultProxy
from nextflow_data.storage.files import put
from nextflow_data.storage.store_path import AnyPath, StorePath
from nextflow_orchestration.runs.lineage import Commit, chain
from nextflow_pipelines.contract.stage import WORK, stage_file

STAGES = ("ingest", "filter", "dedup", "caption", "vision_tokenizer", "text_tokenizer", "tokenize", "pack")
REQUESTS_A_PART = 10
"""At most, of a part that is committed: its manifest, a listing of its files, a few questions of what is there."""


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


def kept_parts(said: str) -> set[str]:
    """Parts that a run found done, from its lines "= part kept"."""
    return {line.split()[1] for line in said.splitlines() if line.split()[:1] == ["="]}


def bodies_of(proxy: FaultProxy, *names: str) -> list[str]:
    """Requests for bytes of objects whose names end so."""
    asked = [unquote(urlsplit(path).path) for method, path in proxy.requests if method == "GET"]
    return [path for path in asked if path.endswith(names)]


def losses(metrics: AnyPath) -> list[float]:
    return [json.loads(line)["loss"] for line in metrics.read_text().splitlines()]


def content(folder: AnyPath, entry: Any) -> bytes:
    return stage_file(folder, entry).read_bytes()


def same_bytes(one: Commit, other: Commit) -> None:
    """Every file of two commits of one stage, read back and compared."""
    assert one.manifest == other.manifest
    for entry in one.manifest["files"]:
        here, there = content(one.folder, entry), content(other.folder, entry)
        assert here == there and hashlib.sha256(here).hexdigest() == entry["sha256"], entry["path"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_in_a_bucket_through_a_failing_network_is_the_local_run(
    whole: Any, s3_root: StorePath, fault_proxy: FaultProxy, tmp_path: Path
) -> None:
    local, _ = whole
    fault_proxy.rates = dict.fromkeys(("error_500", "slow_down", "cut", "slow", "lost", "stale", "refused"), 0.02)
    runner = Machine.of(local, tmp_path / "first", s3_root, fault_proxy.endpoint)
    runner.finish()
    assert set(fault_proxy.done) >= {"error_500", "slow_down", "cut", "lost"}, fault_proxy.done
    mine, its = chain(local.root), chain(s3_root)
    assert list(mine) == list(its) == list(STAGES)
    for stage in STAGES:
        same_bytes(mine[stage], its[stage])
    (here,), (there,) = local.root.glob("train-*/metrics.jsonl"), s3_root.glob("train-*/metrics.jsonl")
    assert losses(here) == losses(there)
    # Nothing that runs was put into the bucket: what is there is committed, or a record of it, or was missed by an old
    # listing as it was cleared away.
    kept = {path.name for path in s3_root.iterdir()}
    assert {name.partition("-")[0] for name in kept} <= {
        *STAGES, "train", "generate", "metrics", "recipes", "recipe.json", "run.json", "report.html", "sources", ".locks",
        "first_pass",
    }, kept  # fmt: skip
    assert all(f"/{WORK}/" in str(path) for path in s3_root.glob("first_pass-*/**/*"))
    assert any((runner.folder / "work").glob("train-*/checkpoints/latest"))

    # Another machine: nothing of the first is there but the bucket.
    fault_proxy.rates = {}
    fault_proxy.requests.clear()
    fresh = Machine.of(local, tmp_path / "second", s3_root, fault_proxy.endpoint)
    said = fresh.finish()
    parts = {*STAGES, "train", "generate", "report"}
    assert kept_parts(said) == parts, said
    assert bodies_of(fault_proxy, ".tar", ".parquet", ".npy", ".distcp") == []
    assert len(fault_proxy.requests) <= REQUESTS_A_PART * len(parts), fault_proxy.requests
    report = (s3_root / "report.html").read_text()
    assert "https://docs.example/0.html" in report and "as written" in report
    assert "Not shown" not in report and "are not shown" not in report

    shards = its["pack"].folder / "shards"
    option = ("--recipe", str(fresh.recipe))
    assert "nothing is wrong" in fresh.finish("audit", str(shards), *option, "--report", str(tmp_path / "audit.html"))
    assert "In the shards" in fresh.finish("explain", "https://docs.example/0.html", *option)
    picture = tmp_path / "picture.png"
    fresh.finish("generate", "--prompt", "a cup", "--out", str(picture), *option)
    assert picture.is_file()
    assert "step 5: done" in fresh.finish("train", str(fresh.recipe), "--set", "train.steps=5")
    (resumed,) = (fresh.folder / "work").glob("train-*")
    assert "fetched" in (resumed / "events.jsonl").read_text()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_reads_its_input_from_the_bucket_too(
    whole: Any, s3_root: StorePath, fault_proxy: FaultProxy, tmp_path: Path
) -> None:
    local, _ = whole
    source = s3_root / "input" / "small.warc.gz"
    put(source, local.warc.read_bytes())
    machine = Machine.of(local, tmp_path / "machine", s3_root / "run", fault_proxy.endpoint)
    machine.recipe.write_text(machine.recipe.read_text().replace(f"[{local.warc}]", f"['{source}']"))
    machine.finish("run", str(machine.recipe), "--to", "pack")
    assert bodies_of(fault_proxy, ".warc.gz")
    mine, its = chain(local.root)["pack"], chain(s3_root / "run")["pack"]
    tars = [entry for entry in mine.manifest["files"] if entry["path"].endswith(".tar")]
    assert tars and [entry for entry in its.manifest["files"] if entry["path"].endswith(".tar")] == tars

    fault_proxy.requests.clear()
    said = machine.finish("run", str(machine.recipe), "--to", "pack")
    assert kept_parts(said) == set(STAGES), said
    assert bodies_of(fault_proxy, ".warc.gz", ".tar", ".parquet") == []
    assert len(fault_proxy.requests) <= REQUESTS_A_PART * len(STAGES), fault_proxy.requests
