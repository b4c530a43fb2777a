"""The whole way, as a person starts it: `mnf run` in processes of its own, against a real Prefect server."""

from __future__ import annotations

import json
import shutil
import signal
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

STAGES = (
    "ingest", "filter", "dedup", "caption", "vision_tokenizer", "text_tokenizer", "tokenize", "pack", "train", "generate",
)  # fmt: skip


def shard_bytes(root: Path) -> dict[str, bytes]:
    """Every file of the one shard set under a run's root."""
    (shards,) = root.glob("pack-*/shards")
    return {path.relative_to(shards).as_posix(): path.read_bytes() for path in shards.rglob("*") if path.is_file()}


def ask(home: Path, path: str, **body: Any) -> Any:
    """An answer of the Prefect server's API."""
    api = json.loads((home / "server.json").read_text())["api_url"]
    request = urllib.request.Request(
        f"{api}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def test_a_run_leaves_shards_a_checkpoint_an_image_and_a_report(whole: Any) -> None:
    runner, said = whole
    assert all(f" {stage}" in said for stage in STAGES)
    with Image.open(next(runner.root.glob("generate-*/image.png"))) as image:
        assert image.size == (128, 128)
    report = (runner.root / "report.html").read_text()
    assert "https://docs.example/0.html" in report
    assert next(runner.root.glob("train-*/checkpoints/latest")).read_text().strip().endswith("4")
    assert "truncated" in said or "1 kept aside" in said


def test_prefect_shows_the_run_its_stages_and_its_artifacts(whole: Any, prefect_home: Path) -> None:
    runs = ask(prefect_home, "flow_runs/filter", sort="START_TIME_ASC")
    tasks = ask(prefect_home, "task_runs/filter", task_runs={"flow_run_id": {"any_": [runs[0]["id"]]}})
    assert runs[0]["state_type"] == "COMPLETED"
    assert {t["name"] for t in tasks} == {"input", *STAGES, "report"}
    artifacts = {a["key"]: a for a in ask(prefect_home, "artifacts/filter")}
    rows = json.loads(artifacts["stages"]["data"])
    assert [row["stage"] for row in rows] == list(STAGES[:8])
    assert rows[0]["documents"] == 10
    assert "report.html" in artifacts["report"]["data"]
    logs = ask(prefect_home, "logs/filter", logs={"flow_run_id": {"any_": [runs[0]["id"]]}})
    assert any(log["message"].startswith("ingest: 10 documents") for log in logs)


def test_a_second_run_finds_everything_committed(whole: Any) -> None:
    runner, _ = whole
    before = {p: p.stat().st_mtime_ns for p in runner.root.rglob("manifest.json")}
    foreseen = runner.finish("run", str(runner.recipe), "--dry-run")
    assert [line.split()[0] for line in foreseen.splitlines() if line.split()[1] == "kept"] == [*STAGES, "report"]
    said = runner.finish()
    assert said.count("kept") >= len(STAGES), said
    assert {p: p.stat().st_mtime_ns for p in runner.root.rglob("manifest.json")} == before


def at_work(root: Path, stage: str) -> bool:
    """Whether a stage has begun and not committed."""
    if stage == "train":
        return any(root.glob("train-*/train.json")) and not any(root.glob("train-*/checkpoints/latest"))
    return any(not (folder / "manifest.json").exists() for folder in root.glob(f"{stage}-*"))


@pytest.mark.slow  # among the quick tests a stage of Spark's is killed in tests/pipelines, a training in the trainer's
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("number", "stages"), [(signal.SIGKILL, ("train",)), (signal.SIGKILL, STAGES), (signal.SIGINT, STAGES)]
)
def test_stopped_in_a_stage_the_shards_are_the_same(
    whole: Any, tmp_path: Path, number: signal.Signals, stages: tuple[str, ...]
) -> None:
    undisturbed, _ = whole
    runner = type(undisturbed)(tmp_path, undisturbed.warc, undisturbed.home)
    stretch: tuple[str, ...] = ()
    for stage in stages:
        if stage == "train":
            said = runner.finish("run", str(runner.recipe), "--to", "pack")
            assert "--from train" in said and not any(runner.root.glob("train-*"))
            stretch = ("--from", "train")
        process = runner.start("run", str(runner.recipe), *stretch)
        while not at_work(runner.root, stage):
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.002)
        process.send_signal(number)
        said, _ = process.communicate()
        assert process.returncode == (-9 if number == signal.SIGKILL else 130), said
        assert at_work(runner.root, stage) or stage == "train", f"{stage} was committed before the signal came"
        if number == signal.SIGINT:
            assert "Interrupted" in said and "Traceback" not in said
    runner.finish("run", str(runner.recipe), *stretch)
    assert shard_bytes(runner.root) == shard_bytes(undisturbed.root)
    assert (runner.root / "report.html").is_file()
    audit = runner.finish("audit", str(next(runner.root.glob("pack-*/shards"))))
    assert "nothing is wrong" in audit


