"""The boto3 client of a process and of settings: made once, again after a fork, and again when credentials have expired.

Credentials come by boto3's chain and are renewed by it; an assumed role's by botocore's own provider for that.
"""

from __future__ import annotations

import os
import threading
from typing import Any

import boto3
import botocore.session
from botocore.config import Config
from botocore.credentials import AssumeRoleCredentialFetcher, DeferredRefreshableCredentials

from nextflow_data.storage.config import S3Config

_clients: dict[tuple[int, S3Config], Any] = {}
_making = threading.Lock()


def client(settings: S3Config) -> Any:
    """This process's client for these settings. Threads may share it."""
    key = (os.getpid(), settings)
    found = _clients.get(key)
    if found is None:
        with _making:
            found = _clients.get(key)
            if found is None:
                found = _clients[key] = _made(settings)
    return found


def renew(settings: S3Config, old: Any) -> None:
    """Forgets `old`, whose credentials have expired: the next one asks the whole chain, files included, again."""
    with _making:
        key = (os.getpid(), settings)
        if _clients.get(key) is old:
            del _clients[key]


class _AssumedRole:
    """Gives a session the credentials of a role, which are renewed before they end."""

    METHOD = "assume-role"
    CANONICAL_NAME = "AssumeRole"

    def __init__(self, settings: S3Config) -> None:
        self._settings = settings

    def load(self) -> DeferredRefreshableCredentials:
        source = botocore.session.Session(profile=self._settings.profile)
        if self._settings.region:
            source.set_config_variable("region", self._settings.region)
        extra = {"ExternalId": self._settings.external_id} if self._settings.external_id else {}
        fetcher = AssumeRoleCredentialFetcher(
            source.create_client, source.get_credentials(), self._settings.role, extra_args=extra
        )
        return DeferredRefreshableCredentials(method=self.METHOD, refresh_using=fetcher.fetch_credentials)


def _made(settings: S3Config) -> Any:
    session = botocore.session.Session(profile=settings.profile)
    if settings.role:
        session.get_component("credential_provider").providers.insert(0, _AssumedRole(settings))
    style = {True: "path", False: "virtual", None: "auto"}[settings.path_style]
    # Checksums are ours (Content-MD5), because stores that are not Amazon's do not all know the newer ones.
    config = Config(
        connect_timeout=settings.connect_seconds,
        read_timeout=settings.read_seconds,
        max_pool_connections=settings.concurrency,
        retries={"total_max_attempts": 1, "mode": "standard"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": style},
    )
    region = settings.region or session.get_config_variable("region") or "us-east-1"
    return boto3.Session(botocore_session=session).client(
        "s3", region_name=region, endpoint_url=settings.endpoint, config=config
    )
