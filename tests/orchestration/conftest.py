"""A small run written through the stage contract's own writers: what report and explain are tested on."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from nextflow_data.decisions import ASIDE_SCHEMA, DECISION_SCHEMA
from nextflow_data.document import DOCUMENT_SCHEMA, image_node, text_node
from nextflow_data.document import doc_id as identity
from nextflow_pipelines.contract.stage import StagePlan
from nextflow_pipelines.contract.tables import UnitTables
from nextflow_pipelines.contract.units import unit_output
from nextflow_pipelines.contract.work import open_stage
from nextflow_tokenize.config.pack import PackConfig
from nextflow_tokenize.documents.tokenized import tokenized_schema
from nextflow_tokenize.packing.pieces import shape_of
from nextflow_tokenize.packing.plan import plan
from nextflow_tokenize.packing.sample import build_pack
from nextflow_tokenize.schedule import grids, token_count
from nextflow_tokenize.shards.records import TextTokenizerRecord, VisionTokenizerRecord
from nextflow_tokenize.shards.writer import write_manifest, write_shard

SITE = "https://docs.example/"
SCHEDULE = grids((64, 64), 8)
DATASETS = {"documents": DOCUMENT_SCHEMA, "decisions": DECISION_SCHEMA, "asides": ASIDE_SCHEMA}
HOSTILE = "<script>alert('title')</script>"


def png(shade: int) -> bytes:
    """A picture of 96×96 pixels."""
    from PIL import Image

    out = io.BytesIO()
    Image.linear_gradient("L").resize((96, 96)).point(lambda v: (v + shade) % 256).convert("RGB").save(out, "PNG")
    return out.getvalue()


@dataclass(frozen=True)
class Run:
    """The run's folder and the ids of its documents by name."""

    root: Path
    ids: dict[str, str]


class Builder:
    """Writes stages one after another; each has the one before as its input."""

    def __init__(self, root: Path, warc: Path) -> None:
        self.root, self.warc, self.last = root, warc, {"quickstart.warc.gz": "f" * 64}

    def stage(
        self,
        name: str,
        tables: dict[str, list[Any]],
        schemas: dict[str, Any] | None = None,
        files: dict[str, bytes] | None = None,
        facts: dict[str, Any] | None = None,
        inputs: dict[str, str] | None = None,
        **parameters: Any,
    ) -> Path:
        plan = StagePlan(name, 1, {"files": 1, **parameters}, self.last if inputs is None else inputs)
        with open_stage(self.root, plan) as work:
            with unit_output(work.dir, "only") as out:
                data = UnitTables(out, DATASETS if schemas is None else schemas, "only")
                for dataset, rows in tables.items():
                    data.write(dataset, rows)
                data.close()
                for path, content in (files or {}).items():
                    out.path(path).write_bytes(content)
            work.commit(["only"], facts)
        self.last = {name: plan.fingerprint}
        return plan.folder(self.root)


def image(warc: Path, address: str, payload: bytes, caption: str | None = None) -> dict[str, Any]:
    """An image node's content; its bytes are appended to the WARC as one record."""
    import zlib

    http = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n" % len(payload) + payload
    head = (
        f"WARC/1.1\r\nWARC-Type: response\r\nWARC-Record-ID: <urn:uuid:00000000-0000-0000-0000-000000000001>\r\n"
        f"WARC-Date: 2026-01-01T00:00:00Z\r\nWARC-Target-URI: {address}\r\n"
        f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(http)}\r\n\r\n"
    )
    member = zlib.compress(head.encode() + http + b"\r\n\r\n", wbits=31)
    offset = warc.stat().st_size if warc.exists() else 0
    with warc.open("ab") as file:
        file.write(member)
    measures = {"sharpness": 90.0, "entropy": 6.5, "edge_density": 0.2, "colourfulness": 0.0, "phash": "0" * 16}
    return {
        "ref": {"uri": str(warc), "offset": offset, "length": len(member)}, "address": address, "format": "png",
        "sha256": hashlib.sha256(payload).hexdigest(), "width": 96, "height": 96, **measures,
        "alt": None, "caption": caption, "captioner": "alt-text" if caption else None,
    }  # fmt: skip


def document(run: Builder, path: str, nodes: list[Any], **more: Any) -> dict[str, Any]:
    """A document as ingest writes it."""
    address = SITE + path
    source = {
        "address": address,
        "uri": str(run.warc),
        "offset": 0,
        "length": 10,
        "kind": "warc",
        "date": "2026-01-01T00:00:00Z",
    }
    row = {"doc_id": identity(address, "r"), "source": source, "nodes": nodes, "task": "interleaved", "licence": "CC0-1.0"}
    return row | {"consent": None, "lang": None} | more


