"""S3, and stores that speak its protocol, by boto3.

Whatever must have one winner is one PutObject with a condition, never multipart, whose completion lets several win
(measured: two or more of four writers in 35 races of 60). Every PutObject carries Content-MD5. One with a condition carries
the name of its attempt too, by which a writer whose answer was lost knows its own object again; the cost is a second
request where an answer was lost.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any

from botocore.exceptions import BotoCoreError

from nextflow_data.storage.config import StorageConfig
from nextflow_data.storage.retrying import again, pause
from nextflow_data.storage.stores import s3_client, s3_errors
from nextflow_data.storage.stores.base import FileState, Store, Written, changed
from nextflow_data.storage.stores.s3_objects import Precondition, Unsatisfiable, md5, pin, place, state

_CHUNK = 1 << 20


class S3Store(Store):
    """Objects by addresses like s3://bucket/key; the key is what follows, letter for letter."""

    def __init__(self, config: StorageConfig) -> None:
        self._settings = config.s3
        self.requests_at_once = config.s3.concurrency
        self.read_ahead = config.read_ahead
        self.reading = {"RequestPayer": "requester"} if config.s3.requester_pays else {}
        self.writing = dict(self.reading)
        if config.s3.kms_key is not None:
            self.writing["ServerSideEncryption"] = "aws:kms"
            if config.s3.kms_key:
                self.writing["SSEKMSKeyId"] = config.s3.kms_key
        self._buckets: set[str] = set()

    def state(self, address: str) -> FileState:
        return state(self.head(address))

    def head(self, address: str) -> dict[str, Any]:
        """The answer to HeadObject. It has no body, so what is wrong is asked again with one."""
        where = place(address)

        def request(client: Any, attempt: int) -> Any:
            try:
                return client.head_object(**where, **self.reading)
            except Exception as error:
                if not 300 <= s3_errors.status(error) < 500:
                    raise
                if s3_errors.status(error) == 404 and where["Bucket"] in self._buckets:
                    raise
                client.get_object(**where, **self.reading, Range="bytes=0-0")["Body"].close()
                return client.head_object(**where, **self.reading)

        try:
            found = self.ask(address, "s3:GetObject", request)
        except FileNotFoundError:
            self._buckets.add(where["Bucket"])
            raise
        self._buckets.add(where["Bucket"])
        return found

    def read(self, address: str, offset: int, length: int, expected: FileState | None) -> bytes:
        return self.read_answer(address, offset, length, expected)[0] if length > 0 else b""

    def whole(self, address: str) -> bytes:
        return self.read_answer(address, 0, None, None)[0]

    def read_answer(
        self, address: str, offset: int, length: int | None, expected: FileState | None
    ) -> tuple[bytes, dict[str, Any]]:
        """A range (`length` None: to the end), and the answer with its headers. A body that is cut is read on."""
        pinned = pin(expected)
        got, answer, failures = bytearray(), {}, 0
        while True:
            first = offset + len(got)
            last = "" if length is None else str(offset + length - 1)
            whole = {} if first == 0 and not last else {"Range": f"bytes={first}-{last}"}
            before = len(got)
            try:
                answer = self._body(address, {**pinned, **whole}, got)
                return bytes(got), answer
            except Exception as error:
                # Progress counts as success: only attempts that bring nothing are numbered.
                failures = 0 if len(got) > before else failures + 1
                if isinstance(error, _Cut):
                    pinned, answer = pinned or pin(state(error.answer)), error.answer
                    if failures < self._settings.attempts:
                        pause(failures)
                        continue
                    raise self._sentence(error.cause, address, "s3:GetObject") from error.cause
                raise

    def _body(self, address: str, extra: dict[str, Any], got: bytearray) -> dict[str, Any]:
        """Appends what a GetObject brings to `got`; _Cut where its body breaks off, with the answer's head."""
        try:
            answer = self.ask(
                address, "s3:GetObject", lambda client, _: client.get_object(**place(address), **self.reading, **extra)
            )
        except Unsatisfiable:
            return {}
        except Precondition:
            raise changed(address) from None
        except FileNotFoundError:
            if "IfMatch" in extra or "VersionId" in extra:
                raise changed(address) from None
            raise
        left, body = answer["ContentLength"], answer["Body"]
        try:
            while left > 0 and (part := body.read(min(left, _CHUNK))):
                got += part
                left -= len(part)
        except Exception as error:
            if not s3_errors.passing(error):
                raise
            raise _Cut(answer, error) from error
        finally:
            body.close()
        return answer

    def whole_with_time(self, address: str) -> tuple[bytes, FileState, float]:
        content, answer = self.read_answer(address, 0, None, None)
        return content, state(answer), parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"]).timestamp()

    def under(self, address: str, names: str = "") -> Iterator[tuple[str, FileState]]:
        where = place(address, folder=True)
        prefix = where["Key"] + names
        for page in self._pages(address, where["Bucket"], prefix, {}):
            for entry in page.get("Contents", ()):
                if not entry["Key"].endswith("/"):  # what a console makes to show a folder
                    yield f"s3://{where['Bucket']}/{entry['Key']}", state(entry)

    def children(self, address: str) -> Iterator[str]:
        where = place(address, folder=True)
        for page in self._pages(address, where["Bucket"], where["Key"], {"Delimiter": "/"}):
            keys = [entry["Key"] for entry in page.get("Contents", ())]
            keys += [entry["Prefix"].removesuffix("/") for entry in page.get("CommonPrefixes", ())]
            yield from (f"s3://{where['Bucket']}/{key}" for key in sorted(keys) if key and not key.endswith("/"))

    def any_under(self, address: str) -> bool:
        """Whether there is an object under a folder."""
        where = place(address, folder=True)
        page = next(self._pages(address, where["Bucket"], where["Key"], {"MaxKeys": 1}), {})
        return bool(page.get("Contents"))

    def _pages(self, address: str, bucket: str, prefix: str, extra: dict[str, Any]) -> Iterator[dict[str, Any]]:
        more: dict[str, str] = {}
        while True:
            asked = {"Bucket": bucket, "Prefix": prefix, **extra, **more, **self.reading}
            page = self.ask(address, "s3:ListBucket", partial(_listed, asked))
            self._buckets.add(bucket)
            yield page
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def put(self, address: str, content: bytes) -> None:
        self.ask(address, "s3:PutObject", lambda client, _: self.put_object(client, address, content, md5(content)))

    def put_if(self, address: str, content: bytes, etag: str | None) -> Written:
        condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
        attempt_id, checksum, lost = uuid.uuid4().hex, md5(content), False

        def request(client: Any, attempt: int) -> Any:
            nonlocal lost
            lost = lost or attempt > 0
            return self.put_object(client, address, content, checksum, {"attempt": attempt_id}, **condition)

        while True:
            try:
                return Written(True, self.ask(address, "s3:PutObject", request)["ETag"])
            except (Precondition, FileNotFoundError):
                if not lost:
                    return Written(False)
            try:
                found = self.head(address)
            except FileNotFoundError:
                if etag is not None:
                    return Written(False)
                continue
            ours = found.get("Metadata", {}).get("attempt") == attempt_id
            return Written(ours, found["ETag"] if ours else None)

    def put_object(
        self, client: Any, address: str, body: Any, checksum: str, names: dict[str, str] | None = None, **condition: str
    ) -> Any:
        """One PutObject; `names` goes into the object's metadata."""
        named: dict[str, Any] = {"Metadata": names} if names else {}
        return client.put_object(**place(address), Body=body, ContentMD5=checksum, **named, **self.writing, **condition)

    def delete(self, address: str) -> None:
        self.ask(address, "s3:DeleteObject", lambda client, _: client.delete_object(**place(address), **self.reading))

    def ask(self, address: str, action: str, request: Callable[[Any, int], Any]) -> Any:
        """What `request(client, attempt)` answers, tried again where that helps; what goes wrong is an error of ours."""
        renewed = False
        while True:
            client = None
            try:
                client = s3_client.client(self._settings)
                return again(partial(request, client), self._settings.attempts, s3_errors.passing)
            except Exception as error:
                if isinstance(error, OSError) and not isinstance(error, BotoCoreError):
                    raise  # of the local file that is sent
                if s3_errors.code(error) in s3_errors.EXPIRED and not renewed:
                    renewed = True
                    s3_client.renew(self._settings, client)
                    continue
                if s3_errors.status(error) == 412:
                    raise Precondition(address) from error
                if s3_errors.status(error) == 416:
                    raise Unsatisfiable(address) from error
                raise self._sentence(error, address, action) from error

    def _sentence(self, error: Exception, address: str, action: str) -> OSError:
        return s3_errors.sentence(error, address, action, self._settings.attempts, self._settings.endpoint)


def _listed(asked: dict[str, Any], client: Any, attempt: int) -> Any:
    return client.list_objects_v2(**asked)


class _Cut(Exception):
    """A body broke off; what had come of it is kept."""

    def __init__(self, answer: dict[str, Any], cause: Exception) -> None:
        super().__init__()
        self.answer = answer
        self.cause = cause
