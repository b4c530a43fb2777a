"""What an S3 address lets us do: list, put, put where nothing is, read a range, delete."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from typing import Any

from nextflow_orchestration.doctor.check import Case, Diagnosis, bad, check, ok, unneeded

_CONTENT = b"0123456789"


def parts(address: str) -> tuple[str, str] | None:
    """Bucket and prefix of s3://bucket/prefix; None where it is no such address."""
    bucket, _, prefix = address.removeprefix("s3://").partition("/")
    return (bucket, prefix.strip("/")) if address.startswith("s3://") and bucket else None


@check("s3", "rights", seconds=60)
def rights(case: Case) -> Diagnosis:
    """Each is really done, on one object of our own, which is removed again."""
    if case.s3 is None:
        return unneeded("no address given", "name one with --s3 s3://bucket/prefix")
    place = parts(case.s3)
    if place is None:
        return bad(f"{case.s3} is no S3 address", "write s3://bucket/prefix")
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    settings = Config(connect_timeout=5, read_timeout=10, retries={"total_max_attempts": 2})
    client = boto3.client("s3", config=settings)
    name = "/".join(filter(None, (place[1], f".mnf-doctor-{uuid.uuid4().hex}")))
    trial = _Trial(client, place[0], name)
    wrong: dict[str, str] = {}
    steps: dict[str, Callable[[], str | None]] = {
        "list": trial.list, "put": trial.put, "put-if-absent": trial.put_if_absent, "range": trial.range,
        "delete": trial.delete,
    }  # fmt: skip
    for step, act in steps.items():
        try:
            problem = act()
        except ClientError as error:
            problem = f"{error.response['Error'].get('Code', '?')} {error.response['Error'].get('Message', '')}".strip()
        except BotoCoreError as error:
            problem = str(error)
            if step == "list":  # no credentials, nobody there: the rest would wait for the same
                wrong[step] = problem
                break
        if problem:
            wrong[step] = problem
    at = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "Amazon"
    if not wrong:
        return ok(f"{', '.join(steps)} at {case.s3} ({at})")
    fine = ", ".join(step for step in steps if step not in wrong and len(wrong) < len(steps) and "list" not in wrong)
    said = "; ".join(f"{step}: {problem}" for step, problem in wrong.items())
    return bad(f"{said}{f' (fine: {fine})' if fine else ''} at {case.s3} ({at})", _advice(wrong))


def _advice(wrong: dict[str, str]) -> str:
    if set(wrong) == {"put-if-absent"}:
        return "two writers would not be kept apart: use a store that honours If-None-Match"
    if "credentials" in wrong.get("list", ""):
        return "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
    return "look at AWS_ENDPOINT_URL, the bucket's name, and the rights of the key on this prefix"


class _Trial:
    """One object, and what is done to it; each step gives a problem in words, or None, or raises what boto3 raises."""

    def __init__(self, client: Any, bucket: str, name: str) -> None:
        self.client, self.bucket, self.name = client, bucket, name

    def list(self) -> str | None:
        self.client.list_objects_v2(Bucket=self.bucket, Prefix=self.name, MaxKeys=1)
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
        return "what was there was written over: If-None-Match is not honoured"

    def range(self) -> str | None:
        body = self.client.get_object(Bucket=self.bucket, Key=self.name, Range="bytes=3-5")["Body"].read()
        return None if body == _CONTENT[3:6] else f"bytes 3 to 5 came as {len(body)} bytes"

    def delete(self) -> str | None:
        self.client.delete_object(Bucket=self.bucket, Key=self.name)
        return None
