"""What an audit hands back: findings and statistics. Plain data, for a report, a table or an exit code."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from nextflow_data.storage.store_path import AnyPath

from nextflow_tokenize.shards.manifest import ShardManifest
from nextflow_tokenize.shards.statistics import Statistics


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be.

    `shard` is the file at fault, relative to the set; `key` the sample, where one is known; `what` is wrong, `where` in the
    file (bytes, member or field), and the `advice`. An error makes the set unfit to train on; a warning does not.
    """

    severity: Literal["error", "warning"]
    shard: str
    key: str | None
    what: str
    where: str
    advice: str

    def __str__(self) -> str:
        place = ", ".join(part for part in (self.shard, self.key and f"sample {self.key}", self.where) if part)
        return f"{place}: {self.what} ({self.advice})"


@dataclass
class AuditResult:
    """Findings in the order of shards, what was counted, and the manifest as far as it could be read."""

    path: AnyPath
    findings: list[Finding] = field(default_factory=list)
    statistics: Statistics = field(default_factory=Statistics)
    manifest: ShardManifest | None = None
    samples_read: int = 0

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return not any(finding.severity == "error" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON and templates. The path is left out, so that equal sets give equal results."""
        return {
            "ok": self.ok,
            "findings": [asdict(finding) for finding in self.findings],
            "statistics": self.statistics.to_dict(),
            "manifest": self.manifest.model_dump(mode="json") if self.manifest else None,
            "samples_read": self.samples_read,
        }
