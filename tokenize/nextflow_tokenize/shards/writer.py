"""Writing a shard set: tars through webdataset, their indexes and parts of tables, and the manifest last.

`webdataset.TarWriter` writes the tars, because its ordering and naming are what every WebDataset reader expects; with a
fixed time, owner and mode its output is byte for byte reproducible (ustar headers, members of a sample in alphabetical
order). A sample's key is its shard's number and its place in it, `000003-000017`, so a key finds its bytes without a
lookup. The cost: a pack's key changes when the plan does; what is stable is the document's id, and the table of documents
leads from one to the other.

The member index `shard-000000.tar.idx` is little-endian uint64: the offset of each sample's first header, then the end of
the last sample. It is Energon's index format. A shard is read back once after writing: for its hash, and because it is then
known that the disk gives back what was written.

A shard is whole with the four files of `write_shard`, which any task can write; `write_manifest` is one process's and holds
a row a shard.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from nextflow_data.common.section import Section
from nextflow_data.common.whole_files import replace_file, replacing

from nextflow_tokenize.config.pack import PackConfig
from nextflow_tokenize.npy import TEXT_DTYPE, code_dtype, to_npy
from nextflow_tokenize.packing.pieces import budget
from nextflow_tokenize.packing.sample import PackSample
from nextflow_tokenize.shards.energon import nv_meta
from nextflow_tokenize.shards.manifest import MANIFEST, SHARDS, FileRecord, ShardManifest, Totals, seal, to_bytes
from nextflow_tokenize.shards.records import (
    BudgetRecord,
    TextTokenizerRecord,
    VisionTokenizerRecord,
    canonical,
    identity_of,
    schedule_record,
)
from nextflow_tokenize.shards.statistics import Statistics, tokens_of
from nextflow_tokenize.shards.tables import (
    DOCUMENTS,
    SAMPLES,
    SHARDS_SCHEMA,
    SampleRow,
    ShardRecord,
    part_name,
    parts_of,
    to_parquet,
)


class ShardInfo(Section):
    """What `write_shard` made: all that `write_manifest` needs of a shard. Tasks send it as JSON (`model_dump_json`).

    `statistics` is the JSON of `Statistics`.
    """

    record: ShardRecord
    statistics: str


def sample_key(shard: int, sample: int) -> str:
    """Key of a sample: six digits of its shard, six of its place in it."""
    return f"{shard:06d}-{sample:06d}"


def shard_name(number: int) -> str:
    """Name of a shard."""
    return f"shard-{number:06d}.tar"


def shard_files(number: int) -> tuple[str, ...]:
    """Names in the set of a shard's files: tar, member index, samples, documents."""
    name = shard_name(number)
    return name, f"{name}.idx", part_name(SAMPLES, name), part_name(DOCUMENTS, name)


def write_shard(
    path: Path, packs: Iterable[PackSample], codebook_size: int, config: PackConfig, group: int = 0
) -> ShardInfo:
    """Writes `shard-NNNNNN.tar`, its index and its parts of the tables, each whole or not at all; says what is in them.

    `codebook_size` decides the width of codes; 1 for a set without images. `group` is that of the documents. Raises
    ValueError for a path that is no shard's, and for a pack whose codes or ids do not fit, naming its key. Two tasks that
    write the same shard write the same bytes.
    """
    path = Path(path)
    if not (
        path.name.startswith("shard-") and path.name.endswith(".tar") and path.name[6:-4].isdigit() and len(path.name) == 16
    ):
        raise ValueError(f"a shard is called shard-000000.tar, not {path.name}")
    number, dtype, limit = int(path.name[6:12]), code_dtype(codebook_size), budget(config)
    offsets: list[int] = []
    kept: list[PackSample] = []
    counted = Statistics()

    # Imported here: webdataset brings in torch where it is installed, over a second that a reader need not wait.
    from webdataset.writer import TarWriter

    with (
        replacing(path) as beside,
        beside.open("xb") as file,
        TarWriter(file, encoder=False, mtime=0, user="", group="", mode=0o644, compress=False) as writer,
    ):
        for place, pack in enumerate(packs):
            key = sample_key(number, place)
            offsets.append(writer.tarstream.offset)
            writer.write({"__key__": key, **_members(pack, key, dtype, codebook_size)})
            counted.add(pack, config.max_length, limit)
            kept.append(_light(pack))
        offsets.append(writer.tarstream.offset)
    size, digest, checksums = hash_samples(path, offsets)
    rows = [
        _sample_row(pack, sample_key(number, i), offsets[i], offsets[i + 1] - offsets[i], checksums[i])
        for i, pack in enumerate(kept)
    ]
    parts = parts_of(path.name, rows)
    for row in parts[DOCUMENTS].to_pylist():
        counted.add_piece(row)
    contents = {"index": np.asarray(offsets, dtype="<u8").tobytes(), **{of: to_parquet(part) for of, part in parts.items()}}
    for name, data in zip(shard_files(number)[1:], contents.values(), strict=True):
        (path.parent / name).parent.mkdir(exist_ok=True)
        replace_file(path.parent / name, data)
    record = ShardRecord(
        name=path.name,
        group=group,
        bytes=size,
        sha256=digest,
        samples=counted.packs,
        pieces=counted.pieces,
        slots=sum(row.slots for row in rows),
        text_tokens=sum(row.text_tokens for row in rows),
        image_codes=sum(row.image_codes for row in rows),
        images=sum(row.images for row in rows),
        **{f"{of}_bytes": len(data) for of, data in contents.items()},  # type: ignore[arg-type]
        **{f"{of}_sha256": sha256(data).hexdigest() for of, data in contents.items()},  # type: ignore[arg-type]
    )
    return ShardInfo(record=record, statistics=counted.bounded().to_json())


