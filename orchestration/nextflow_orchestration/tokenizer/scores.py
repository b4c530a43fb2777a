"""`mnf tokenizer eval`: a tokenizer's scores by level and ratio, as a table, as files, and as a sheet to look at."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from nextflow_tokenize.schedule import LEVEL_OF
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from nextflow_tokenize.vision.scores.evaluate import EvalReport

COLUMNS = ("level", "grid", "images", "PSNR dB", "SSIM", "LPIPS", "semantic cosine")
SHEET_ROWS = 24


def evaluate_tokenizer(
    folder: Path,
    images: Sequence[str],
    levels: Sequence[int] | None,
    out: Path | None,
    lpips: Path | None,
    inception: Path | None,
    teacher: Path | None,
    most: int,
    device: str,
) -> EvalReport:
    """`mnf tokenizer eval`: prints the table and, with `out`, writes evaluation.json, evaluation.md and sheet.png."""
    import tempfile

    from nextflow_tokenize.vision import processes
    from nextflow_tokenize.vision.images.dataset import open_picture
    from nextflow_tokenize.vision.images.image_index import encoded_images, index
    from nextflow_tokenize.vision.model import VisionTokenizer
    from nextflow_tokenize.vision.scores.evaluate import Judges, evaluate
    from nextflow_tokenize.vision.scores.inception import InceptionFeatures
    from nextflow_tokenize.vision.scores.perceptual import Lpips
    from nextflow_tokenize.vision.scores.sheets import sheet_of

    where = processes.start(device)
    tokenizer = VisionTokenizer.load(folder, where)
    if teacher is not None:
        tokenizer.attach_teacher(teacher)
    judges = Judges(
        None if lpips is None else Lpips.load(lpips).to(where),
        None if inception is None else InceptionFeatures.load(inception).to(where),
    )
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory() as scratch, console.status("encoding and decoding…"):
        found = encoded_images(index(images, Path(scratch) / "images.parquet"))
        chosen = sorted(found, key=lambda image: image.sha256)[:most]
        report = evaluate(tokenizer, chosen, levels or tokenizer.config.levels, judges)
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            content = {"tokenizer": tokenizer.identity} | asdict(report)
            (out / "evaluation.json").write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            (out / "evaluation.md").write_text(markdown(report, tokenizer.identity or ""), encoding="utf-8")
            known = {score.sha256 for score in report.images}
            shown = [open_picture(image, 2048) for image in chosen if image.sha256 in known][:SHEET_ROWS]
            sheet_of(tokenizer, shown).save(out / "sheet.png")
    console.print(_table(report))
    console.print(
        f"codebook: {100 * report.usage:.1f} % of {tokenizer.config.codebook_size:,} codes in use, perplexity "
        f"{report.perplexity:,.0f}, {report.dead:,} never chosen"
        + (f"; rFID {report.rfid:.2f}" if report.rfid is not None else "")
    )
    for name, reason in sorted(report.failed.items())[:5]:
        console.print(f"left out: {name[:16]}: {reason}", soft_wrap=True)
    if len(report.failed) > 5:
        console.print(f"and {len(report.failed) - 5} more left out")
    return report


def _rows(report: EvalReport) -> list[tuple[str, ...]]:
    """A line a level and a line a ratio of it."""
    lines: list[tuple[str, ...]] = []
    for group in report.groups:
        level = str(LEVEL_OF.get(group.scales, f"{group.scales} scales"))
        where = "all" if group.grid is None else f"{group.grid[0]}×{group.grid[1]}"
        lines.append(
            (
                level, where, str(group.images), f"{group.psnr:.2f}", f"{group.ssim:.3f}",
                "–" if group.lpips is None else f"{group.lpips:.3f}",
                "–" if group.semantic_cosine is None else f"{group.semantic_cosine:.3f}",
            )
        )  # fmt: skip
    return lines


def _table(report: EvalReport) -> Table:
    table = Table(*COLUMNS)
    for row in _rows(report):
        table.add_row(*row, style="bold" if row[1] == "all" else None)
    return table


def markdown(report: EvalReport, identity: str) -> str:
    """The scores by level and ratio, and the codebook's use by scale, as Markdown tables."""
    lines = [
        f"# Evaluation of tokenizer {identity[:16]}",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|---" * len(COLUMNS) + "|",
    ]
    lines += ["| " + " | ".join(row) + " |" for row in _rows(report)]
    if report.rfid is not None:
        lines += ["", f"rFID {report.rfid:.2f} over {len(report.images)} images."]
    lines += ["", "| scale | codes | distinct | perplexity | never chosen |", "|---|---|---|---|---|"]
    lines += [
        f"| {use.scale} | {use.tokens:,} | {use.distinct:,} | {use.perplexity:,.1f} | {use.dead:,} |"
        for use in report.scales
    ]
    return "\n".join(lines) + "\n"
