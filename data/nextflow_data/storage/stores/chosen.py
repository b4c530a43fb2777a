"""Which store an address belongs to: one of each kind and settings in a process."""

from __future__ import annotations

from functools import cache

from nextflow_data.storage.config import StorageConfig
from nextflow_data.storage.stores.arrow_files import ArrowFiles
from nextflow_data.storage.stores.base import Store
from nextflow_data.storage.stores.public_ranges import PublicRanges
from nextflow_data.storage.stores.s3_upload import S3Files


def store_of(address: str, config: StorageConfig) -> Store:
    """The store that holds an address with a scheme."""
    return _store(address.partition("://")[0], config)


@cache
def _store(scheme: str, config: StorageConfig) -> Store:
    if scheme == "s3":
        return S3Files(config)
    return PublicRanges(config) if scheme in ("http", "https") else ArrowFiles(config, scheme)