def decision(
    doc: dict[str, Any], stage: str, rule: str, action: str, value: Any, threshold: Any, **more: Any
) -> dict[str, Any]:
    """A decision about a document."""
    row = {"doc_id": doc["doc_id"], "address": doc["source"]["address"], "scope": "document", "index": None}
    row |= {"stage": stage, "rule": rule}
    return row | {"value": value, "threshold": threshold, "action": action, "detail": None} | more


def tokenized(doc: dict[str, Any]) -> dict[str, Any]:
    """The document tokenised: five ids a text, codes 0, 1, 2, … an image, with the first input code another."""
    segments = []
    count = token_count(SCHEDULE)
    for node in doc["nodes"]:
        if node["kind"] == "text":
            segments.append({"kind": "text", "loss": True, "text": [1, 2, 3, 4, 5]})
            continue
        target = [i % 16 for i in range(count)]
        segments.append(
            {
                "kind": "image", "loss": True, "sha256": node["image"]["sha256"], "grid": list(SCHEDULE[-1]),
                "scales": len(SCHEDULE), "input": [15, *target[1:]], "target": target,
            }
        )  # fmt: skip
    names = ("kind", "loss", "text", "sha256", "grid", "scales", "input", "target")
    whole = [{name: segment.get(name) for name in names} for segment in segments]
    return {
        "doc_id": doc["doc_id"], "address": doc["source"]["address"], "source_kind": "warc", "licence": doc["licence"],
        "task": doc["task"], "segments": whole,
    }  # fmt: skip


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Four pages: one kept with an image of two, one dropped by the filter, one dropped as a copy, and one put aside."""
    root = tmp_path_factory.mktemp("run")
    build = Builder(root, root / "quickstart.warc.gz")
    big, small = image(build.warc, SITE + "big.png", png(0)), image(build.warc, SITE + "small.png", png(99))
    nodes = [text_node(f"A page about trees. {HOSTILE}"), image_node(big), text_node("More words."), image_node(small)]
    kept = document(build, "kept.html", nodes)
    short = document(build, "short.html", [text_node("Too short.")])
    copy = document(build, "copy.html", [text_node("A page about trees, again.")])
    aside = {
        "stage": "ingest", "reason": "page-too-large", "address": SITE + "huge.html", "uri": str(build.warc), "offset": 7,
        "length": 9, "detail": "52428800 bytes",
    }  # fmt: skip
    found = [decision(kept, "ingest", "boilerplate-tag-nav", "edit", 2.0, None, detail="2 regions")]
    build.stage("ingest", {"documents": [kept, short, copy], "decisions": found, "asides": [aside]})
    left = {**kept, "nodes": [*kept["nodes"][:2], text_node("More words.")], "lang": "en"}
    judged = [
        decision(short, "filter", "quality.min_doc_words", "drop", 2.0, 30.0),
        decision(kept, "filter", "image.min_side", "drop", 16.0, 64.0, scope="node", index=3, detail=SITE + "small.png"),
    ]
    build.stage("filter", {"documents": [left, copy], "decisions": judged})
    same = decision(copy, "dedup", "text.minhash", "drop", 0.93, 0.7, detail=f"the copy that stays is {kept['doc_id']}")
    build.stage("dedup", {"documents": [left], "decisions": [same]})
    named = {
        **left,
        "nodes": [left["nodes"][0], image_node({**big, "caption": "A tree", "captioner": "alt-text"}), left["nodes"][2]],
    }
    build.stage("caption", {"documents": [named]})
    parents = dict(build.last)
    _vision_tokenizer(build, big, tmp_path_factory.mktemp("tokenizer"))
    parents |= build.last
    build.stage("text_tokenizer", {}, {}, {"tokenizer.json": _bpe(tmp_path_factory.mktemp("bpe"))}, inputs=parents)
    parents |= build.last
    row = tokenized(named)
    build.stage("tokenize", {"tokenized": [row]}, {"tokenized": tokenized_schema(16)}, inputs=parents)
    pack = build.stage("pack", {}, {})
    _shards(pack / "shards", row)
    return Run(root, {"kept": kept["doc_id"], "short": short["doc_id"], "copy": copy["doc_id"]})


@pytest.fixture(scope="session")
def losing_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A page for each stage that drops one, each with a text and an image; pack's and tokenize's decisions are their own."""
    from nextflow_tokenize.config.pack import CostModel, PackConfig
    from nextflow_tokenize.packing.pieces import shape_of
    from nextflow_tokenize.packing.plan import plan

    root = tmp_path_factory.mktemp("losing")
    build = Builder(root, root / "quickstart.warc.gz")
    picture = image(build.warc, SITE + "big.png", png(0))
    names = ("filter", "dedup", "tokenize", "pack")
    pages = {name: document(build, f"{name}.html", [text_node(f"For {name}."), image_node(picture)]) for name in names}
    left = [pages[name] for name in names]
    build.stage("ingest", {"documents": left, "decisions": []})
    gone = decision(left[0], "filter", "quality.min_doc_words", "drop", 2.0, 20.0)
    taken = decision(left[0], "filter", "image.min_side", "drop", 6.0, 64.0, scope="node", index=1)
    build.stage("filter", {"documents": left[1:], "decisions": [taken, gone]})
    copies = [
        decision(left[1], "dedup", "dedup.image_exact", "drop", 0.0, 0.0, scope="node", index=1),
        decision(left[1], "dedup", "dedup.nothing_left", "drop", 0.0, 1.0),
    ]
    build.stage("dedup", {"documents": left[2:], "decisions": copies})
    build.stage("caption", {"documents": left[2:]})
    unread = [
        decision(left[2], "tokenize", "image-unreadable", "drop", None, None, scope="node", index=1),
        decision(left[2], "tokenize", "tokenize.nothing_left", "drop", 0.0, 1.0),
    ]
    rows = [tokenized(left[3])]
    schemas = {"tokenized": tokenized_schema(16), "decisions": DECISION_SCHEMA}
    build.stage("tokenize", {"tokenized": rows, "decisions": unread}, schemas)
    small = CostModel(hidden_size=8, ffn_hidden_size=8, layers=1, heads=1, query_groups=1, vocabulary=8)
    found = plan(map(shape_of, rows), PackConfig(max_length=50, cost=small))
    build.stage("pack", {"decisions": list(found.decisions)}, {"decisions": DECISION_SCHEMA})
    return Run(root, {name: pages[name]["doc_id"] for name in names})


