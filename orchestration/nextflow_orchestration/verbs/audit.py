"""`mnf audit`: nextflow_tokenize's audit of a shard set, on the console and as one HTML page."""

from __future__ import annotations

from pathlib import Path

from nextflow_tokenize.audit.shard_set import audit
from rich.console import Console
from rich.progress import Progress


def audit_shards(shards: Path, report: Path | None) -> bool:
    """True when nothing is wrong. Raises FileNotFoundError where there is no such folder."""
    from nextflow_orchestration.report.run_report import write_audit_report

    if not shards.is_dir():
        raise FileNotFoundError(2, "no such shard set", str(shards))
    console = Console(highlight=False)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("auditing", total=None)
        result = audit(shards, progress=lambda done, total: bar.update(task, completed=done, total=total))
    for finding in result.findings:
        console.print(str(finding), style="red" if finding.severity == "error" else "yellow", markup=False, soft_wrap=True)
    page = write_audit_report(shards, report or _default_report(shards.resolve()), result)
    verdict = "nothing is wrong" if not result.findings else f"{len(result.findings)} findings"
    console.print(f"{result.samples_read:,} packs read, {verdict}; report: {page}", soft_wrap=True)
    return not result.findings


def _default_report(shards: Path) -> Path:
    """Beside the set; beside its stage where it is part of one, whose manifest names all that is in it."""
    stage = shards.parent
    return (stage.parent if (stage / "manifest.json").is_file() else stage) / "audit.html"
