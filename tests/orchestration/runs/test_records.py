"""Two recipes with one root: each finds its own run, and what is the last one's says whose it is."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from nextflow_data.storage.files import put
from nextflow_data.storage.store_path import AnyPath, StorePath
from nextflow_orchestration.explain.find import explain
from nextflow_orchestration.runs.lineage import NoRun, chain
from nextflow_orchestration.runs.records import (
    RunPlace,
    begin_run,
    last_recipe,
    last_run,
    last_training,
    recipes_of,
    remember_run,
)


def commit(root: AnyPath, stage: str, fingerprint: str, inputs: dict[str, str]) -> AnyPath:
    """A committed stage that holds nothing but its manifest."""
    folder = root / f"{stage}-{fingerprint[:12]}"
    manifest = {
        "format": 1, "schema_version": 1, "stage": stage, "version": 1, "fingerprint": fingerprint, "parameters": {},
        "inputs": inputs, "files": [], "counts": {}, "facts": {},
    }  # fmt: skip
    put(folder / "manifest.json", json.dumps(manifest))
    return folder


@pytest.fixture(params=["disk", "store"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> AnyPath:
    if request.param == "disk":
        return tmp_path / "run"
    found: StorePath = request.getfixturevalue("s3_root")
    return found


def test_each_recipe_finds_its_own_run(root: AnyPath, tmp_path: Path) -> None:
    assert begin_run(root, "one") == [] and begin_run(root, "one") == []
    assert begin_run(root, "two / zwei ☃") == ["one"] and recipes_of(root) == ["one", "two / zwei ☃"]
    assert last_recipe(root) is None and last_run(root) == {}
    packs = {}
    for name, digit in (("one", "a"), ("two / zwei ☃", "b")):
        commit(root, "tokenize", digit * 64, {})
        packs[name] = commit(root, "pack", digit * 63 + "0", {"tokenize": digit * 64})
        remember_run(root, name, pack=packs[name], train=tmp_path / f"train-{digit * 12}")
    assert last_recipe(root) == "two / zwei ☃" and last_run(root) == {"pack": packs["two / zwei ☃"]}
    for name in packs:
        found = chain(root, recipe=name)
        assert list(found) == ["tokenize", "pack"] and str(found["pack"].folder) == str(packs[name])
        assert found["tokenize"].manifest["fingerprint"][0] == packs[name].name[5]
    assert str(chain(root)["pack"].folder) == str(packs["two / zwei ☃"])
    with pytest.raises(NoRun, match=r"no finished run of the recipe 'three', only of 'one', 'two / zwei ☃'"):
        chain(root, recipe="three")
    # The folder of a training is on this machine, or a copy of it in the root.
    work = tmp_path / "work"
    assert last_training(RunPlace(root, work)) is None
    put(root / f"train-{'a' * 12}" / "train.json", "{}")
    assert last_training(RunPlace(root, work, "one")) == work / f"train-{'a' * 12}"
    assert last_training(RunPlace(root, work)) is None
    assert explain(root, "x", "one").run.startswith("Of the run of 'one'; ")
    assert "also has that of 'one'" in explain(root, "x").run


def test_runs_that_begin_together_all_learn_of_each_other_or_the_later_does(root: AnyPath) -> None:
    names = ["a", "b", "c", "d"]
    with ThreadPoolExecutor(len(names)) as pool:
        learnt = dict(zip(names, pool.map(lambda name: begin_run(root, name), names), strict=True))
    assert recipes_of(root) == names
    for one in names:
        for other in names:
            assert one == other or other in learnt[one] or one in learnt[other]


def test_a_root_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    pack = commit(tmp_path, "pack", "c" * 64, {})
    put(tmp_path / "run.json", json.dumps({"pack": pack.name}))
    put(tmp_path / "recipe.json", json.dumps({"name": "old"}))
    assert last_recipe(tmp_path) == "old" and last_run(tmp_path) == {"pack": pack}
    assert chain(tmp_path, recipe="old")["pack"].folder == pack
    assert begin_run(tmp_path, "new") == ["old"]
