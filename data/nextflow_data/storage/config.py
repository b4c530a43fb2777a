"""The recipe's `storage` section: how object stores are reached. Nothing of it decides bytes, so nothing is fingerprinted.

Credentials are never settings: they come by boto3's usual chain (environment, profile, instance role), and what a role
gives is refreshed by it.
"""

from __future__ import annotations

from pathlib import Path

from nextflow_data.common.section import Section, operational


class S3Config(Section):
    """How S3, or a store that speaks its protocol, is reached."""

    endpoint: str | None = operational(None)
    """Address of a store that is not Amazon's, as in http://127.0.0.1:8333; null: AWS_ENDPOINT_URL or Amazon."""
    region: str | None = operational(None)
    """Region; null: what the environment says."""
    profile: str | None = operational(None)
    """Profile of ~/.aws/config."""
    path_style: bool | None = operational(None)
    """Buckets in the path and not in the host name; null: as boto3 decides."""
    concurrency: int = operational(8, ge=1, le=256)
    """Requests at once of one process."""
    attempts: int = operational(8, ge=1)
    """Attempts a request has, with growing pauses and jitter."""
    connect_seconds: float = operational(10.0, gt=0)
    """Longest wait for a connection, seconds."""
    read_seconds: float = operational(60.0, gt=0)
    """Longest wait for the next bytes of an answer, seconds."""
    kms_key: str | None = operational(None)
    """Key of SSE-KMS for what is written; "" is the bucket's own KMS key."""
    requester_pays: bool = operational(False)
    """Pay for what is read from buckets whose owner does not."""
    role: str | None = operational(None)
    """ARN of a role to assume; its credentials are renewed before they end."""
    external_id: str | None = operational(None)
    """What the role's owner asks for, where it does."""


class StorageConfig(Section):
    """Stores, and the disk that stands before them."""

    s3: S3Config = S3Config()
    cache: Path | None = operational(None)
    """Folder in which each machine keeps copies of what it needs as a file; null: one under the system's temporary one."""
    cache_bytes: int = operational(20 << 30, ge=0)
    """Most that the folder may hold, bytes; the longest unused copies go first."""
    read_ahead: int = operational(8 << 20, ge=1 << 16)
    """Bytes that one request asks for when a file is read on from start to end."""
    lock: Path | None = operational(None)
    """A folder on a disk that all drivers share, for stores without conditional writes; null: such a store is refused."""
