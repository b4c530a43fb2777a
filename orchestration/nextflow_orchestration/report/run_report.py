"""Puts a report together from what is at hand, and writes it whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nextflow_data.storage.config import StorageConfig
from nextflow_data.storage.files import local_copy, put, read_range, state_of
from nextflow_data.storage.store_path import AnyPath
from nextflow_tokenize.audit.record import audit_record
from nextflow_tokenize.audit.result import AuditResult
from nextflow_tokenize.audit.shard_set import audit
from nextflow_tokenize.shards.manifest import MANIFEST
from nextflow_tokenize.shards.reader import ShardError, ShardSet

from nextflow_orchestration.report import from_documents, from_shards, from_tokenizer, training_part
from nextflow_orchestration.report.images import Images
from nextflow_orchestration.report.model import Audit, AuditLine, Fact, Generated, Report, Tile
from nextflow_orchestration.report.page import report_html
from nextflow_orchestration.report.pictures import Gallery, file_uri
from nextflow_orchestration.runs.lineage import Commit, NoRun, chain, newest_metrics, shard_folder
from nextflow_orchestration.words.numbers import short


def write_report(
    root: AnyPath,
    out: AnyPath,
    *,
    work: Path | None = None,
    storage: StorageConfig | None = None,
    title: str = "Run",
    end: AnyPath | None = None,
    packs: int = 8,
    examples: int = 4,
    reused: Collection[str] = (),
    training: Path | None = None,
    generated: Sequence[tuple[str, AnyPath]] = (),
    reread: bool = False,
    settings: str = "",
    identity: str = "",
) -> AnyPath:
    """The report of a run under `root`, written to `out`; returns `out`.

    `work` is the run's folder on this machine (None: the root, which then is on a disk); `storage` says how the stores of
    its sources are reached (None: as the root is); `end` is the folder of the run's last stage (None: the newest commit of
    the last stage that has one); `reused` names the stages that were committed before this run; `training` is the folder
    with metrics.jsonl (None: the newest train-* under `work`); `generated` are (prompt, image file); `reread` audits every
    byte of the shards now, else the audit is shown that was made as they were written; `settings` is the resolved recipe
    as text; by `identity` the page is known again (`is_report_of`). Raises NoRun when nothing is committed under `root`.
    """
    commits = chain(root, end)
    work = work or (root if isinstance(root, Path) else None)
    gallery = _gallery(root, commits, storage)
    folder = shard_folder(commits)
    parts: dict[str, Any] = {}
    if folder is not None:
        recorded = None if reread else _recorded(folder)
        audited = recorded or audit(folder)
        parts = _shard_parts(folder, audited, packs, _text_tokenizer(commits), gallery, read=recorded is None)
    stages = from_documents.stage_counts(root, commits, frozenset(reused))
    trainer = training or (None if work is None else newest_metrics(work))
    parts["training"] = training_part.training(trainer) if trainer is not None else None
    if "vision_tokenizer" in commits:
        parts["tokenizer"] = from_tokenizer.tokenizer(commits["vision_tokenizer"], gallery)
    report = Report(
        title=title,
        subtitle=_subtitle(commits, stages, parts),
        tiles=(*_document_tiles(stages), *_shard_tiles(folder, parts)),
        inputs=from_documents.input_facts(commits),
        stages=stages,
        rules=from_documents.rules(commits, examples, gallery),
        kept=from_documents.kept_aside(commits, examples),
        generated=tuple(Generated(prompt, file_uri(local_copy(path))) for prompt, path in generated if path.is_file()),
        settings=settings,
        **parts,
        notes=tuple(gallery.problems),
    )
    put(out, report_html(report) + _mark(identity))
    return out


def _mark(identity: str) -> str:
    return f"<!-- {identity} -->\n" if identity else ""


def is_report_of(page: AnyPath, identity: str) -> bool:
    """Whether a page is there that `write_report` wrote with that `identity`; its last bytes tell."""
    mark = _mark(identity).encode()
    try:
        size = state_of(page).size
        return bool(mark) and read_range(page, max(0, size - len(mark)), len(mark)) == mark
    except FileNotFoundError:
        return False


def write_audit_report(shards: AnyPath, out: Path, audited: AuditResult, packs: int = 8) -> Path:
    """The report of a shard set alone, written to `out`; returns `out`.

    Originals and reconstructions are shown where the set still lies in the run that made it; else the page says why not.
    """
    shards = shards.resolve() if isinstance(shards, Path) else shards
    root, commits = shards.parent.parent, {}
    if (shards.parent / MANIFEST).is_file():
        try:
            commits = chain(root, shards.parent)
        except Exception:  # the set is what is audited; a damaged run beside it only costs pictures
            commits = {}
    gallery = _gallery(root, commits)
    if not commits:
        gallery.problems["Texts and pictures are not shown: the set does not lie in the run that made it."] = None
    parts = _shard_parts(shards, audited, packs, _text_tokenizer(commits), gallery)
    report = Report(
        title=f"Shard set {shards.parent.name if commits else shards.name}",
        subtitle="What the set holds, and whether it is what it says it is.",
        tiles=_shard_tiles(shards, parts),
        **parts,
        notes=tuple(gallery.problems),
    )
    put(out, report_html(report))
    return out


def _gallery(root: AnyPath, commits: dict[str, Commit], storage: StorageConfig | None = None) -> Gallery:
    documents = next((commit for commit in reversed(commits.values()) if commit.has("documents")), None)
    folder = commits["vision_tokenizer"].folder / "tokenizer" if "vision_tokenizer" in commits else None
    there = folder is not None and folder.is_dir()
    return Gallery(
        _loader(root, storage), None if documents is None else Images(documents.folder), folder if there else None
    )


def _loader(root: AnyPath, storage: StorageConfig | None) -> Callable[[Any], bytes]:
    made: list[Callable[[Any], bytes]] = []

    def load(image: Any) -> bytes:
        # Imported at the first picture: it needs the data extra, and a report without pictures does not.
        from nextflow_data.config import IngestConfig
        from nextflow_pipelines.sources import image_loader

        if not made:
            made.append(image_loader(root, IngestConfig(), storage))
        return made[0](image)

    return load


def _text_tokenizer(commits: dict[str, Commit]) -> AnyPath | None:
    return commits["text_tokenizer"].folder / "tokenizer.json" if "text_tokenizer" in commits else None


def _recorded(shards: AnyPath) -> AuditResult | None:
    """The audit that was made as the shards were written; None of an older set, and of one that cannot be opened, which only
    an audit can tell more of."""
    try:
        return audit_record(shards)
    except (ShardError, OSError):
        return None


def _shard_parts(
    folder: AnyPath, audited: AuditResult, packs: int, text_tokenizer: AnyPath | None, gallery: Gallery, read: bool = True
) -> dict[str, Any]:
    """The parts that need only shards. Those that a damaged set cannot give are left out: the audit names the damage."""
    parts: dict[str, Any] = {"audit": _audit(audited, read)}
    try:
        shards = ShardSet.open(folder)
    except (ShardError, OSError) as error:
        gallery.problems[f"The packs are not shown: {error}"[:300]] = None
        return parts
    steps: dict[str, Callable[[], Any]] = {
        "mixes": partial(from_shards.mixes, audited.statistics),
        "packing": partial(from_shards.packing, audited.statistics, shards.manifest.budget),
        "sheets": partial(from_shards.sheets, shards, packs, text_tokenizer, gallery),
    }
    for name, step in steps.items():
        try:
            parts[name] = step()
        except (ShardError, ValueError, KeyError, OSError) as error:
            gallery.problems[f"Not shown, because the set is damaged: {error}"[:300]] = None
    return parts


def _audit(result: AuditResult, read: bool) -> Audit:
    counted = result.statistics
    facts = [Fact("Packs read" if read else "Packs", f"{result.samples_read:,}"), Fact("Slots", f"{counted.slots:,}")]
    facts += [Fact("Text tokens", f"{counted.text_tokens:,}"), Fact("Image codes", f"{counted.image_codes:,}")]
    facts.append(Fact("Images", f"{counted.images:,}"))
    if result.manifest is not None:
        manifest = result.manifest
        facts.append(Fact("Shards", f"{manifest.totals.shards:,} ({short(manifest.totals.bytes)} bytes)"))
        facts.append(Fact("Set (sha256)", manifest.sha256))
        facts.append(
            Fact("Text tokenizer", f"{manifest.text_tokenizer.sha256} ({manifest.text_tokenizer.vocab_size:,} ids)")
        )
        if manifest.vision_tokenizer is not None:
            vision = manifest.vision_tokenizer
            facts.append(Fact("Vision tokenizer", f"{vision.sha256} ({vision.codebook_size:,} codes)"))
    findings = tuple(
        AuditLine(f.severity, f.shard, f.key or "", f"{f.what}{f' ({f.where})' if f.where else ''}. {f.advice}")
        for f in result.findings
    )
    return Audit(tuple(facts), findings, result.ok, read)


def _document_tiles(stages: Sequence[Any]) -> tuple[Tile, ...]:
    if not stages:
        return ()
    first, last = stages[0], stages[-1]
    share = f"{100 * last.documents / first.documents:.0f} % of {first.documents:,} pages" if first.documents else ""
    images = f"of {first.images:,} on the pages" if first.images else ""
    return Tile("Documents kept", f"{last.documents:,}", share), Tile("Images kept", f"{last.images:,}", images)


def _shard_tiles(folder: AnyPath | None, parts: dict[str, Any]) -> tuple[Tile, ...]:
    tiles = []
    if mixes := parts.get("mixes"):
        text, image = (share.total for share in mixes[0].shares)
        tiles.append(Tile("Tokens", f"{text + image:,}", f"{100 * image / max(1, text + image):.0f} % image codes"))
    if packing := parts.get("packing"):
        fill = 100 * packing.slots / max(1, packing.packs * packing.max_slots)
        tiles.append(Tile("Packs", f"{packing.packs:,}", f"{fill:.0f} % full"))
    if training := parts.get("training"):
        last = next((c for c in training.loss if c.name == "objective"), None)
        if last is not None:
            (first_step, first), (step, loss) = last.points[0], last.points[-1]
            tiles.append(Tile("Training loss", f"{loss:.3f}", f"from {first:.3f}, steps {first_step:.0f} to {step:.0f}"))
    if result := parts.get("audit"):
        count = len(result.findings)
        value = "clean" if result.ok and not count else f"{count} finding{'s' if count != 1 else ''}"
        tiles.append(
            Tile(
                "Audit", value, "every hash, code and grid" if result.read else "as written", "good" if result.ok else "bad"
            )
        )
    return tuple(tiles)


def _subtitle(commits: dict[str, Commit], stages: Sequence[Any], parts: dict[str, Any]) -> str:
    words = []
    if stages:
        words.append(f"{stages[0].documents:,} pages went in, {stages[-1].documents:,} documents came through.")
    if packing := parts.get("packing"):
        words.append(f"They lie in {packing.packs:,} packs.")
    if training := parts.get("training"):
        words.append(f"A model was trained on them for {training.facts[0].value} steps.")
    if not words:
        raise NoRun(f"nothing to report: {', '.join(commits) or 'no stage'} committed")
    return " ".join(words)