@pytest.mark.slow
def test_a_schedule_fires(whole: Any, prefect_home: Path) -> None:
    runner, _ = whole
    process = runner.start("schedule", str(runner.recipe), "--cron", "* * * * *")
    try:
        done: list[Any] = []
        while not done:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(1)
            runs = ask(prefect_home, "flow_runs/filter", deployments={"name": {"any_": ["tiny"]}})
            done = [run for run in runs if run["state_type"] in ("COMPLETED", "FAILED", "CRASHED")]
        assert done[0]["state_type"] == "COMPLETED"
        assert done[0]["auto_scheduled"]
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate()


def test_a_bad_cron_line_and_a_missing_input_stop_before_anything_starts(whole: Any, tmp_path: Path) -> None:
    runner, _ = whole
    process = runner.start("schedule", str(runner.recipe), "--cron", "every day")
    assert "--cron" in process.communicate()[0]
    assert process.returncode == 2
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"name: a\nroot: {tmp_path}/run\ninput: {tmp_path}/gone.warc.gz\n")
    process = runner.start("run", str(recipe))
    said = process.communicate()[0]
    assert process.returncode == 2
    assert said.count("\n") == 1 and "gone.warc.gz" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_empty_warc_is_told_of_and_reported(whole: Any, tmp_path: Path) -> None:
    undisturbed, _ = whole
    empty = tmp_path / "empty.warc.gz"
    empty.write_bytes(b"")
    runner = type(undisturbed)(tmp_path, empty, undisturbed.home)
    process = runner.start()
    said = process.communicate()[0]
    assert process.returncode == 1
    assert "1 kept aside" in said and "nothing to train on" in said and "Traceback" not in said
    assert "empty.warc.gz" in (runner.root / "report.html").read_text()
    (runner.root / "report.html").unlink()
    said = runner.finish("run", str(runner.recipe), "--set", "train=null", "--set", "generate.level=7")
    assert "0 packs" in said and "report" in said and "generate" not in said
    assert "empty.warc.gz" in (runner.root / "report.html").read_text()
    assert json.loads((runner.root / "run.json").read_text()).keys() == {"recipe", "pack"}


def test_a_flipped_byte_is_named_by_the_audit_and_refused_by_the_trainer(whole: Any, tmp_path: Path) -> None:
    runner, _ = whole
    (shards,) = runner.root.glob("pack-*/shards")
    copy = tmp_path / "shards"
    shutil.copytree(shards, copy)
    tar = copy / "shard-000000.tar"
    data = bytearray(tar.read_bytes())
    data[len(data) // 2] ^= 1
    tar.write_bytes(data)
    audit = runner.start("audit", str(copy))
    said = audit.communicate()[0]
    assert audit.returncode == 1 and "shard-000000.tar" in said
    assert "shard-000000.tar" in (tmp_path / "audit.html").read_text()
    (tokenizer,) = runner.root.glob("vision_tokenizer-*/tokenizer")
    train = runner.start(
        "train", str(runner.recipe), "--set", f"train.data.vision_tokenizer={tokenizer}", "--set", "train.data.verify=true",
        "--shards", str(copy), "--out", str(tmp_path / "out"),
    )  # fmt: skip
    said = train.communicate()[0]
    assert train.returncode == 2 and "shard-000000.tar" in said and "Traceback" not in said
    assert not (tmp_path / "out" / "checkpoints" / "latest").exists()
