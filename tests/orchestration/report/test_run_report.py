"""Reports of a whole run and of a shard set alone, from what stages committed."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from nextflow_orchestration.report.from_shards import chosen, spread
from nextflow_orchestration.report.run_report import write_audit_report, write_report
from nextflow_orchestration.runs.lineage import NoRun, chain
from nextflow_tokenize.audit.shard_set import audit
from nextflow_tokenize.schedule import grids, token_count
from PIL import Image

CODES = token_count(grids((64, 64), 8))


class Page(HTMLParser):
    """Text by section, and pictures by section."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.sections: dict[str, str] = {"": ""}
        self.pictures: dict[str, list[str]] = {}
        self._now = ""
        self.html = path.read_text(encoding="utf-8")
        self.feed(self.html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "section":
            self._now = values["id"] or ""
            self.sections[self._now] = ""
        if tag == "img":
            self.pictures.setdefault(self._now, []).append(values["src"] or "")

    def handle_data(self, data: str) -> None:
        self.sections[self._now] = " ".join([self.sections[self._now], *data.split()])


@pytest.fixture(scope="module")
def page(small_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Page:
    out = tmp_path_factory.mktemp("out")
    train = out / "train-000000000000"
    train.mkdir()
    rows = [
        {
            "step": s,
            "loss": 9.0 - s,
            "by_kind": {"text": 8.0 - s, "image/1": 7.0, "image/2": 6.0},
            "tokens_per_second": 100.0 * s,
            "labels": 60 * s,
            "seconds": 1.0,
        }
        for s in (1, 2, 3)
    ]
    (train / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 4, "lo')
    Image.new("RGB", (32, 32), (200, 10, 10)).save(out / "made.png")
    prompt = "a <b>red</b> square"
    made = write_report(
        small_run.root, out / "report.html", training=train, generated=[(prompt, out / "made.png")], settings="name: x\n"
    )
    return Page(made)


def test_funnel_and_input(page: Page) -> None:
    assert "f" * 64 in page.sections["input"]
    words = page.sections["stages"]
    # ingest: three documents with two images; filter loses one of each; dedup one document.
    assert re.search(r"ingest .*? 3 2 filter .*? 2 \(−1\) 1 \(−1\) .*?dedup .*? 1 \(−1\) 1 ", words)


def test_rules_with_measured_values_and_examples(page: Page) -> None:
    words = page.sections["rules"]
    assert re.search(r"quality\.min_doc_words too few words drop 1 1 30 2 2 2 ", words)
    assert "https://docs.example/short.html · measured 2 “Too short.”" in words
    assert re.search(r"image\.min_side .*? drop node 1 1 64 16 16 16 ", words)
    assert len(page.pictures["rules"]) == 1
    assert "page-too-large" in page.sections["aside"] and "huge.html" in page.sections["aside"]


def test_pictures_are_pictures(page: Page) -> None:
    assert len(page.pictures["tokenizer"]) == len(page.pictures["sheets"]) == 2
    for uri in (uri for uris in page.pictures.values() for uri in uris):
        head, _, data = uri.partition(",")
        assert head in ("data:image/jpeg;base64", "data:image/png;base64")
        Image.open(io.BytesIO(base64.b64decode(data))).verify()
    original, made = (Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) for uri in page.pictures["sheets"])
    assert original.size == made.size == (128, 128)
    # The picture is a gradient from black to white, top to bottom: what is shown is that picture, the right way up.
    assert original.getpixel((64, 3))[0] < 40 and original.getpixel((64, 124))[0] > 215  # type: ignore[index]


def test_tokens_packs_and_text(page: Page) -> None:
    assert f"text 10 0 {100 * 10 / (10 + CODES):.1f} %" in page.sections["mix"]
    assert "docs.example" in page.sections["mix"] and "CC0-1.0" in page.sections["mix"]
    assert "over 1 packs" in page.sections["packing"]
    assert "shard-000000:000000-000000" in page.sections["sheets"] and "8 scales to 8×8" in page.sections["sheets"]
    assert "Nothing wrong was found" in page.sections["audit"]


def test_training_tokenizer_and_generation(page: Page) -> None:
    assert "12.50 dB over 1 images" in page.sections["tokenizer"] and "13.00 dB" in page.sections["tokenizer"]
    training = page.sections["training"]
    assert "Steps 3" in training and "Median speed 250 tokens/s" in training and "Last text loss 5.000" in training
    assert "Of them predicted 150 tokens/s" in training
    assert "Last image, mean of scales loss 6.500" in training
    assert "“a <b>red</b> square”" in page.sections["generated"] and "<b>red</b>" not in page.html
    assert "6.000" in page.sections[""] and "from 8.000, steps 1 to 3" in page.sections[""]


def test_same_run_same_page(small_run: Any, tmp_path: Path) -> None:
    first, second = (write_report(small_run.root, tmp_path / f"{i}.html").read_bytes() for i in range(2))
    assert first == second


def test_a_shard_set_alone(small_run: Any, tmp_path: Path) -> None:
    shards = chain(small_run.root)["pack"].folder / "shards"
    inside = Page(write_audit_report(shards, tmp_path / "inside.html", audit(shards)))
    assert set(inside.sections) == {"", "mix", "packing", "sheets", "audit"} and len(inside.pictures["sheets"]) == 2
    moved = tmp_path / "moved"
    shutil.copytree(shards, moved)
    alone = Page(write_audit_report(moved, tmp_path / "alone.html", audit(moved)))
    assert set(alone.sections) == set(inside.sections) and alone.pictures == {}
    assert "the set does not lie in the run that made it" in alone.html


def test_a_damaged_set_still_gives_a_report(small_run: Any, tmp_path: Path) -> None:
    damaged = tmp_path / "set"
    shutil.copytree(chain(small_run.root)["pack"].folder / "shards", damaged)
    shard = damaged / "shard-000000.tar"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    result = audit(damaged)
    assert not result.ok
    page = Page(write_audit_report(damaged, tmp_path / "bad.html", result))
    assert "Do not train on these shards" in page.sections["audit"] and "shard-000000.tar" in page.sections["audit"]
    (damaged / "manifest.json").write_text("{}")
    page = Page(write_audit_report(damaged, tmp_path / "worse.html", audit(damaged)))
    assert set(page.sections) == {"", "audit"} and "Do not train" in page.sections["audit"]


def test_nothing_committed(tmp_path: Path) -> None:
    with pytest.raises(NoRun):
        write_report(tmp_path, tmp_path / "report.html")


def test_shown_packs_are_spread_and_mostly_have_images() -> None:
    assert spread(range(100), 4) == [12, 37, 62, 87] and spread([], 4) == [] and spread([5, 6], 9) == [5, 6]
    images = [0] * 90 + [2] * 10
    shown = chosen(images, 8)
    assert len(shown) == len(set(shown)) == 8 and sum(images[n] > 0 for n in shown) == 6
    assert chosen([0, 0, 0], 8) == [0, 1, 2] and chosen([1, 1, 1], 2) == [0, 2] and chosen([], 3) == []
