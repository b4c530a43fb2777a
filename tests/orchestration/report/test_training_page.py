"""The training page of a long training, of a damaged folder, and of none; and what is drawn of many steps."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nextflow_orchestration.cli import app
from nextflow_orchestration.generation import make_samples
from nextflow_orchestration.report import training_page
from nextflow_orchestration.report.charts import BUCKETS, lines, powers, thinned
from nextflow_orchestration.report.from_training_folder import page_of, span
from nextflow_orchestration.report.model import Curve
from nextflow_orchestration.report.training_page import write_training_page
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from typer.testing import CliRunner

from megatron_nextflow.config.train import TrainConfig
from megatron_nextflow.launching.launch_record import LaunchRecord, own_start, write_record
from megatron_nextflow.runtime.machine import Machine

HOSTILE = "<script>alert(1)</script>\"'&"
STEPS = 20_000


def row(step: int, **more: Any) -> str:
    kinds = {"text": 3.0, **{f"image/{k}": 5.0 + 0.001 * step / k for k in range(1, 19)}}
    values = {"step": step, "loss": 4.0, "by_kind": kinds, "grad_norm": 0.5, "lr": 1e-4, "seconds": 2.0}
    values |= {"terms": {"text": 1.0, "image": 2.9, "z_loss": 0.1}}
    values |= {"tokens_per_second": 1e6, "tflops": 400.0, "mfu": 0.4} | more
    return json.dumps(values) + "\n"


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run at work with one leap of its loss, whose settings, events and pictures hold hostile text."""
    output = tmp_path_factory.mktemp("runs") / "it's <b>bold</b>"
    (output / "samples").mkdir(parents=True)
    with open(output / "metrics.jsonl", "w") as file:
        file.writelines(
            row(step, **({"loss": 99.0, "grad_norm": 5000.0} if step == 7001 else {})) for step in range(1, STEPS)
        )
        file.write('{"step": 20000, "lo')  # a kill cut it short
    events = [{"time": 1.8e9 + n, "step": n, "kind": "saved", "message": f"saved {n}"} for n in range(80)]
    events.append({"time": 1.9e9, "step": 7001, "kind": "spike", "message": f"a leap {HOSTILE}", "keys": ["a"]})
    (output / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (output / "train.json").write_text(TrainConfig(steps=40_000, data={"shards": HOSTILE}).model_dump_json())
    step = output / "checkpoints" / "step-00010000"
    step.mkdir(parents=True)
    state = {"step": 10_000, "codebook_size": 4096, "processes": 8, "parallel": {"tp": 2, "pp": 1}}
    (step / "manifest.json").write_text(json.dumps({"state": state, "files": {"a": {"size": 3_400_000, "sha256": ""}}}))
    (output / "checkpoints" / "latest").write_text("step-00010000\n")
    said = PngInfo()
    said.add_itxt("prompt", HOSTILE)
    said.add_itxt("seed", "3")
    Image.fromarray(np.zeros((700, 900, 3), np.uint8)).save(output / "samples" / "step-00010000-1.png", pnginfo=said)
    (output / "samples" / "step-00010000-2.png").write_bytes(b"no picture")
    machine = Machine(cpu=HOSTILE, cores=8, memory_gib=64, gpus=("H100",) * 8, versions={"torch": "2"})
    record = LaunchRecord(
        pid=os.getpid(), started=own_start(), host=socket.gethostname(), processes=8, status="running",
        began=time.time() - 7200, machine=machine,
    )  # fmt: skip
    write_record(output, record)
    return output


class Reader(HTMLParser):
    """Collects tags and text as a browser would see them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_long_run_in_one_small_file_without_anything_from_elsewhere(long_run: Path) -> None:
    path = write_training_page(long_run)
    text = path.read_text()
    assert path == long_run / "training.html" and len(text) < 2_000_000
    read = Reader(text)
    assert "script" not in {tag for tag, _ in read.tags} and read.text.count(HOSTILE) >= 3
    loads = [value for _, attrs in read.tags for name, value in attrs.items() if name in ("src", "href", "data", "action")]
    assert all(value is not None and value.startswith(("data:image/", "#")) for value in loads)
    assert "default-src 'none'" in text and ("meta", {"http-equiv": "refresh", "content": "30"}) in read.tags
    titles = ("Loss", "Terms of the loss", "Image loss by scale", "Gradient norm", "Throughput", "Learning rate")
    assert all(f"<h3>{title}</h3>" in text for title in titles)
    assert all(f"scale {k}" in read.text for k in range(1, 19))
    assert "z_loss" in read.text
    for words in ("50 % of 40,000", "2.0 h so far", "40 % of the peak (MFU)", "8 × H100", "8.32", "3.4 MB", "tp 2 × dp 4"):
        assert words in read.text, words
    assert "step 10000" in read.text and "step-00010000-2.png is not shown" in read.text
    assert "and 21 before these" in read.text and "saved 79" in read.text and "saved 20" not in read.text


def test_a_leap_of_one_step_is_drawn_and_marked(long_run: Path) -> None:
    page = page_of(long_run)
    (loss,) = next(chart for chart in page.charts if chart.title == "Loss").curves
    assert len(loss.points) <= BUCKETS and max(high for _, _, high in loss.spread) == 99.0
    assert page.marks == ((7001, f"a leap {HOSTILE}"),)
    svg = lines([loss], "Loss", "step", "nats", marks=page.marks)
    assert 'class="mark"' in svg and 'class="band line0"' in svg


def test_a_curve_is_thinned_to_means_and_few_points_are_kept_as_they_are() -> None:
    points = [(float(step), float(step % 2)) for step in range(1, 1001)]
    curve = thinned("x", points, spread=True)
    assert len(curve.points) == 200 and curve.points[0] == (5.0, pytest.approx(3 / 5))
    assert curve.points[-1][0] == 1000.0 and set(curve.spread) == {(x, 0.0, 1.0) for x, _ in curve.points}
    few = [(1.0, 2.0), (2.0, float("nan")), (3.0, 4.0)]
    assert thinned("x", few, spread=True) == Curve("x", ((1.0, 2.0), (3.0, 4.0)))


def test_a_logarithmic_axis_has_round_labels_and_leaves_out_what_has_no_logarithm() -> None:
    assert [round(10**p, 6) for p in powers(-1, 1)] == [0.1, 0.2, 0.5, 1, 2, 5, 10]
    assert powers(-3, 12) == pytest.approx(list(range(-3, 13, 2)))
    svg = lines([Curve("norm", ((1, 0.1), (2, 0.0), (3, 10.0)))], "t", "step", "norm", log=True)
    assert svg.count(",") - svg.count(", ") == 2 and ">0.5<" in svg
    low, high = (float(y) for y in re.findall(r"\d+\.\d,(\d+\.\d)", svg))
    assert low > high
    assert lines([Curve("norm", ((1, 0.0),))], "t", "step", "norm", log=True) == ""


def test_lengths_of_time() -> None:
    assert [span(s) for s in (45, 600, 7200, 200_000)] == ["45 s", "10 min", "2.0 h", "2.3 d"]


def test_a_folder_with_nothing_but_a_beginning(tmp_path: Path) -> None:
    """As a flow asks for it before the first step; and one whose launcher was killed."""
    (tmp_path / "train.json").write_text(TrainConfig().model_dump_json())
    (tmp_path / "events.jsonl").write_text('[1]\n{"time": "x"}\n')
    gone = LaunchRecord(pid=1, started=0.0, host=socket.gethostname(), processes=1, status="running", began=1.0, ended=61.0)
    write_record(tmp_path, gone)
    read = Reader(write_training_page(tmp_path).read_text())
    assert "ended without a word" in read.text and not any(attrs.get("http-equiv") == "refresh" for _, attrs in read.tags)


def test_no_training_is_said_in_one_line(tmp_path: Path) -> None:
    said = CliRunner().invoke(app, ["page", str(tmp_path)])
    assert said.exit_code != 0 and "holds no training" in said.output and not (tmp_path / "training.html").exists()


def test_samples_are_asked_of_the_newest_checkpoint(long_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nextflow_orchestration import generation

    asked: list[Any] = []

    def generate(checkpoint: Path, prompts: list[str], out: Path, settings: Any, threads: int, options: list[str]) -> Any:
        asked.append((checkpoint.name, prompts, out.name, settings.level, settings.end_of_text, options))
        return {"results": [{"path": str(out)}]}

    monkeypatch.setattr(generation, "generate_in_process", generate)
    recipe = {"generate": {"prompt": "the run's", "level": 256}, "text_tokenizer": {"end_of_text": "<end>"}}
    (long_run.parent / "recipe.json").write_text(json.dumps(recipe))
    assert make_samples(long_run, 2, [], None) == [long_run / "samples" / "step-00010000.png"]
    make_samples(long_run, 1, ["mine", "other"], 512)
    assert asked == [
        ("step-00010000", ["the run's"], "step-00010000.png", 256, "<end>", ["--n=2"]),
        ("step-00010000", ["mine", "other"], "step-00010000.png", 512, "<end>", ["--n=1"]),
    ]
    assert training_page.SAMPLES == "samples"
