"""`mnf audit`: nextflow_tokenize's audit of a shard set, on the console and as one HTML page."""

from __future__ import annotations

from pathlib import Path

from nextflow_tokenize.audit import audit
from rich.console import Console
from rich.progress import Progress


def audit_shards(shards: Path, report: Path | None) -> bool:
    """True when nothing is wrong. FileNotFoundError where there is no such folder."""
    if not shards.is_dir():
        raise FileNotFoundError(2, "no such shard set", str(shards))
    console = Console(highlight=False)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("auditing", total=None)
        result = audit(shards, progress=lambda done, total: bar.update(task, completed=done, total=total))
    for finding in result.findings:
        console.print(f"{finding.severity}: {finding}", markup=False, soft_wrap=True)
    return not result.findings