def _bpe(folder: Path) -> bytes:
    from nextflow_tokenize.config.tokenize import TextTokenizerConfig
    from nextflow_tokenize.documents.text_tokenizer import train_bpe

    train_bpe(["some words of text"] * 3, TextTokenizerConfig(vocab_size=270), folder / "tokenizer.json")
    return (folder / "tokenizer.json").read_bytes()


def _vision_tokenizer(build: Builder, big: dict[str, Any], folder: Path) -> None:
    """An untrained tokenizer with real weights, and an evaluation of the one image."""
    import torch
    from nextflow_tokenize.config.vision import VisionTokenizerConfig
    from nextflow_tokenize.vision.model import VisionTokenizer

    sizes = {"codebook_size": 16, "semantic_dim": 4, "pixel_dim": 4, "levels": (128,), "channels": 8, "decoder_channels": 8}
    config = VisionTokenizerConfig(**sizes)  # type: ignore[arg-type]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        identity_ = VisionTokenizer(config).save(folder)
    scored = {"sha256": big["sha256"], "grid": list(SCHEDULE[-1]), "scales": 8, "psnr": 12.5, "semantic_cosine": 0.1}
    scales = [
        {"scale": k, "tokens": h * w, "distinct": min(16, h * w), "perplexity": 1.5} for k, (h, w) in enumerate(SCHEDULE, 1)
    ]
    evaluation = {"images": [scored], "scales": scales, "psnr": 12.5, "usage": 0.5}
    metrics = "".join(json.dumps({"step": step, "psnr": 10 + step / 10}) + "\n" for step in (10, 20))
    files = {f"tokenizer/{path.name}": path.read_bytes() for path in folder.iterdir()}
    files |= {"tokenizer/evaluation.json": json.dumps(evaluation).encode(), "tokenizer/metrics.jsonl": metrics.encode()}
    facts = {"tokenizer": identity_, "training_images": 1, "held_out_images": 1, "steps": 20, "psnr_training": 13.0}
    build.stage("vision_tokenizer", {}, {}, files, facts, vision_tokenizer=config.model_dump(mode="json"))


def _shards(folder: Path, row: dict[str, Any]) -> None:
    """One pack with the whole document."""
    folder.mkdir()
    config = PackConfig(max_length=512)
    (packed,) = plan([shape_of(row)], config).packs  # type: ignore[arg-type]
    sample = build_pack(packed, {row["doc_id"]: row})  # type: ignore[dict-item]
    info = write_shard(folder / "shard-000000.tar", [sample], 16, config)
    write_manifest(
        folder,
        [info],
        config=config,
        text_tokenizer=TextTokenizerRecord(sha256="a" * 64, vocab_size=300),
        vision_tokenizer=VisionTokenizerRecord(sha256="b" * 64, codebook_size=16, semantic_dim=4, pixel_dim=4),
        parents={},
    )
