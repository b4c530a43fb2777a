"""JSONL files: a row is a document, or a pair, a triple, a dialogue; its images are in the row or elsewhere in the run.

A row is `{"text": …, "images": [{"data": base64} or {"uri": address}, …], "task": …, "url": …, "licence": …, …}` (`Row`).
`<image>` in the text says where each image stands, in order; without one, images stand before the text, and after it where
the task is text-to-image. An image by `uri` is looked up among the image records of all of the run's sources, as a page's
images are. The choices are ours: no standard exists, and the marker is the one that LLaVA's dialogues have.

Rows are found again by their place, so a compressed file is refused (unpack it: rows of one gzip stream have none). A file
is read once; its parts begin at line ends, and rows are numbered through when all parts are known.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, Literal

from nextflow_data.addresses import canonical_address
from nextflow_data.common.range_opener import RangeOpener
from nextflow_data.common.stage_names import INGEST
from nextflow_data.config import IngestConfig
from nextflow_data.decisions import Aside, Decision, Finding, Subject, aside, decision
from nextflow_data.document import Document, Image, Node, Task, doc_id, image_node, text_node
from nextflow_data.nodes import task_of, without
from nextflow_data.records import Read, RecordInfo, Span, Unusable, put_aside, ref_of, source_of
from nextflow_data.sources.base import SOURCES, Found, Made, SourceConfig
from nextflow_data.sources.jsonl_row import Row, decoded, parse_row
from nextflow_data.sources.one_pass import Draft, OnePass

MARK = "<image>"
"""Where an image stands in a row's text."""
FRAGMENT = "#image-"
"""What follows a row's address in that of an image inside it: the image's number in the row."""
ROW = "#row-"
"""What follows a file's uri in the name of one of its rows: the row's number, blank lines counted, from 1."""
FEWEST_IMAGES: dict[Task, int] = {"text-to-image": 1, "image-to-text": 1, "editing": 2}
"""Tasks of which nothing is left without every image: a row that lacks one is put aside whole."""
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz"}
_BOM = b"\xef\xbb\xbf"


class JsonlConfig(SourceConfig):
    """JSONL files, and what holds for rows that do not say it themselves."""

    kind: Literal["jsonl"] = "jsonl"
    task: Task | None = None
    """Task of rows that name none. A row of none in FEWEST_IMAGES is text, or interleaved where it has images."""
    licence: str | None = None
    """Licence of rows that name none."""


@SOURCES.register("jsonl")
class JsonlSource(OnePass[Row]):
    """A document a row. Rows that name images elsewhere are "page" records, the others "document"."""

    Config = JsonlConfig

    def read_on(self, stream: BinaryIO, uri: str, span: Span) -> Iterator[Read[Row] | Aside]:
        stream.seek(0)
        if packed := _packed(stream.read(8)):
            span.began, span.ended = span.start, stream.seek(0, 2)
            if span.start == 0:
                detail = f"{packed}: unpack it, rows are found by their place"
                yield _of_file(uri, span.ended, "unsupported-compression", detail)
            return
        span.began = offset = span.start if span.exact else _next_line(stream, span.start, span.stop)
        stream.seek(offset)
        for line, length in _lines(stream, self.limits.max_record_bytes, offset, span):
            span.count += 1
            mark = len(_BOM) if offset == 0 and line and line.startswith(_BOM) else 0
            if line is None or line[mark:].strip():
                yield self._listed(uri, span.count, offset + mark, length - mark, line and line[mark:])
            offset += length
        span.ended = offset
        if not span.start and not offset:
            yield _of_file(uri, 0, "empty-file", "the file has no bytes")

    def _listed(self, uri: str, number: int, offset: int, length: int, line: bytes | None) -> Read[Row] | Aside:
        name = f"{uri}{ROW}{number}"
        record: RecordInfo = {
            "address": name, "uri": uri, "offset": offset, "length": length, "kind": "document", "record_id": name,
            "mime": None, "charset": None, "status": None, "date": None, "licence": self._config.licence,
        }  # fmt: skip
        try:
            if line is None:
                raise Unusable("record-too-large", f"{length} bytes, at most {self.limits.max_record_bytes} are read")
            row = parse_row(line)
        except Unusable as error:
            return put_aside(record, error)
        record["address"] = (canonical_address(row.url) if row.url else None) or name
        record["kind"] = "page" if any(image.uri is not None for image in row.images) else "document"
        record["date"], record["licence"] = row.date, row.licence or record["licence"]
        return Read(record, row)

    def named(self, text: str, uri: str, before: int) -> str:
        return f"{uri}{ROW}{int(text.removeprefix(ROW)) + before}" if text.startswith(ROW) else text

    @property
    def _config(self) -> JsonlConfig:
        assert isinstance(self.config, JsonlConfig)
        return self.config

    def payload(self, record: RecordInfo, opener: RangeOpener) -> Row:
        return _read(record["uri"], record["offset"], record["length"], opener)

    def draft(self, record: RecordInfo, payload: Row) -> Draft:
        from nextflow_data.images.measure import try_measure

        row = payload.model_dump(exclude={"images"})
        row["images"] = images = []
        for image in payload.images:
            measured: Any = None
            if image.uri is None:
                try:
                    measured = try_measure(decoded(image), self.limits)
                except Unusable as error:
                    measured = error.reason, error.detail
            address = None if image.uri is None else _address(image.uri)
            images.append({"address": address, "measured": measured, "alt": image.alt, "caption": image.caption})
        named = dict.fromkeys(image["address"] for image in images if image["address"] is not None)
        return Draft(json.dumps(row, ensure_ascii=False, separators=(",", ":")), list(named))

    def finish(self, record: RecordInfo, draft: str, found: Found) -> Made:
        row = json.loads(draft)
        images: list[Any] = row["images"]
        subject = Subject(doc_id(record["address"], record["record_id"]), record["address"])
        task: Task | None = row["task"] or self._config.task
        least = FEWEST_IMAGES.get(task, 0) if task else 0
        if len(images) < least:
            raise Unusable("images-missing", f"{task} needs {least}, the row has {len(images)}")
        decisions: list[Decision] = []
        asides: list[Aside] = []
        whole: list[Node] = []
        for node in _placed(row["text"], len(images), task):
            if not isinstance(node, int):
                whole.append(node)
                continue
            try:
                whole.append(image_node(_image(record, images[node], node, found)))
            except Unusable as error:
                if least:
                    raise Unusable(error.reason, f"image {node}, which {task} needs: {error.detail}") from None
                rule = error.reason if error.reason == "image-not-in-source" else "image-unusable"
                decisions.append(decision(subject, INGEST, Finding(rule, detail=f"image {node}: {error}"), "edit"))
                if images[node]["address"] is None:
                    address = f"{record['address']}{FRAGMENT}{node}"
                    asides.append(aside(INGEST, error.reason, address, ref_of(record), error.detail))
        whole = without(whole, frozenset())
        if not whole:
            raise Unusable("empty-row", "neither text nor an image that can be used")
        document: Document = {
            "doc_id": subject.doc_id,
            "source": source_of(record),
            "nodes": whole,
            "task": task if task and least else task_of(whole),
            "licence": record.get("licence"),
            "consent": row["consent"],
            "lang": row["lang"],
        }
        return Made(document, decisions, asides)

    @classmethod
    def image_bytes(cls, image: Image, opener: RangeOpener, limits: IngestConfig) -> bytes:
        """The image inside its row, by its number; "not-found-in-row" where the row has none such."""
        row = _read(image["ref"]["uri"], image["ref"]["offset"], image["ref"]["length"], opener)
        number = (image["address"] or "").rpartition(FRAGMENT)[2]
        if not number.isdecimal() or int(number) >= len(row.images) or row.images[int(number)].data is None:
            raise Unusable("not-found-in-row", image["address"] or "")
        return decoded(row.images[int(number)])


