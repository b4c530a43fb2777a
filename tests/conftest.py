"""What tests of several packages need."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler.loadfile import LoadFileScheduling

TOGETHER = ("tests/flow/", "tests/pipelines/")
"""Folders whose files share a fixture that takes long: one process of the tests runs them all."""


LONGEST_FIRST = (*TOGETHER, "tests/megatron_nextflow/step/", "tests/tokenize/vision/training/")
"""Begun first, so that at the end no process waits for one of these."""


class _ByFolder(LoadFileScheduling):
    def _split_scope(self, nodeid: str) -> str:
        return next((folder for folder in TOGETHER if nodeid.startswith(folder)), super()._split_scope(nodeid))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest folders come first; within them, and among the others, the order stays."""

    def place(item: pytest.Item) -> int:
        found = [number for number, folder in enumerate(LONGEST_FIRST) if item.nodeid.startswith(folder)]
        return found[0] if found else len(LONGEST_FIRST)

    items.sort(key=place)


def pytest_xdist_make_scheduler(config: Any, log: Any) -> Any:
    """A file of tests runs in one process, and a folder of `TOGETHER` too."""
    return _ByFolder(config, log)


@pytest.fixture
def mounted_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system of the given size, as in 512k; skips the test where that is not allowed (it needs root)."""
    mounted: list[Path] = []

    def mount(size: str) -> Path:
        folder = tmp_path / "disk"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("a tmpfs cannot be mounted here")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)
