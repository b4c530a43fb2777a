"""JSONL files: a row is a document, or a pair, a triple, a dialogue; its images are in the row or elsewhere in the run.

A row is `{"text": …, "images": [{"data": base64} or {"uri": address}, …], "task": …, "url": …, "licence": …, …}` (`Row`).
`<image>` in the text says where each image stands, in order; without one, images stand before the text, and after it where
the task is text-to-image. An image by `uri` is looked up among the image records of all of the run's sources, as a page's
images are. The choices are ours: no standard exists, and the marker is the one that LLaVA's dialogues have.

Rows are found again by their place, so a compressed file is refused (unpack it: rows of one gzip stream have none). A row
is read three times: listed, searched for links where it has any, made a document.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from nextflow_data.addresses import canonical_address
from nextflow_data.common.range_opener import RangeOpener
from nextflow_data.common.stage_names import INGEST
from nextflow_data.config import IngestConfig
from nextflow_data.decisions import Aside, Decision, Finding, Subject, aside, decision
from nextflow_data.document import Document, Image, Node, Task, doc_id, image_node, text_node
from nextflow_data.nodes import task_of, without
from nextflow_data.records import RecordInfo, Unusable, put_aside, ref_of, source_of
from nextflow_data.sources.base import SOURCES, Found, Made, Source, SourceConfig

MARK = "<image>"
"""Where an image stands in a row's text."""
FRAGMENT = "#image-"
"""What follows a row's address in that of an image inside it: the image's number in the row."""
FEWEST_IMAGES: dict[Task, int] = {"text-to-image": 1, "image-to-text": 1, "editing": 2}
"""Tasks of which nothing is left without every image: a row that lacks one is put aside whole."""
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz"}
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_BOM = b"\xef\xbb\xbf"


class RowImage(BaseModel):
    """An image of a row: encoded bytes in base64 (a `data:` address is taken too), or the address of an image record."""

    model_config = ConfigDict(strict=True)

    data: str | None = None
    uri: str | None = None
    alt: str | None = None
    caption: str | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> RowImage:
        if (self.data is None) == (self.uri is None):
            raise ValueError("an image has either data or uri")
        return self


class Row(BaseModel):
    """What of a row is read; other keys are left alone. `url` is the document's address where the row came from a page."""

    model_config = ConfigDict(strict=True)

    text: str = ""
    images: list[RowImage] = []
    task: Task | None = None
    url: str | None = None
    date: str | None = None
    licence: str | None = None
    consent: str | None = None
    lang: str | None = None


class JsonlConfig(SourceConfig):
    """JSONL files, and what holds for rows that do not say it themselves."""

    kind: Literal["jsonl"] = "jsonl"
    task: Task | None = None
    """Task of rows that name none. A row of none in FEWEST_IMAGES is text, or interleaved where it has images."""
    licence: str | None = None
    """Licence of rows that name none."""