def _light(pack: PackSample) -> PackSample:
    """The pack without its arrays, so that a shard's memory is its largest pack and not its sum."""
    empty = np.zeros(0, np.uint32)
    return PackSample(pack.segments, pack.cost, empty.astype(np.int32), empty, empty, pack.pieces)


def _members(pack: PackSample, key: str, dtype: np.dtype, codebook_size: int) -> dict[str, bytes]:
    for name, array in (("input", pack.input), ("target", pack.target)):
        if len(array) and int(array.max()) >= codebook_size:
            raise ValueError(f"{key}: {name} code {int(array.max())} does not fit a codebook of {codebook_size}")
    if len(pack.text) and int(pack.text.min()) < 0:
        raise ValueError(f"{key}: text id {int(pack.text.min())} is negative")
    return {
        "json": canonical({"segments": list(pack.segments), "cost": float(pack.cost)}),
        "text.npy": to_npy(pack.text.astype(TEXT_DTYPE)),
        "input.npy": to_npy(pack.input.astype(dtype)),
        "target.npy": to_npy(pack.target.astype(dtype)),
    }


def _sample_row(pack: PackSample, key: str, offset: int, size: int, checksum: int) -> SampleRow:
    return SampleRow(
        key=key,
        offset=offset,
        bytes=size,
        crc32=checksum,
        slots=pack.pieces[-1].last_slot if pack.pieces else 0,
        cost=pack.cost,
        segments=len(pack.segments),
        text_tokens=sum(piece.text_tokens for piece in pack.pieces),
        image_codes=sum(piece.image_codes for piece in pack.pieces),
        images=sum(piece.images for piece in pack.pieces),
        pieces=pack.pieces,
    )


def hash_samples(path: Path, offsets: Sequence[int]) -> tuple[int, str, list[int]]:
    """Size and sha256 of a shard, and the crc32 of each sample's bytes, in one reading."""
    digest, checksums, size = sha256(), [], 0
    with path.open("rb") as file:
        for start, stop in pairwise(offsets):
            data = file.read(stop - start)
            digest.update(data)
            checksums.append(zlib.crc32(data))
            size += len(data)
        while data := file.read(1 << 20):
            digest.update(data)
            size += len(data)
    return size, digest.hexdigest(), checksums


def write_manifest(
    folder: Path,
    shards: Iterable[ShardInfo],
    *,
    config: PackConfig,
    text_tokenizer: TextTokenizerRecord,
    vision_tokenizer: VisionTokenizerRecord | None,
    parents: dict[str, str],
) -> tuple[ShardManifest, Statistics]:
    """Commits a shard set: writes `shards.parquet`, `.nv-meta` and, last, `manifest.json`; gives the set's statistics too.

    `shards` in their order; `parents` maps each stage it was made from to its fingerprint. Raises ValueError where a shard's
    number is missing. A set that has a manifest is committed; running this again writes the same bytes.
    """
    counted = Statistics()
    table = pa.Table.from_batches(_shard_rows(shards, counted), SHARDS_SCHEMA).combine_chunks()
    counted.bounded()
    contents = {SHARDS: to_parquet(table)}
    contents |= nv_meta(dict(zip(table["name"].to_pylist(), table["samples"].to_pylist(), strict=True)))
    (folder / ".nv-meta").mkdir(parents=True, exist_ok=True)
    for name, data in contents.items():
        replace_file(folder / name, data)
    limit, schedule = budget(config), schedule_record()
    manifest = seal(
        ShardManifest(
            text_tokenizer=text_tokenizer,
            vision_tokenizer=vision_tokenizer,
            schedule=schedule,
            seed=config.seed,
            budget=BudgetRecord(max_length=config.max_length, max_cost=limit, cost_model=config.cost),
            parents=dict(sorted(parents.items())),
            files=tuple(
                FileRecord(name=name, bytes=len(data), sha256=sha256(data).hexdigest())  # type: ignore[arg-type]
                for name, data in sorted(contents.items())
            ),
            totals=totals_of(counted, table),
            tokens_by_source=tokens_of(counted.tokens_by_source),
            tokens_by_licence=tokens_of(counted.tokens_by_licence),
            packing=counted.packing(config.max_length, limit),
            set_identity=identity_of(table["sha256"].to_pylist(), text_tokenizer, vision_tokenizer, schedule),
        )
    )
    replace_file(folder / MANIFEST, to_bytes(manifest))
    return manifest, counted


def _shard_rows(shards: Iterable[ShardInfo], counted: Statistics) -> Iterator[pa.RecordBatch]:
    """The rows of shards, a thousand at a time, as small as they can be held; what was counted of each is added up."""
    waiting: list[dict[str, Any]] = []
    for expected, info in enumerate(shards):
        if info.record.number != expected:
            raise ValueError(f"shard {expected} is missing: after it comes {info.record.name}; write every shard first")
        counted.plus(Statistics.from_json(info.statistics))
        waiting.append(info.record.model_dump())
        if len(waiting) == 1000:
            yield pa.RecordBatch.from_pylist(waiting, schema=SHARDS_SCHEMA)
            waiting = []
    yield pa.RecordBatch.from_pylist(waiting, schema=SHARDS_SCHEMA)


def totals_of(counted: Statistics, shards: pa.Table) -> Totals:
    """The set's totals, from what was counted and the rows of its shards."""
    groups = max(1, len(set(shards["group"].to_pylist())))
    size = sum(shards["bytes"].to_pylist())
    names = ("documents", "pieces", "slots", "text_tokens", "image_codes", "images")
    amounts = {name: getattr(counted, name) for name in names}
    return Totals(shards=shards.num_rows, bytes=size, groups=groups, samples=counted.packs, **amounts)