def _image(record: RecordInfo, given: Mapping[str, Any], number: int, found: Found) -> Image:
    """A row's image with the row's words; Unusable says why there is none."""
    from nextflow_data.images.measure import image_of

    caption = given["caption"]
    words = {"alt": given["alt"], "caption": caption, "captioner": "row" if caption else None}
    address, measured = given["address"], given["measured"]
    if isinstance(measured, list):
        raise Unusable(*measured)
    if address is None:
        image = image_of(ref_of(record), f"{record['address']}{FRAGMENT}{number}", measured)
    elif address in found.rejected:
        raise Unusable(found.rejected[address], address)
    elif address not in found.images:
        raise Unusable("image-not-in-source", address)
    else:
        image = found.images[address]
    return {**image, **words}  # type: ignore[typeddict-item]


def _lines(stream: BinaryIO, most: int, offset: int, span: Span) -> Iterator[tuple[bytes | None, int]]:
    """Each line of a part with its length, line end included; None in place of one of more than `most` bytes."""
    while span.holds(offset) and (line := stream.readline(most + 1)):
        length = len(line)
        whole = line if length <= most else None
        while whole is None and not line.endswith(b"\n") and (line := stream.readline(1 << 20)):
            length += len(line)
        offset += length
        yield whole, length


def _next_line(stream: BinaryIO, offset: int, stop: int | None) -> int:
    """Where the first line begins at `offset` or after it; beyond `stop` where none does before."""
    stream.seek(offset - 1)
    at = offset - 1
    while line := stream.readline(1 << 20):
        at += len(line)
        if line.endswith(b"\n") or (stop is not None and at >= stop):
            break
    return at


def _packed(start: bytes) -> str | None:
    """By what the file that begins so is compressed, if it is."""
    return next((name for magic, name in _COMPRESSED.items() if start.startswith(magic)), None)


def _read(uri: str, offset: int, length: int, opener: RangeOpener) -> Row:
    try:
        return parse_row(opener.read(uri, offset, length))
    except FileNotFoundError:
        raise Unusable("missing-file", uri) from None


def _address(uri: str) -> str:
    return canonical_address(uri) or uri


def _placed(text: str, images: int, task: Task | None) -> list[Node | int]:
    """The row's nodes in order; an image by its number. Raises Unusable where marks and images do not match."""
    pieces = text.split(MARK) if images else [text]
    numbers: list[Node | int] = list(range(images))
    if len(pieces) == 1:
        alone: list[Node | int] = [text_node(text.strip())]
        return alone + numbers if task == "text-to-image" else numbers + alone
    if len(pieces) - 1 != images:
        raise Unusable("marks-without-images", f"{len(pieces) - 1} {MARK} in the text, {images} images")
    placed: list[Node | int] = [text_node(pieces[0].strip())]
    for number, piece in zip(numbers, pieces[1:], strict=True):
        placed += [number, text_node(piece.strip())]
    return placed


def _of_file(uri: str, length: int, reason: str, detail: str) -> Aside:
    return aside(INGEST, reason, None, {"uri": uri, "offset": 0, "length": length}, detail)
