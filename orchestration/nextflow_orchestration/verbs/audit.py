"""`mnf audit`: nextflow_tokenize's audit of a shard set, on the console and as one HTML page."""

from __future__ import annotations

import json
from pathlib import Path

from nextflow_data.common.errors import RequestError
from nextflow_data.storage.files import any_path
from nextflow_data.storage.store_path import AnyPath
from nextflow_tokenize.audit.shard_set import audit
from nextflow_tokenize.shards.manifest import FORMAT, MANIFEST
from rich.console import Console
from rich.progress import Progress

from nextflow_orchestration.recipes.training import load_either, storage_of


def audit_shards(shards: str, report: Path | None, recipe: Path | None = None) -> bool:
    """True when nothing is wrong. Raises RequestError, with nothing written, where `shards` is no shard set.

    `recipe`: whose `storage` says how a store is reached.
    """
    from nextflow_orchestration.report.run_report import write_audit_report

    folder = any_path(shards, None if recipe is None else storage_of(load_either(recipe)))
    _require_shard_set(folder)
    console = Console(highlight=False)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("auditing", total=None)
        result = audit(folder, progress=lambda done, total: bar.update(task, completed=done, total=total))
    for finding in result.findings:
        console.print(str(finding), style="red" if finding.severity == "error" else "yellow", markup=False, soft_wrap=True)
    page = write_audit_report(folder, report or _default_report(folder), result)
    verdict = "nothing is wrong" if not result.findings else f"{len(result.findings)} findings"
    console.print(f"{result.samples_read:,} packs read, {verdict}; report: {page}", soft_wrap=True)
    return not result.findings


def _require_shard_set(folder: AnyPath) -> None:
    """RequestError where nothing says that a shard set was ever committed in `folder`; a damaged one is the audit's."""
    file = folder / MANIFEST
    try:
        content = json.loads(file.read_bytes()) if file.is_file() else None
    except ValueError:
        content = None
    tars = file.is_file() and next(iter(folder.glob("shard-*.tar")), None) is not None
    if not tars and not (isinstance(content, dict) and content.get("format") == FORMAT):
        inside = folder / "shards"
        hint = f"did you mean {inside}?" if (inside / MANIFEST).is_file() else "name the folder of its manifest and tars"
        raise RequestError(f"{folder} is no shard set: it has no {MANIFEST} of one; {hint}")


def _default_report(shards: AnyPath) -> Path:
    """Beside the set; beside its stage where it is part of one, whose manifest names all that is in it. Of a set in a store,
    in the current directory: who audits it need not have the right to write there."""
    if not isinstance(shards, Path):
        return Path("audit.html")
    stage = shards.resolve().parent
    return (stage.parent if (stage / MANIFEST).is_file() else stage) / "audit.html"
