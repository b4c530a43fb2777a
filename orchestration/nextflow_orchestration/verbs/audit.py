"""`mnf audit`: nextflow_tokenize's audit of a shard set, on the console and as one HTML page."""

from __future__ import annotations

import json
from pathlib import Path

from nextflow_data.common.errors import RequestError
from nextflow_tokenize.audit.shard_set import audit
from nextflow_tokenize.shards.manifest import FORMAT, MANIFEST
from rich.console import Console
from rich.progress import Progress


def audit_shards(shards: Path, report: Path | None) -> bool:
    """True when nothing is wrong. Raises RequestError, with nothing written, where `shards` is no shard set."""
    from nextflow_orchestration.report.run_report import write_audit_report

    _require_shard_set(shards)
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


def _require_shard_set(folder: Path) -> None:
    """RequestError where nothing says that a shard set was ever committed in `folder`; a damaged one is the audit's."""
    file = folder / MANIFEST
    try:
        content = json.loads(file.read_bytes()) if file.is_file() else None
    except ValueError:
        content = None
    tars = file.is_file() and any(folder.glob("shard-*.tar"))
    if not tars and not (isinstance(content, dict) and content.get("format") == FORMAT):
        inside = folder / "shards"
        hint = f"did you mean {inside}?" if (inside / MANIFEST).is_file() else "name the folder of its manifest and tars"
        raise RequestError(f"{folder} is no shard set: it has no {MANIFEST} of one; {hint}")


def _default_report(shards: Path) -> Path:
    """Beside the set; beside its stage where it is part of one, whose manifest names all that is in it."""
    stage = shards.parent
    return (stage.parent if (stage / MANIFEST).is_file() else stage) / "audit.html"
