"""Trainer tests run in one process on the CPU, whose answers must be in place before anything imports megatron.core.

Here too is the synthetic shard set that runs of the trainer read: real shards, written by the shard writer.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nextflow_tokenize.config.pack import PackConfig
from nextflow_tokenize.config.vision import VisionTokenizerConfig
from nextflow_tokenize.documents.tokenized import TokenizedDocument, TokenizedSegment
from nextflow_tokenize.packing.pieces import shape_of
from nextflow_tokenize.packing.plan import assign_shards, plan
from nextflow_tokenize.packing.sample import build_pack
from nextflow_tokenize.schedule import canonical_final, grids, token_count
from nextflow_tokenize.shards.records import TextTokenizerRecord, VisionTokenizerRecord
from nextflow_tokenize.shards.writer import shard_name, write_manifest, write_shard
from nextflow_tokenize.vision.identity import identity
from safetensors.numpy import save_file

from megatron_nextflow.config.model import ModelConfig
from megatron_nextflow.config.train import FeedConfig, OptimizerConfig, TrainConfig
from megatron_nextflow.runtime.device import setup

setup("cpu")

TEXT_IDS = 61
CODES = 48
LENGTH = 192


@dataclass(frozen=True)
class TrainingData:
    """A small shard set and the vision tokenizer it names."""

    shards: Path
    vision_tokenizer: Path


def write_vision_tokenizer(folder: Path, seed: int) -> None:
    """A vision tokenizer's folder with random unit codes, as far as the trainer reads one."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    model = VisionTokenizerConfig(codebook_size=CODES, semantic_dim=4, pixel_dim=6).model_dump(
        mode="json", exclude={"training"}
    )
    (folder / "config.json").write_text(json.dumps({"format": 2, "model": model}), encoding="utf-8")
    codes = {name: rng.normal(size=(CODES, width)) for name, width in (("semantic", 4), ("pixel", 6))}
    unit = {f"quantizer.{n}": (c / np.linalg.norm(c, axis=1, keepdims=True)).astype(np.float32) for n, c in codes.items()}
    save_file(unit, folder / "weights.safetensors")


def write_shards(folder: Path, vision_tokenizer: Path, documents: int = 40, seed: int = 0) -> None:
    """Documents of text and images of several grids and numbers of scales, packed and written as a shard set."""
    rng = np.random.default_rng(seed)
    rows = [_document(number, rng) for number in range(documents)]
    config = PackConfig(max_length=LENGTH, samples_per_shard=6, seed=seed)
    folder.mkdir(parents=True)
    by_id = {row["doc_id"]: row for row in rows}
    shards = assign_shards(plan(map(shape_of, rows), config).packs, 1, config)
    infos = [
        write_shard(folder / shard_name(number), [build_pack(pack, by_id) for pack in packs], CODES, config)
        for number, packs in enumerate(shards)
    ]
    write_manifest(
        folder,
        infos,
        config=config,
        text_tokenizer=TextTokenizerRecord(sha256=hashlib.sha256(b"text").hexdigest(), vocab_size=TEXT_IDS, eod=0),
        vision_tokenizer=VisionTokenizerRecord(
            sha256=identity(vision_tokenizer), codebook_size=CODES, semantic_dim=4, pixel_dim=6
        ),
        parents={},
    )


def _document(number: int, rng: np.random.Generator) -> TokenizedDocument:
    segments: list[TokenizedSegment] = [_text(rng)]
    for _ in range(int(rng.integers(0, 3))):
        final = [(64, 64), (32, 128), (84, 48), (60, 68)][int(rng.integers(4))]
        scales = int(rng.integers(2, 5))
        schedule = grids(canonical_final(final, scales), scales)
        count = token_count(schedule)
        target = rng.integers(0, CODES, count)
        fed = np.where(rng.random(count) < 0.4, rng.integers(0, CODES, count), target)
        image: dict[str, Any] = {"kind": "image", "loss": bool(rng.random() < 0.8), "text": None, "sha256": f"{number:064x}"}
        image |= {"grid": list(schedule[-1]), "scales": len(schedule), "input": fed.tolist(), "target": target.tolist()}
        segments += [image, _text(rng)]  # type: ignore[list-item]
    return {
        "doc_id": f"{number:032x}",
        "address": None,
        "source_kind": "synthetic",
        "licence": None,
        "task": "interleaved",
        "segments": segments,
    }


def _text(rng: np.random.Generator) -> TokenizedSegment:
    ids = rng.integers(0, TEXT_IDS, int(rng.integers(1, 25))).tolist()
    absent: dict[str, Any] = dict.fromkeys(("sha256", "grid", "scales", "input", "target"))
    return {"kind": "text", "loss": True, "text": ids, **absent}  # type: ignore[typeddict-item]


@pytest.fixture(scope="session")
def training_data(tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    """A shard set of 40 documents that tests only read."""
    root = tmp_path_factory.mktemp("training-data")
    write_vision_tokenizer(root / "vision", 0)
    write_shards(root / "shards", root / "vision")
    return TrainingData(root / "shards", root / "vision")


def train_config(data: TrainingData, output: Path, **settings: Any) -> TrainConfig:
    """A tiny model on `data`: 4 packs a step, a fixed learning-rate schedule, a checkpoint only at the end."""
    feed = FeedConfig(shards=str(data.shards), vision_tokenizer=data.vision_tokenizer, global_batch_size=4)
    model = ModelConfig(hidden_size=64, layers=4, heads=4, query_groups=2, ffn_size=96, max_length=LENGTH, max_scales=6)
    given: dict[str, Any] = {
        "output": output,
        "model": model,
        "data": feed,
        "optimizer": OptimizerConfig(warmup_steps=2, decay_steps=100, lr=3e-3),
        "steps": 5,
        "checkpoint_interval": 1000,
        "device": "cpu",
    }
    return TrainConfig(**(given | settings))


@pytest.fixture(scope="session")
def make_config() -> Callable[..., TrainConfig]:
    """`train_config`, for tests: they cannot import this file."""
    return train_config
