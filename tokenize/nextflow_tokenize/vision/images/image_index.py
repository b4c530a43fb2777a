"""Which images a tokenizer is trained on: found in folders, tars and WARC files, hashed once, listed in one Parquet file.

Reading everything once before training costs a pass over the data; in return every image has a name that depends on nothing
but its bytes (what is held out and drawn follows from it), its size is known without decoding, what cannot be used is listed
with its reason, and the list says exactly what a tokenizer has seen. The index is kept while files, their sizes and times
stay the same. Tar members are read in place, never extracted, and only regular files count.
"""

from __future__ import annotations

import glob
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from nextflow_data.common.range_opener import LocalFiles
from nextflow_data.common.whole_files import replacing
from nextflow_data.config import IngestConfig

from nextflow_tokenize.vision.images.dataset import EncodedImage

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
WARCS = (".warc", ".warc.gz")
SCHEMA = pa.schema(
    [
        ("file", pa.string()), ("kind", pa.string()), ("offset", pa.int64()), ("length", pa.int64()), ("name", pa.string()),
        ("sha256", pa.string()), ("height", pa.int32()), ("width", pa.int32()), ("reason", pa.string()),
    ]
)  # fmt: skip
"""`kind`: file, tar or warc. `reason` is null for an image that can be used; sizes are those of the picture upright."""

_FILES = LocalFiles()

Progress = Callable[[int], None]
"""Called with how many images have been read."""


def find(images: Sequence[str]) -> list[Path]:
    """The files that paths, folders and patterns name, sorted. Raises FileNotFoundError for one that names nothing."""
    found: set[Path] = set()
    for name in images:
        path = Path(name)
        if path.is_dir():
            files = {p for p in path.rglob("*") if p.is_file() and _kind(p) is not None}
        elif path.is_file():
            files = {path}
        else:
            files = {Path(p) for p in glob.glob(name, recursive=True) if Path(p).is_file() and _kind(Path(p)) is not None}
        if not files:
            raise FileNotFoundError(f"no images in {name}: name folders, image files, .tar or .warc files")
        found |= files
    return sorted(found)


def index(images: Sequence[str], path: Path, progress: Progress | None = None) -> pa.Table:
    """The table of `images`, read from `path` where it still holds true, else made and written there."""
    files = find(images)
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    state = hashlib.sha256(json.dumps(stats).encode()).hexdigest().encode()
    if path.is_file():
        kept = pq.read_table(path)
        if (kept.schema.metadata or {}).get(b"files") == state:
            return kept
    rows: list[dict[str, object]] = []
    for file in files:
        for row in _rows(file):
            rows.append(row)
            if progress is not None:
                progress(len(rows))
    table = pa.Table.from_pylist(rows, schema=SCHEMA).replace_schema_metadata({b"files": state})
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, durable=False) as beside:
        pq.write_table(table, beside)
    return table


def encoded_images(table: pa.Table) -> list[EncodedImage]:
    """The usable images of an index, each hash once."""
    found: dict[str, EncodedImage] = {}
    for row in table.to_pylist():
        if row["reason"] is None and row["sha256"] not in found:
            load = partial(_load, row["file"], row["kind"], row["offset"], row["length"], row["sha256"])
            found[row["sha256"]] = EncodedImage(row["sha256"], load, (row["height"], row["width"]))
    return list(found.values())


def unusable(table: pa.Table) -> dict[str, str]:
    """File and member to reason, for what an index could not use."""
    return {f"{r['file']} {r['name'] or ''}".strip(): r["reason"] for r in table.to_pylist() if r["reason"] is not None}


def _kind(path: Path) -> str | None:
    name = path.name.lower()
    if name.endswith(WARCS):
        return "warc"
    return "tar" if name.endswith(".tar") else "file" if name.endswith(SUFFIXES) else None


def _rows(file: Path) -> Iterator[dict[str, object]]:
    kind = _kind(file) or "file"
    if kind == "file":
        yield _row(file, kind, 0, file.stat().st_size, None, None)
    elif kind == "tar":
        try:
            with _FILES.open(str(file)) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
                for member in archive:
                    if member.isreg() and member.name.lower().endswith(SUFFIXES):
                        yield _row(file, kind, member.offset_data, member.size, member.name, None)
        except (tarfile.TarError, OSError) as error:
            # Members before the damage stay; what follows cannot be told from it.
            yield _row(file, kind, 0, 0, None, f"the tar cannot be read on: {error}")
    else:
        from nextflow_data.sources.warc import WarcConfig, WarcSource

        for record in WarcSource(WarcConfig(files=(str(file),)), IngestConfig()).records(str(file), _FILES):
            if record.get("kind") == "image":
                yield _row(file, kind, int(record["offset"] or 0), int(record["length"] or 0), record["address"], None)


def _row(file: Path, kind: str, offset: int, length: int, name: str | None, reason: str | None) -> dict[str, object]:
    row: dict[str, object] = dict.fromkeys(SCHEMA.names)
    row |= {"file": str(file), "kind": kind, "offset": offset, "length": length, "name": name, "reason": reason}
    if reason is not None:
        return row
    try:
        payload = _load(str(file), kind, offset, length, None)
        row["sha256"] = hashlib.sha256(payload).hexdigest()
        row["height"], row["width"] = _size(payload)
    except Exception as error:  # any of a dozen decoders' errors: the image is listed with its reason
        row["reason"] = f"{type(error).__name__}: {error}"
    return row


def _size(payload: bytes) -> tuple[int, int]:
    """(height, width) upright, from the header alone. Raises ValueError for more pixels than ingest allows."""
    from PIL import Image

    limit = IngestConfig().max_image_pixels
    with Image.open(io.BytesIO(payload)) as image:
        width, height = image.size
        turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    if width * height > limit:
        raise ValueError(f"{width}×{height} pixels are more than {limit:,}")
    return (width, height) if turned else (height, width)


def _load(file: str, kind: str, offset: int, length: int, sha256: str | None) -> bytes:
    """An image's bytes. Raises OSError, ValueError where they are not those that were indexed or too many."""
    limit = IngestConfig().max_image_bytes
    if kind == "warc":
        from nextflow_data.warc.records import read

        payload = read({"uri": file, "offset": offset, "length": length}, IngestConfig(), _FILES, limit)
    else:
        if length > limit:
            raise ValueError(f"{length:,} bytes are more than {limit:,}")
        payload = _FILES.read(file, offset, length)
    if sha256 is not None and hashlib.sha256(payload).hexdigest() != sha256:
        raise ValueError(f"{file} has changed since it was indexed")
    return payload
