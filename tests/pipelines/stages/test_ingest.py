"""The ingest stage with two kinds of source: rows whose images are in a WARC, and the way back to every image."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from nextflow_data.config import IngestConfig
from nextflow_data.sources.jsonl import JsonlConfig
from nextflow_data.sources.warc import WarcConfig
from nextflow_pipelines import first_pass
from nextflow_pipelines.contract.stage import StageError, read_manifest
from nextflow_pipelines.contract.tables import read_table
from nextflow_pipelines.inputs import KnownContents, input_files
from nextflow_pipelines.registry import run_stage
from nextflow_pipelines.sources import image_loader
from nextflow_pipelines.spark.config import SparkConfig
from nextflow_pipelines.spark.context import RunContext
from nextflow_pipelines.stages import ingest
from PIL import Image


def png(colour: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (80, 80), colour).save(stream, "PNG")
    return stream.getvalue()


def test_rows_and_a_warc_become_documents_together(damaged_files: Any, session: Any, tmp_path: Path) -> None:
    red, blue = png("red"), png("blue")
    head = "WARC/1.1\r\nWARC-Type: resource\r\nWARC-Target-URI: https://a.example/blue.png\r\nContent-Type: image/png\r\n"
    archive, rows = tmp_path / "a.warc", tmp_path / "rows.jsonl"
    archive.write_bytes(f"{head}Content-Length: {len(blue)}\r\n\r\n".encode() + blue + b"\r\n\r\n")
    inside, outside = {"data": base64.b64encode(red).decode()}, {"uri": "https://a.example/blue.png"}
    lines: list[Any] = [
        {"text": "A red square.", "images": [inside], "task": "text-to-image"},
        {"text": "<image> Make it blue. <image>", "images": [inside, outside], "task": "editing"},
        {"text": "Nothing to see.", "images": [{"uri": "https://a.example/none.png"}]},
        {"text": 1},
    ]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    entries = [WarcConfig(files=(str(archive),)), JsonlConfig(files=(str(rows),), licence="CC0-1.0")]
    ctx, sections = RunContext(tmp_path / "run", SparkConfig(files=1, partitions=1)), {"ingest": IngestConfig()}
    result = run_stage("ingest", ctx, sections, {}, entries)

    documents = {row["task"]: row for row in read_table(result.dir, "documents").to_pylist()}
    assert {task: [node["text"] for node in row["nodes"]] for task, row in documents.items()} == {
        "text-to-image": ["A red square.", None],
        "editing": [None, "Make it blue.", None],
        "text": ["Nothing to see."],
    }
    load = image_loader(ctx.root, IngestConfig())
    images = [node["image"] for node in documents["editing"]["nodes"] if node["image"]]
    assert [load(image) for image in images] == [red, blue]
    assert [image["ref"]["uri"].partition("sources/")[0] for image in images] == ["jsonl:", ""]
    assert {(row["source"]["kind"], row["licence"]) for row in documents.values()} == {("jsonl", "CC0-1.0")}
    assert [d["rule"] for d in read_table(result.dir, "decisions").to_pylist()] == ["image-not-in-source"]
    assert [a["reason"] for a in read_table(result.dir, "asides").to_pylist()] == ["row-not-as-documented"]
    assert result.counts["records"] == {"document": 1, "image": 1, "page": 2} and damaged_files(result.dir) == []

    # What an entry says of its rows is in the fingerprint, where its files lie is not.
    parameters = read_manifest(result.dir)["parameters"]
    assert list(parameters["source_settings"].values()) == [{"licence": "CC0-1.0"}]
    (tmp_path / "elsewhere").mkdir()
    moved = rows.rename(tmp_path / "elsewhere" / rows.name)
    entries[1] = entries[1].model_copy(update={"files": (str(moved),)})
    assert run_stage("ingest", ctx, sections, {}, entries).skipped
    with pytest.raises(ValueError, match="entries 1 and 2 name the same jsonl file"):
        run_stage("ingest", ctx, sections, {}, [entries[1], JsonlConfig(files=(str(moved),))])


@pytest.mark.slow
def test_a_file_that_changed_is_read_again_and_nothing_else(session: Any, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a b", "c"):
        (folder / f"{name}.jsonl").write_text(json.dumps({"text": f"This is {name}."}) + "\n")
    entries = [JsonlConfig(files=(f"{folder}/",))]
    ctx, sections = RunContext(tmp_path / "run", SparkConfig(files=1, partitions=1)), {"ingest": IngestConfig()}
    known = KnownContents(ctx.root, input_files(entries, ctx.storage))
    first_pass_folder = first_pass.pass_plan(IngestConfig(), entries, known).folder(ctx.root)
    first = run_stage("ingest", ctx, sections, {}, entries)
    found = {row["nodes"][0]["text"] for row in read_table(first.dir, "documents").to_pylist()}
    assert found == {"This is a b.", "This is c."}
    read: list[str] = []
    ctx.progress = lambda done, total, note: read.append(note)
    left = ctx.root / first_pass_folder.name / "_work" / "rows"  # as a kill between commit and clearing away leaves it
    left.mkdir(parents=True)
    (left / "rows.parquet").write_bytes(b"1")
    assert run_stage("ingest", ctx, sections, {}, entries).skipped and not any("reading" in note for note in read)
    assert "2 input files are listed" in read and not list(ctx.root.glob("first_pass-*"))

    (folder / "c.jsonl").write_text(json.dumps({"text": "This is another."}) + "\n")
    looked = RunContext(ctx.root, ctx.spark, look=True)
    assert not run_stage("ingest", looked, sections, {}, entries).skipped
    second = run_stage("ingest", ctx, sections, {}, entries)
    assert not second.skipped and not list(ctx.root.glob("first_pass-*"))
    found = {row["nodes"][0]["text"] for row in read_table(second.dir, "documents").to_pylist()}
    assert found == {"This is a b.", "This is another."}


def test_a_file_that_changes_under_the_run_stops_it_and_the_units_of_others_stay(
    session: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for file in files:
        file.write_text(json.dumps({"text": f"This is {file.name}."}) + "\n")
    entries = [JsonlConfig(files=tuple(map(str, files)))]
    ctx, sections = RunContext(tmp_path / "run", SparkConfig(files=1, partitions=1)), {"ingest": IngestConfig()}
    bound = first_pass.open_stage

    def meanwhile(*given: Any) -> Any:
        files[1].write_text(json.dumps({"text": "Changed."}) + "\n")
        return bound(*given)

    monkeypatch.setattr(first_pass, "open_stage", meanwhile)
    with pytest.raises(StageError, match=r"b\.jsonl: it was changed after this run had bound it"):
        run_stage("ingest", ctx, sections, {}, entries)
    monkeypatch.undo()
    (kept,) = [path.name for path in ctx.root.glob("first_pass-*/_work/done/*.json")]
    before = (next(ctx.root.glob("first_pass-*")) / "_work" / "done" / kept).stat().st_mtime_ns
    monkeypatch.setattr(ingest, "discard", lambda *_: None)
    result = run_stage("ingest", ctx, sections, {}, entries)
    assert {row["nodes"][0]["text"] for row in read_table(result.dir, "documents").to_pylist()} == {
        "This is a.jsonl.",
        "Changed.",
    }
    done = {path.name: path.stat().st_mtime_ns for path in ctx.root.glob("first_pass-*/_work/done/*.json")}
    assert len(done) == 2 and done[kept] == before
