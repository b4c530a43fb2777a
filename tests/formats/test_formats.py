"""What earlier versions wrote still opens. Each folder beside this file is named after the format it is in:

    documents_1     a small run's commits with schema 1, whose decisions had `node` (documents, decisions, tokens, shards)
    documents_2     the same with schema 2, whose decisions have `scope` and `index`
    checkpoint_2    a training's checkpoint of version 2, which names its shard set by the manifest's sha256

`make.py` writes the like in the format of whatever version is installed; a new format gets a folder of its own.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from nextflow_data.decisions import DECISION_SCHEMA, decisions_as_now
from nextflow_orchestration.explain.find import explain
from nextflow_pipelines.contract.stage import find_committed, read_manifest
from nextflow_pipelines.contract.tables import read_decisions, read_table
from nextflow_tokenize.shards.reader import ShardSet

HERE = Path(__file__).parent
SITE = "https://docs.example"


@pytest.fixture(params=[1, 2])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    shutil.copytree(HERE / f"documents_{request.param}", tmp_path / "run")
    return tmp_path / "run"


def test_decisions_say_what_they_were_about(run: Path, request: pytest.FixtureRequest) -> None:
    (folder,) = find_committed(run, "filter")
    assert read_manifest(folder)["schema_version"] == request.node.callspec.params["run"]
    rows = read_table(folder, "decisions").to_pylist()
    assert rows == [row for table in read_decisions(folder) for row in table.to_pylist()]
    by_rule = {row["rule"]: (row["scope"], row["action"]) for row in rows}
    assert by_rule["language.allowed"] == ("document", "drop")
    assert all((row["index"] is None) == (row["scope"] == "document") for row in rows)
    (folder,) = find_committed(run, "dedup")
    images = [row for row in read_table(folder, "decisions").to_pylist() if row["scope"] == "node"]
    assert {row["action"] for row in images} <= {"drop"}


def test_a_run_is_explained_from_record_to_pack(run: Path) -> None:
    story = explain(run, f"{SITE}/1.html")
    assert story.documents[0].outcome.startswith("In the shards:")
    gone = explain(run, f"{SITE}/francais.html")
    assert "filter dropped it (language.allowed" in gone.documents[0].outcome


def test_its_shards_are_whole_and_read(run: Path) -> None:
    (folder,) = find_committed(run, "pack")
    shards = ShardSet.open(folder / "shards", verify="full")
    assert sum(shards.read(number).slots for number in range(len(shards))) == shards.manifest.totals.slots > 0


def test_a_packs_node_of_schema_1_was_a_segment_for_which_the_document_went() -> None:
    import pyarrow as pa

    fields = [("node", pa.int32()) if name == "index" else (name, DECISION_SCHEMA.field(name).type) for name in
              DECISION_SCHEMA.names if name != "scope"]  # fmt: skip
    row = {"doc_id": "d", "node": 3, "stage": "pack", "rule": "longer-than-pack", "action": "drop", "detail": "too long"}
    (now,) = decisions_as_now(pa.Table.from_pylist([row], schema=pa.schema(fields))).to_pylist()
    assert (now["scope"], now["index"], now["detail"]) == ("document", None, "segment 3: too long")


def test_a_checkpoint_of_version_2_is_verified_and_gone_on_from(tmp_path: Path) -> None:
    from megatron_nextflow.checkpoint.verify import verify_folder
    from megatron_nextflow.config.train import TrainConfig
    from megatron_nextflow.launching.launcher import launch
    from megatron_nextflow.runtime.training_folder import last_step, latest

    shutil.copytree(HERE / "checkpoint_2", tmp_path / "training")
    stored = TrainConfig.model_validate_json((tmp_path / "training" / "train.json").read_bytes())
    data = tmp_path / "training" / "training_data"
    feed = stored.data.model_copy(update={"shards": str(data / "shards"), "vision_tokenizer": data / "vision"})
    config = stored.model_copy(update={"output": tmp_path / "training", "data": feed, "steps": 3})
    found = latest(config.output)
    assert found is not None and verify_folder(found).state.version == 2
    assert launch(config, tmp_path, 1) == 0
    assert last_step(config.output) == 3
