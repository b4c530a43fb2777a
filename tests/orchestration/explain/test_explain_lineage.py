"""Which commits belong to a run, where a root holds several."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from nextflow_orchestration.runs.lineage import NoRun, chain, shard_folder


def commit(root: Path, stage: str, fingerprint: str, inputs: dict[str, str], broken: bool = False) -> Path:
    """A committed stage that holds nothing but its manifest."""
    folder = root / f"{stage}-{fingerprint[:12]}"
    folder.mkdir(parents=True)
    manifest = {
        "format": 1, "schema_version": 1, "stage": stage, "version": 1, "fingerprint": fingerprint, "parameters": {},
        "inputs": inputs, "files": [], "counts": {}, "facts": {},
    }  # fmt: skip
    (folder / "manifest.json").write_text("{" if broken else json.dumps(manifest))
    return folder


def test_the_chain_follows_fingerprints_and_not_times(tmp_path: Path) -> None:
    for name in "ab":
        commit(tmp_path, "ingest", name * 64, {"file.warc": "0" * 64})
    first = commit(tmp_path, "filter", "c" * 64, {"ingest": "a" * 64})
    commit(tmp_path, "dedup", "e" * 64, {"filter": "c" * 64})
    # Newer commits of other settings do not enter the chain of the stage furthest down.
    commit(tmp_path, "filter", "d" * 64, {"ingest": "b" * 64})
    commit(tmp_path, "ingest", "f" * 64, {}, broken=True)
    assert {name: found.folder.name for name, found in chain(tmp_path).items()} == {
        "ingest": "ingest-aaaaaaaaaaaa", "filter": "filter-cccccccccccc", "dedup": "dedup-eeeeeeeeeeee",
    }  # fmt: skip
    assert list(chain(tmp_path, first)) == ["ingest", "filter"]
    assert next(iter(chain(tmp_path, tmp_path / "filter-dddddddddddd").values())).folder.name == "ingest-bbbbbbbbbbbb"
    assert shard_folder(chain(tmp_path)) is None


def test_an_uncommitted_stage_is_none(tmp_path: Path) -> None:
    (tmp_path / "ingest-aaaaaaaaaaaa").mkdir()
    with pytest.raises(NoRun):
        chain(tmp_path)
