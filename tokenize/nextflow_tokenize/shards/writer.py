"""Writing a shard set: tars through webdataset, their member indexes, the two tables, and the manifest last.

`webdataset.TarWriter` writes the tars, because its ordering and naming are what every WebDataset reader expects; with a
fixed time, owner and mode its output is byte for byte reproducible (ustar headers, members of a sample in alphabetical
order). A sample's key is its shard's number and its place in it, `000003-000017`, so a key finds its bytes without a
lookup. The cost: a pack's key changes when the plan does; what is stable is the document's id, and `documents.parquet`
leads from one to the other.

The member index `shard-000000.tar.idx` is little-endian uint64: the offset of each sample's first header, then the end of
the last sample. It is Energon's index format. A shard is read back once after writing: for its hash, and because it is then
known that the disk gives back what was written.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import numpy as np
from nextflow_data.common.whole_files import replace_file, replacing

from nextflow_tokenize.config.pack import PackConfig
from nextflow_tokenize.npy import TEXT_DTYPE, code_dtype, to_npy
from nextflow_tokenize.packing.pieces import budget
from nextflow_tokenize.packing.sample import PackSample, PieceRow
from nextflow_tokenize.shards.energon import nv_meta
from nextflow_tokenize.shards.manifest import (
    DOCUMENTS,
    MANIFEST,
    SAMPLES,
    BudgetRecord,
    FileRecord,
    ShardManifest,
    ShardRecord,
    TextTokenizerRecord,
    Tokens,
    Totals,
    VisionTokenizerRecord,
    canonical,
    packing_of,
    schedule_record,
    seal,
    sum_by,
    to_bytes,
)
from nextflow_tokenize.shards.tables import SampleRow, ShardInfo, tables_of, to_parquet


def sample_key(shard: int, sample: int) -> str:
    """Key of a sample: six digits of its shard, six of its place in it."""
    return f"{shard:06d}-{sample:06d}"


def shard_name(number: int) -> str:
    """Name of a shard."""
    return f"shard-{number:06d}.tar"


def write_shard(path: Path, packs: Iterable[PackSample], codebook_size: int) -> ShardInfo:
    """Writes `shard-NNNNNN.tar` and its index, each whole or not at all, and says what is in them.

    `codebook_size` decides the width of codes; 1 for a set without images. Raises ValueError for a path that is no shard's,
    and for a pack whose codes or ids do not fit, naming its key. Two tasks that write the same shard write the same bytes.
    """
    path = Path(path)
    if not (
        path.name.startswith("shard-") and path.name.endswith(".tar") and path.name[6:-4].isdigit() and len(path.name) == 16
    ):
        raise ValueError(f"a shard is called shard-000000.tar, not {path.name}")
    number, dtype = int(path.name[6:12]), code_dtype(codebook_size)
    offsets: list[int] = []
    kept: list[PackSample] = []

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
            kept.append(_light(pack))
        offsets.append(writer.tarstream.offset)
    index = np.asarray(offsets, dtype="<u8").tobytes()
    index_path = path.with_name(path.name + ".idx")
    replace_file(index_path, index)
    size, digest, checksums = hash_samples(path, offsets)
    rows = tuple(
        _sample_row(pack, sample_key(number, i), offsets[i], offsets[i + 1] - offsets[i], checksums[i])
        for i, pack in enumerate(kept)
    )
    record = ShardRecord(
        name=path.name,
        bytes=size,
        sha256=digest,
        index_bytes=len(index),
        index_sha256=sha256(index).hexdigest(),
        samples=len(rows),
        slots=sum(row.slots for row in rows),
        text_tokens=sum(row.text_tokens for row in rows),
        image_codes=sum(row.image_codes for row in rows),
        images=sum(row.images for row in rows),
    )
    return ShardInfo(record=record, samples=rows)


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
) -> ShardManifest:
    """Commits a shard set: writes `samples.parquet`, `documents.parquet`, `.nv-meta` and, last, `manifest.json`.

    `shards` in any order; `parents` maps each stage it was made from to its fingerprint. Raises ValueError where a shard's
    number is missing. A set that has a manifest is committed; running this again writes the same bytes.
    """
    ordered = sorted(shards, key=lambda info: info.record.number)
    for expected, info in enumerate(ordered):
        if info.record.number != expected:
            raise ValueError(f"shard {expected} is missing: after it comes {info.record.name}; write every shard first")
    samples, documents = tables_of(ordered)
    contents = {SAMPLES: to_parquet(samples), DOCUMENTS: to_parquet(documents)}
    contents |= nv_meta({info.record.name: info.record.samples for info in ordered})
    (folder / ".nv-meta").mkdir(parents=True, exist_ok=True)
    for name, data in contents.items():
        replace_file(folder / name, data)
    manifest = _manifest(ordered, contents, config, text_tokenizer, vision_tokenizer, parents)
    replace_file(folder / MANIFEST, to_bytes(manifest))
    return manifest


def _manifest(
    ordered: Sequence[ShardInfo],
    contents: dict[str, bytes],
    config: PackConfig,
    text_tokenizer: TextTokenizerRecord,
    vision_tokenizer: VisionTokenizerRecord | None,
    parents: dict[str, str],
) -> ShardManifest:
    rows = [row for info in ordered for row in info.samples]
    pieces = [piece for row in rows for piece in row.pieces]
    limit = budget(config)
    return seal(
        ShardManifest(
            text_tokenizer=text_tokenizer,
            vision_tokenizer=vision_tokenizer,
            schedule=schedule_record(),
            seed=config.seed,
            budget=BudgetRecord(max_length=config.max_length, max_cost=limit, cost_model=config.cost),
            parents=dict(sorted(parents.items())),
            shards=tuple(info.record for info in ordered),
            files=tuple(
                FileRecord(name=name, bytes=len(data), sha256=sha256(data).hexdigest())  # type: ignore[arg-type]
                for name, data in sorted(contents.items())
            ),
            totals=totals_of(rows, pieces),
            tokens_by_source=sum_by((piece.source_kind, amount_of(piece)) for piece in pieces),
            tokens_by_licence=sum_by((piece.licence, amount_of(piece)) for piece in pieces),
            packing=packing_of(sum(row.slots for row in rows), [row.cost for row in rows], config.max_length, limit),
        )
    )


def amount_of(piece: PieceRow) -> Tokens:
    """What a piece holds."""
    return Tokens(text_tokens=piece.text_tokens, image_codes=piece.image_codes, images=piece.images)


def totals_of(rows: Sequence[SampleRow], pieces: Sequence[PieceRow]) -> Totals:
    """The set's totals."""
    return Totals(
        samples=len(rows),
        documents=len({piece.doc_id for piece in pieces}),
        pieces=len(pieces),
        slots=sum(row.slots for row in rows),
        text_tokens=sum(row.text_tokens for row in rows),
        image_codes=sum(row.image_codes for row in rows),
        images=sum(row.images for row in rows),
    )