@SOURCES.register("jsonl")
class JsonlSource(Source[Row]):
    """A document a row. Rows that name images elsewhere are "page" records, the others "document"."""

    Config = JsonlConfig

    def records(self, uri: str, opener: RangeOpener) -> Iterator[RecordInfo | Aside]:
        try:
            stream = opener.open(uri)
        except OSError as error:
            yield _of_file(uri, 0, "missing-file", f"cannot be opened: {type(error).__name__}")
            return
        with stream:
            number = offset = 0
            for number, (line, length) in enumerate(_lines(stream, self.limits.max_record_bytes), 1):
                if number == 1 and (packed := _packed(line)):
                    detail = f"{packed}: unpack it, rows are found by their place"
                    yield _of_file(uri, opener.size(uri), "unsupported-compression", detail)
                    return
                mark = len(_BOM) if number == 1 and line and line.startswith(_BOM) else 0
                if line is None or line[mark:].strip():
                    yield self._listed(uri, number, offset + mark, length - mark, line and line[mark:])
                offset += length
        if not number:
            yield _of_file(uri, 0, "empty-file", "the file has no bytes")

    def _listed(self, uri: str, number: int, offset: int, length: int, line: bytes | None) -> RecordInfo | Aside:
        name = f"{uri}#row-{number}"
        record: RecordInfo = {
            "address": name, "uri": uri, "offset": offset, "length": length, "kind": "document", "record_id": name,
            "mime": None, "charset": None, "status": None, "date": None, "licence": self._config.licence,
        }  # fmt: skip
        try:
            if line is None:
                raise Unusable("record-too-large", f"{length} bytes, at most {self.limits.max_record_bytes} are read")
            row = _parse(line)
        except Unusable as error:
            return put_aside(record, error)
        record["address"] = (canonical_address(row.url) if row.url else None) or name
        record["kind"] = "page" if any(image.uri is not None for image in row.images) else "document"
        record["date"], record["licence"] = row.date, row.licence or record["licence"]
        return record

    @property
    def _config(self) -> JsonlConfig:
        assert isinstance(self.config, JsonlConfig)
        return self.config

    def payload(self, record: RecordInfo, opener: RangeOpener) -> Row:
        return _read(record["uri"], record["offset"], record["length"], opener)

    def links(self, record: RecordInfo, payload: Row) -> Sequence[str]:
        return list(dict.fromkeys(_address(image.uri) for image in payload.images if image.uri is not None))

    def document(self, record: RecordInfo, payload: Row, found: Found) -> Made:
        subject = Subject(doc_id(record["address"], record["record_id"]), record["address"])
        task = payload.task or self._config.task
        least = FEWEST_IMAGES.get(task, 0) if task else 0
        if len(payload.images) < least:
            raise Unusable("images-missing", f"{task} needs {least}, the row has {len(payload.images)}")
        decisions: list[Decision] = []
        asides: list[Aside] = []
        whole: list[Node] = []
        for node in _placed(payload, task):
            if not isinstance(node, int):
                whole.append(node)
                continue
            try:
                whole.append(image_node(self._image(record, payload.images[node], node, found)))
            except Unusable as error:
                if least:
                    raise Unusable(error.reason, f"image {node}, which {task} needs: {error.detail}") from None
                rule = error.reason if error.reason == "image-not-in-source" else "image-unusable"
                decisions.append(decision(subject, INGEST, Finding(rule, detail=f"image {node}: {error}"), "edit"))
                if payload.images[node].uri is None:
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
            "consent": payload.consent,
            "lang": payload.lang,
        }
        return Made(document, decisions, asides)

    def _image(self, record: RecordInfo, given: RowImage, number: int, found: Found) -> Image:
        from nextflow_data.images.measure import measured_image

        words = {"alt": given.alt, "caption": given.caption, "captioner": "row" if given.caption else None}
        if given.uri is None:
            address = f"{record['address']}{FRAGMENT}{number}"
            image = measured_image(ref_of(record), address, _decoded(given), self.limits)
        else:
            address = _address(given.uri)
            if address in found.rejected:
                raise Unusable(found.rejected[address], address)
            if address not in found.images:
                raise Unusable("image-not-in-source", address)
            image = found.images[address]
        return {**image, **words}  # type: ignore[typeddict-item]

    @classmethod
    def image_bytes(cls, image: Image, opener: RangeOpener, limits: IngestConfig) -> bytes:
        """The image inside its row, by its number; "not-found-in-row" where the row has none such."""
        row = _read(image["ref"]["uri"], image["ref"]["offset"], image["ref"]["length"], opener)
        number = (image["address"] or "").rpartition(FRAGMENT)[2]
        if not number.isdecimal() or int(number) >= len(row.images) or row.images[int(number)].data is None:
            raise Unusable("not-found-in-row", image["address"] or "")
        return _decoded(row.images[int(number)])


def _lines(stream: BinaryIO, most: int) -> Iterator[tuple[bytes | None, int]]:
    """Each line with its length, line end included; None in place of one of more than `most` bytes."""
    while line := stream.readline(most + 1):
        length = len(line)
        if length <= most:
            yield line, length
            continue
        while not line.endswith(b"\n") and (line := stream.readline(1 << 20)):
            length += len(line)
        yield None, length


def _packed(line: bytes | None) -> str | None:
    """By what the file that begins so is compressed, if it is."""
    return next((name for magic, name in _COMPRESSED.items() if line and line.startswith(magic)), None)


def _parse(line: bytes) -> Row:
    try:
        row = json.loads(line.decode("utf-8"))
        if _SURROGATE.search(line):
            json.dumps(row, ensure_ascii=False).encode("utf-8")  # half a pair, which no UTF-8 can hold
    except (ValueError, RecursionError) as error:
        raise Unusable("not-json", str(error)[:200]) from None
    try:
        return Row.model_validate(row)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the row"
        raise Unusable("row-not-as-documented", f"{where}: {first['msg']}") from None


def _read(uri: str, offset: int, length: int, opener: RangeOpener) -> Row:
    try:
        return _parse(opener.read(uri, offset, length))
    except OSError as error:
        raise Unusable("missing-file", type(error).__name__) from None


def _decoded(image: RowImage) -> bytes:
    data = image.data or ""
    if data.startswith("data:"):
        data = data.partition(",")[2]
    try:
        return base64.b64decode("".join(data.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Unusable("undecodable", f"not base64: {error}") from None


def _address(uri: str) -> str:
    return canonical_address(uri) or uri


def _placed(row: Row, task: Task | None) -> list[Node | int]:
    """The row's nodes in order; an image by its number. Raises Unusable where marks and images do not match."""
    pieces = row.text.split(MARK) if row.images else [row.text]
    numbers: list[Node | int] = list(range(len(row.images)))
    if len(pieces) == 1:
        text: list[Node | int] = [text_node(row.text.strip())]
        return text + numbers if task == "text-to-image" else numbers + text
    if len(pieces) - 1 != len(numbers):
        raise Unusable("marks-without-images", f"{len(pieces) - 1} {MARK} in the text, {len(numbers)} images")
    placed: list[Node | int] = [text_node(pieces[0].strip())]
    for number, piece in zip(numbers, pieces[1:], strict=True):
        placed += [number, text_node(piece.strip())]
    return placed


def _of_file(uri: str, length: int, reason: str, detail: str) -> Aside:
    return aside(INGEST, reason, None, {"uri": uri, "offset": 0, "length": length}, detail)
