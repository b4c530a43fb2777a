"""What the S3 addresses of a recipe, or a named one, let us do: list, put, put where nothing is, read a range, delete."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from typing import Any

from nextflow_tokenize.shards.manifest import MANIFEST

from nextflow_orchestration.doctor.check import Case, Diagnosis, State, bad, check, ok, unneeded
from nextflow_orchestration.recipes.run import Recipe

_CONTENT = b"0123456789"


def parts(address: str) -> tuple[str, str] | None:
    """Bucket and prefix of s3://bucket/prefix; None where it is no such address."""
    bucket, _, prefix = address.removeprefix("s3://").partition("/")
    return (bucket, prefix.strip("/")) if address.startswith("s3://") and bucket else None


@check("s3", "rights", seconds=60)
def rights(case: Case) -> Diagnosis:
    """Each is really done, on one object of our own, which is removed again; what is only read is listed and read."""
    written, read = _addresses(case)
    if not written and not read:
        return unneeded("no address given", "name one with --s3 s3://bucket/prefix")
    wrong = next((address for address in (*written, *read) if parts(address) is None), None)
    if wrong is not None:
        return bad(f"{wrong} is no S3 address", "write s3://bucket/prefix")
    found = [_try(case, address, _Trial.WRITING) for address in written]
    found += [_try(case, address, _Trial.READING) for address in read]
    said = "; ".join(one.found for one in found)
    failed = next((one for one in found if one.state is State.BAD), None)
    return ok(said) if failed is None else bad(said, failed.advice)


def _addresses(case: Case) -> tuple[list[str], list[str]]:
    """What a run would write to, and what it would only read: of inputs one a folder."""
    asked = [case.s3] if case.s3 is not None else []
    written: list[str] = []
    read: list[str] = []
    if isinstance(case.recipe, Recipe):
        written += [str(case.recipe.root)]
        files = [file for entry in case.recipe.entries() for file in entry.files]
        read += {file.rpartition("/")[0]: file for file in files}.values()
    if case.train is not None:
        written += filter(None, [case.train.checkpoint.copy_to])
        read += [f"{case.train.data.shards}/{MANIFEST}"] if case.train.data.shards is not None else []
    return [*asked, *dict.fromkeys(filter(_is_s3, written))], list(dict.fromkeys(filter(_is_s3, read)))


def _is_s3(address: str) -> bool:
    return address.startswith("s3://")


def _try(case: Case, address: str, steps: Sequence[str]) -> Diagnosis:
    from botocore.exceptions import BotoCoreError, ClientError
    from nextflow_data.storage.stores.s3_client import client

    place = parts(address)
    assert place is not None
    asked = (case.storage.s3.endpoint, *map(os.environ.get, ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")))
    endpoint = next(filter(None, asked), None)
    settings = case.storage.s3.model_copy(update={"endpoint": endpoint, "connect_seconds": 5.0, "read_seconds": 10.0})
    trial = _Trial(client(settings), place[0], place[1], case.storage.lock is not None)
    wrong: dict[str, str] = {}
    for step in steps:
        try:
            problem = getattr(trial, step.replace("-", "_"))()
        except ClientError as error:
            problem = f"{error.response['Error'].get('Code', '?')} {error.response['Error'].get('Message', '')}".strip()
        except BotoCoreError as error:
            problem = str(error)
            if step == "list":  # no credentials, nobody there: the rest would wait for the same
                wrong[step] = problem
                break
        if problem:
            wrong[step] = problem
    at = endpoint or "Amazon"
    if not wrong:
        return ok(f"{', '.join(steps)} at {address} ({at})")
    fine = ", ".join(step for step in steps if step not in wrong and len(wrong) < len(steps) and "list" not in wrong)
    said = "; ".join(f"{step}: {problem}" for step, problem in wrong.items())
    return bad(f"{said}{f' (fine: {fine})' if fine else ''} at {address} ({at})", _advice(wrong))


def _advice(wrong: dict[str, str]) -> str:
    if set(wrong) == {"put-if-absent"}:
        return "two writers would not be kept apart: use a store that honours If-None-Match, or set storage.lock"
    if "credentials" in wrong.get("list", ""):
        return "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
    return "look at AWS_ENDPOINT_URL, the bucket's name, and the rights of the key on this prefix"


class _Trial:
    """One object, and what is done to it; each step gives a problem in words, or None, or raises what boto3 raises."""

    WRITING = ("list", "put", "put-if-absent", "range", "delete")
    READING = ("list", "get")

    def __init__(self, client: Any, bucket: str, prefix: str, lock: bool) -> None:
        self.client, self.bucket, self.prefix, self.lock = client, bucket, prefix, lock
        self.name = "/".join(filter(None, (prefix, f".mnf-doctor-{uuid.uuid4().hex}")))

    def list(self) -> str | None:
        self.client.list_objects_v2(Bucket=self.bucket, Prefix=self.prefix, MaxKeys=1)
        return None

    def get(self) -> str | None:
        self.client.get_object(Bucket=self.bucket, Key=self.prefix, Range="bytes=0-0")["Body"].read()
        return None

    def put(self) -> str | None:
        self.client.put_object(Bucket=self.bucket, Key=self.name, Body=_CONTENT)
        return None

    def put_if_absent(self) -> str | None:
        from botocore.exceptions import ClientError

        try:
            self.client.put_object(Bucket=self.bucket, Key=self.name, Body=_CONTENT, IfNoneMatch="*")
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] in (409, 412):
                return None
            raise
        return None if self.lock else "what was there was written over: If-None-Match is not honoured"

    def range(self) -> str | None:
        body = self.client.get_object(Bucket=self.bucket, Key=self.name, Range="bytes=3-5")["Body"].read()
        return None if body == _CONTENT[3:6] else f"bytes 3 to 5 came as {len(body)} bytes"

    def delete(self) -> str | None:
        self.client.delete_object(Bucket=self.bucket, Key=self.name)
        return None
