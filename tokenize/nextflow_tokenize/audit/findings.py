"""The findings of an audit as they are made: bounded for each file, and made of whatever goes wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from nextflow_tokenize.audit.result import Finding

MAX_FINDINGS = 100
"""Findings kept of one file; what is beyond is counted."""

RESTORE = "restore the file from a copy, or delete the set and run the pack stage again"


class Findings:
    """What was found, in order; `close` adds how much of it is not listed."""

    def __init__(self, found: list[Finding]) -> None:
        self.found = found
        self.counts: dict[str, int] = {}

    def find(
        self,
        shard: str,
        what: str,
        *,
        key: str | None = None,
        where: str = "",
        advice: str = RESTORE,
        severity: Literal["error", "warning"] = "error",
    ) -> None:
        """Adds one; the arguments are a Finding's."""
        self.counts[shard] = self.counts.get(shard, 0) + 1
        if self.counts[shard] <= MAX_FINDINGS:
            self.found.append(Finding(severity, shard, key, what, where, advice))

    @contextmanager
    def guard(self, name: str) -> Iterator[None]:
        """Whatever goes wrong while `name` is examined is a finding, not the end."""
        try:
            yield
        except Exception as error:  # the audit's promise is to go on; the finding says what stopped it
            self.find(name, f"it could not be examined: {type(error).__name__}: {error}")

    def close(self) -> None:
        """Says of each file how many findings are not listed."""
        for name, count in self.counts.items():
            if count > MAX_FINDINGS:
                what = f"{count - MAX_FINDINGS} more findings in this file are not listed"
                self.found.append(Finding("error", name, None, what, "", RESTORE))


def in_bytes(start: int, stop: int) -> str:
    """A place in a file, in words."""
    return f"bytes {start}–{stop}"
