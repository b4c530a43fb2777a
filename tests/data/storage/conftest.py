"""What tests of the storage module share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fault_proxy import FaultProxy
from nextflow_data.storage.store_path import StorePath


@pytest.fixture
def through() -> Callable[[StorePath, FaultProxy], StorePath]:
    """The same address, reached by way of a proxy."""

    def way(path: StorePath, proxy: FaultProxy) -> StorePath:
        s3 = path.config.s3.model_copy(update={"endpoint": proxy.endpoint})
        return StorePath(path.address, path.config.model_copy(update={"s3": s3}))

    return way
