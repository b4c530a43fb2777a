"""A row of a JSONL file: what of it is read, and how a mistake in it is told."""

from __future__ import annotations

import base64
import binascii
import json
import re

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from nextflow_data.document import Task
from nextflow_data.records import Unusable

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


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


def parse_row(line: bytes) -> Row:
    """The row in a line. Raises Unusable."""
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


def decoded(image: RowImage) -> bytes:
    """The bytes of an image in a row. Raises Unusable."""
    data = image.data or ""
    if data.startswith("data:"):
        data = data.partition(",")[2]
    try:
        return base64.b64decode("".join(data.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Unusable("undecodable", f"not base64: {error}") from None
