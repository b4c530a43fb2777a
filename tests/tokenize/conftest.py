"""Shard sets for the tests, made of synthetic tokenised documents by the real planner and writer."""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from nextflow_tokenize.config.pack import CostModel, PackConfig
from nextflow_tokenize.documents.tokenized import TokenizedDocument, TokenizedSegment
from nextflow_tokenize.npy import code_dtype
from nextflow_tokenize.packing.pieces import shape_of
from nextflow_tokenize.packing.plan import Packing, assign_shards, plan
from nextflow_tokenize.packing.sample import PackSample, build_pack
from nextflow_tokenize.schedule import FINAL_GRIDS, canonical_final, grids, token_count
from nextflow_tokenize.shards.manifest import ShardManifest
from nextflow_tokenize.shards.records import TextTokenizerRecord, VisionTokenizerRecord
from nextflow_tokenize.shards.writer import ShardInfo, shard_name, write_manifest, write_shard

CODEBOOK, VOCABULARY = 4096, 1000
COST = CostModel(hidden_size=32, ffn_hidden_size=64, layers=2, heads=2, query_groups=2, vocabulary=VOCABULARY)


def tokenized_documents(count: int, *, seed: int = 0, images: float = 0.5, scales: int = 6) -> list[TokenizedDocument]:
    """Documents of one to four texts, with an image after each with probability `images`."""
    rng = random.Random(seed)
    documents: list[TokenizedDocument] = []
    for number in range(count):
        segments: list[TokenizedSegment] = []
        for _ in range(rng.randint(1, 4)):
            ids = [rng.randrange(VOCABULARY) for _ in range(max(1, int(rng.lognormvariate(3, 1))))]
            segments.append(
                {"kind": "text", "loss": rng.random() < 0.8, "text": ids, "sha256": None, "grid": None}
                | {"scales": None, "input": None, "target": None}  # type: ignore[arg-type]
            )
            if rng.random() >= images:
                continue
            schedule = grids(canonical_final(rng.choice(FINAL_GRIDS), scales), scales)
            codes = {name: [rng.randrange(CODEBOOK) for _ in range(token_count(schedule))] for name in ("input", "target")}
            sha = hashlib.sha256(rng.randbytes(8)).hexdigest()
            segments.append(
                {"kind": "image", "loss": True, "text": None, "sha256": sha, "grid": list(schedule[-1]), "scales": scales}
                | codes  # type: ignore[arg-type]
            )
        documents.append(
            {
                "doc_id": hashlib.sha256(f"{seed}/{number}".encode()).hexdigest()[:32],
                "address": f"https://example.org/{number}",
                "source_kind": rng.choice(["warc", "parquet"]),
                "licence": rng.choice(["CC-BY-4.0", "LGPL-2.1", None]),
                "task": "interleaved",
                "segments": segments,
            }
        )
    return documents


@dataclass
class MadeSet:
    """A shard set on disk and everything it was made of."""

    path: Path
    documents: dict[str, TokenizedDocument]
    config: PackConfig
    plan: Packing
    shards: list[ShardInfo]
    manifest: ShardManifest


MakeSet = Callable[..., MadeSet]


def write_set(
    path: Path,
    documents: list[TokenizedDocument],
    *,
    config: PackConfig | None = None,
    codebook: int = CODEBOOK,
    vocabulary: int = VOCABULARY,
    stated_codebook: int | None = None,
    change: Callable[[PackSample], PackSample] = lambda pack: pack,
) -> MadeSet:
    """Plans, packs and writes documents.

    `change` alters packs before they are written; `stated_codebook` is what the manifest says where that is not the truth.
    """
    config = config or PackConfig(max_length=400, samples_per_shard=4, cost=COST)
    by_id = {document["doc_id"]: document for document in documents}
    planned = plan(map(shape_of, documents), config)
    path.mkdir(parents=True, exist_ok=True)
    shards = [
        write_shard(path / shard_name(number), (change(build_pack(pack, by_id)) for pack in packs), codebook, config)
        for number, packs in enumerate(assign_shards(planned.packs, code_dtype(codebook).itemsize, config))
    ]
    vision = VisionTokenizerRecord(sha256="b" * 64, codebook_size=stated_codebook or codebook, semantic_dim=8, pixel_dim=16)
    manifest, _ = write_manifest(
        path,
        shards,
        config=config,
        text_tokenizer=TextTokenizerRecord(sha256="a" * 64, vocab_size=vocabulary, eod=0),
        vision_tokenizer=vision,
        parents={"tokenize": "c" * 64},
    )
    return MadeSet(path, by_id, config, planned, shards, manifest)


@pytest.fixture
def make_set(tmp_path: Path) -> MakeSet:
    """`make_set(count=30, name="set", **settings of write_set)`: a set in a folder of this test."""

    def make(count: int = 30, name: str = "set", **settings: object) -> MadeSet:
        return write_set(tmp_path / name, tokenized_documents(count), **settings)  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def sound_set(tmp_path_factory: pytest.TempPathFactory) -> MadeSet:
    """A set of several shards, to be read only."""
    return write_set(tmp_path_factory.mktemp("sound") / "set", tokenized_documents(60))


@pytest.fixture(scope="session")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a set of a few shards, quick to audit many times; a test that damages it must mend it."""
    config = PackConfig(max_length=400, samples_per_shard=2, cost=COST)
    made = write_set(tmp_path_factory.mktemp("small") / "set", tokenized_documents(9), config=config)
    assert len(made.shards) > 1
    return made.path
