"""Addresses, states and checksums of S3 as boto3's arguments and answers have them."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from nextflow_data.storage.errors import StoreRefused
from nextflow_data.storage.stores.base import FileState


class Precondition(OSError):
    """A condition of a request did not hold."""


class Unsatisfiable(OSError):
    """A range begins where the object has ended."""


def place(address: str, folder: bool = False) -> dict[str, str]:
    """Bucket and key of an address; of a folder the key ends with a slash, or is empty."""
    bucket, _, key = address.removeprefix("s3://").partition("/")
    if not bucket or (not key and not folder):
        raise StoreRefused(f"{address}: an object's address is like s3://bucket/key")
    return {"Bucket": bucket, "Key": f"{key}/" if folder and key else key}


def state(answer: dict[str, Any]) -> FileState:
    """The state in an answer to HeadObject or GetObject, or in an entry of a listing."""
    size = answer["Size"] if "Size" in answer else answer["ContentLength"]
    if "ContentRange" in answer:
        size = int(answer["ContentRange"].rpartition("/")[2])
    return FileState(size, int(answer["LastModified"].timestamp()) * 10**9, answer["ETag"], answer.get("VersionId"))


def pin(expected: FileState | None) -> dict[str, str]:
    """What binds a GetObject to that state."""
    if expected is None:
        return {}
    named = {"IfMatch": expected.etag, "VersionId": expected.version}
    return {name: value for name, value in named.items() if value}


def md5(content: bytes | Path) -> str:
    """Content-MD5 of bytes or of a file. It finds damage on the way, nothing else."""
    if isinstance(content, Path):
        with content.open("rb") as stream:
            digest = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).digest()
    else:
        digest = hashlib.md5(content, usedforsecurity=False).digest()
    return base64.b64encode(digest).decode()
