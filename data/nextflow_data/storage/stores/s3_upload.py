"""Finished files to S3: one PutObject, which nobody's object is overwritten by; above its 5 GiB in parts.

Parts have no single winner, so a file sent in parts must carry its hash in its name: then all who write it write the same
bytes, and it does not matter who ends last.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from nextflow_data.storage.errors import Conflict, StoreRefused
from nextflow_data.storage.stores.base import FileState
from nextflow_data.storage.stores.s3 import S3Store
from nextflow_data.storage.stores.s3_objects import Precondition, md5, place, state

ONE_PUT = 5 << 30
"""Most bytes of one PutObject (Amazon's limit)."""
_PART = 64 << 20
_PARTS = 10_000
_ASK_FIRST = 1 << 20
"""Above this many bytes it is worth a request to learn that the file is there already."""


class S3Files(S3Store):
    """S3 with uploads of finished files."""

    def upload(self, local: Path, address: str, sha256: str) -> None:
        size = local.stat().st_size
        if size > _ASK_FIRST and self._is_there(address, size, sha256):
            return
        if size > ONE_PUT:
            self._in_parts(local, address, size, sha256)
            return
        checksum = md5(local)

        def request(client: Any, attempt: int) -> Any:
            with local.open("rb") as body:
                return self.put_object(client, address, body, checksum, {"sha256": sha256}, IfNoneMatch="*")

        while True:
            try:
                self.ask(address, "s3:PutObject", request)
                return
            except Precondition:
                if self._is_there(address, size, sha256):
                    return

    def noted_sha256(self, address: str) -> str | None:
        return self.head(address).get("Metadata", {}).get("sha256")

    def _is_there(self, address: str, size: int, sha256: str) -> bool:
        """Whether the file is there; Conflict where another is."""
        try:
            found = self.head(address)
        except FileNotFoundError:
            return False
        there = found.get("Metadata", {}).get("sha256")
        if there is None and found["ContentLength"] == size:
            there = self._sha256(address, state(found))
        if there != sha256:
            named = f"sha256 {there}" if there else "other"
            raise Conflict(
                f"{address}: another file is there already ({found['ContentLength']} bytes, {named}; ours has {size} bytes, "
                f"sha256 {sha256}); nothing was overwritten. Move one of the two away, or use another root"
            )
        return True

    def _sha256(self, address: str, expected: FileState) -> str:
        digest = hashlib.sha256()
        for offset in range(0, expected.size, _PART):
            digest.update(self.read(address, offset, _PART, expected))
        return digest.hexdigest()

    def _in_parts(self, local: Path, address: str, size: int, sha256: str) -> None:
        if sha256[:8] not in address:
            raise StoreRefused(
                f"{address}: a file above {ONE_PUT} bytes can only be stored under a name that carries its sha256"
            )
        where = place(address)
        part = max(_PART, -(-size // _PARTS))
        opened = self.ask(
            address,
            "s3:PutObject",
            lambda client, _: client.create_multipart_upload(**where, Metadata={"sha256": sha256}, **self.writing),
        )
        named = {**where, "UploadId": opened["UploadId"], **self.reading}

        def send(number: int) -> dict[str, Any]:
            with local.open("rb") as stream:
                stream.seek((number - 1) * part)
                content = stream.read(part)
            checksum = md5(content)
            answer = self.ask(
                address,
                "s3:PutObject",
                lambda client, _: client.upload_part(**named, PartNumber=number, Body=content, ContentMD5=checksum),
            )
            return {"PartNumber": number, "ETag": answer["ETag"]}

        try:
            with ThreadPoolExecutor(self.requests_at_once) as pool:
                parts = list(pool.map(send, range(1, -(-size // part) + 1)))
            self.ask(
                address,
                "s3:PutObject",
                lambda client, _: client.complete_multipart_upload(**named, MultipartUpload={"Parts": parts}),
            )
        except FileNotFoundError:
            # An end whose answer was lost: the upload is gone because it has become the object.
            if not self._is_there(address, size, sha256):
                raise
        except BaseException:
            self.ask(address, "s3:AbortMultipartUpload", lambda client, _: client.abort_multipart_upload(**named))
            raise
