"""Stores that pyarrow opens and we do not (gs://, abfs://, hdfs://): read only, bound by size and time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nextflow_data.storage.config import StorageConfig
from nextflow_data.storage.errors import StoreError, StoreRefused
from nextflow_data.storage.stores.base import FileState, Store, changed


class ArrowFiles(Store):
    """Files by addresses that `pyarrow.fs.FileSystem.from_uri` knows."""

    def __init__(self, config: StorageConfig, scheme: str) -> None:
        self.requests_at_once = config.s3.concurrency
        self.read_ahead = config.read_ahead
        self._scheme = scheme
        self._systems: dict[str, Any] = {}

    def state(self, address: str) -> FileState:
        return _state(self._file(address)[2])

    def read(self, address: str, offset: int, length: int, expected: FileState | None) -> bytes:
        system, path, info = self._file(address, expected is not None)
        if expected is not None:
            expected.check(_state(info), address)
        try:
            with system.open_input_file(path) as stream:
                return stream.read_at(max(0, min(length, info.size - offset)), offset)
        except OSError as error:
            raise StoreError(f"{address}: cannot be read: {error}") from error

    def under(self, address: str, names: str = "") -> Iterator[tuple[str, FileState]]:
        import pyarrow.fs as fs

        system, root = self._system(address)
        found = system.get_file_info(fs.FileSelector(root, allow_not_found=True, recursive=True))
        for info in found:
            inside = info.path.removeprefix(root).lstrip("/")
            if info.is_file and inside.startswith(names):
                yield f"{address}/{inside}", _state(info)

    def children(self, address: str) -> Iterator[str]:
        import pyarrow.fs as fs

        system, root = self._system(address)
        for info in system.get_file_info(fs.FileSelector(root, allow_not_found=True)):
            yield f"{address}/{info.base_name}"

    def _file(self, address: str, bound: bool = False) -> tuple[Any, str, Any]:
        system, path = self._system(address)
        info = system.get_file_info(path)
        if not info.is_file:
            raise changed(address) if bound else FileNotFoundError(f"{address}: there is no such file")
        return system, path, info

    def _system(self, address: str) -> tuple[Any, str]:
        """The file system, made once for each host, and the path in it."""
        import pyarrow as pa
        import pyarrow.fs as fs

        host, _, path = address.split("://", 1)[1].partition("/")
        if host not in self._systems:
            try:
                self._systems[host] = fs.FileSystem.from_uri(f"{self._scheme}://{host}/")
            except (pa.ArrowInvalid, OSError) as error:
                raise StoreRefused(f"{address}: pyarrow cannot open this kind of address: {error}") from error
        system, root = self._systems[host]
        return system, "/".join(part for part in (root.rstrip("/"), path) if part)


def _state(info: Any) -> FileState:
    return FileState(info.size, info.mtime_ns or 0)
