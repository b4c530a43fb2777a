"""What the verbs of `mnf tokenizer` do: train by a recipe, evaluate, export, import, and show one image's round trip."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nextflow_tokenize.vision_recipe import TokenizerRecipe
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from nextflow_orchestration.recipe import load

if TYPE_CHECKING:
    from nextflow_tokenize.vision.evaluate import EvalReport
    from nextflow_tokenize.vision.model import VisionTokenizer

RECIPE = "recipe.json"
SHEET_ROWS = 24


class TokenizerTrainingFailed(RuntimeError):
    """The training processes ended with an error."""


def train_tokenizer(recipe_path: Path, overrides: list[str], processes: int, device: str) -> None:
    """`mnf tokenizer train`. Raises RecipeError, TrainingFailed, and what the stages raise."""
    recipe = load(TokenizerRecipe, recipe_path, overrides)
    recipe.check_inputs()
    for number, config in enumerate(recipe.resolved()):
        if config.training.micro_batches % processes:
            raise ValueError(
                f"stage {recipe.stages[number].name}: training.micro_batches {config.training.micro_batches} cannot be "
                f"shared out to {processes} processes; set a multiple of their number"
            )
    recipe.output.mkdir(parents=True, exist_ok=True)
    file = recipe.output / RECIPE
    file.write_text(recipe.model_dump_json(indent=1) + "\n", encoding="utf-8")
    console = Console(stderr=True, highlight=False)
    if processes > 1:
        _launch(file, processes, device)
    else:
        _train_here(recipe, device, console)
    console.print(
        f"{recipe.output / 'tokenizer'}: the tokenizer, its evaluation and a sheet of held-out images", soft_wrap=True
    )
    console.print(
        f"look at one image: mnf tokenizer roundtrip IMAGE --tokenizer {recipe.output / 'tokenizer'}", soft_wrap=True
    )


def _train_here(recipe: TokenizerRecipe, device: str, console: Console) -> None:
    from nextflow_tokenize.vision.run import run

    columns = (
        TextColumn("{task.description:<12}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:

        def stage(name: str) -> Any:
            task = bar.add_task(name, total=None, note="preparing")

            def update(done: int, total: int, metrics: dict[str, float]) -> None:
                note = f"{metrics['psnr']:.1f} dB, {100 * metrics['usage']:.0f} % of codes"
                bar.update(task, completed=done, total=total, note=note)

            return update

        def finished(outcome: Any) -> None:
            line = _line(outcome.name, outcome.kept, asdict(outcome.report) if outcome.report else None)
            bar.console.print(line, soft_wrap=True)

        run(recipe, stage, lambda text: bar.console.print(text, soft_wrap=True), finished, device)


def _launch(file: Path, processes: int, device: str) -> None:
    from megatron_nextflow.launch import attend

    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += ["--max-restarts", "0", "-m", "nextflow_tokenize.vision.run", str(file), "--device", device]
    values = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1", "LOGLEVEL": "ERROR"}
    agent = subprocess.Popen(command, env={**os.environ, **values}, start_new_session=True)
    status = attend(agent, file.with_name(".exit-status"))
    if status > 128:
        raise KeyboardInterrupt
    if status:
        raise TokenizerTrainingFailed(
            f"training ended with status {status}: the lines above say why; the same command goes on from the last "
            f"checkpoint in {file.parent}, if there is one"
        )


def _line(name: str, kept: bool, report: dict[str, Any] | None) -> str:
    if kept or report is None:
        return f" [dim]=[/] {name}: kept"
    held = report["psnr_held_out"]
    scores = f"{report['psnr_training']:.2f} dB" + (f", held out {held:.2f} dB" if held is not None else "")
    failed = f", {len(report['failed'])} images left out" if report["failed"] else ""
    return (
        f" [green]✓[/] {name}: {report['steps']} steps in {report['seconds']:.0f} s, {scores}, "
        f"{100 * report['usage']:.0f} % of codes in use{failed}"
    )


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
    from nextflow_tokenize.vision.dataset import open_picture
    from nextflow_tokenize.vision.evaluate import Judges, evaluate
    from nextflow_tokenize.vision.image_index import encoded_images, index
    from nextflow_tokenize.vision.inception import InceptionFeatures
    from nextflow_tokenize.vision.perceptual import Lpips
    from nextflow_tokenize.vision.sheets import sheet_of

    where = processes.start(device)
    tokenizer = _load(folder, where)
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
    from nextflow_tokenize.vision.evaluate import level_of

    lines: list[tuple[str, ...]] = []
    for group in report.groups:
        where = "all" if group.grid is None else f"{group.grid[0]}×{group.grid[1]}"
        lines.append(
            (
                level_of(group.scales), where, str(group.images), f"{group.psnr:.2f}", f"{group.ssim:.3f}",
                "–" if group.lpips is None else f"{group.lpips:.3f}",
                "–" if group.semantic_cosine is None else f"{group.semantic_cosine:.3f}",
            )
        )  # fmt: skip
    return lines


COLUMNS = ("level", "grid", "images", "PSNR dB", "SSIM", "LPIPS", "semantic cosine")


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


def export_tokenizer(run: Path, out: Path) -> None:
    """`mnf tokenizer export`: the folder of a finished stage, or the newest checkpoint of one that is at work."""
    import shutil

    from nextflow_tokenize.vision.identity import CONFIG_FILE, WEIGHTS_FILE, identity
    from nextflow_tokenize.vision.training_state import export

    if out.exists():
        raise FileExistsError(f"{out} exists: a tokenizer is never overwritten; name another folder")
    finished = next((p for p in (run / "tokenizer", run) if (p / WEIGHTS_FILE).is_file()), None)
    if finished is not None:
        out.mkdir(parents=True)
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            shutil.copyfile(finished / name, out / name)
        said = "finished"
    else:
        said = f"step {export(run / 'work' if (run / 'work').is_dir() else run, out)}"
    Console(highlight=False).print(f"{out}: tokenizer {identity(out)[:16]}, {said}", soft_wrap=True)


def import_tokenizer(checkpoint: Path, out: Path) -> None:
    """`mnf tokenizer import`."""
    from nextflow_tokenize.vision.tokenflow import convert

    name = convert(checkpoint, out)
    Console(highlight=False).print(f"{out}: tokenizer {name[:16]}, from {checkpoint.name}", soft_wrap=True)


def roundtrip_image(image: Path, tokenizer: Path | None, root: Path, out: Path | None, level: int | None) -> None:
    """`mnf tokenizer roundtrip`."""
    from nextflow_data.config import IngestConfig
    from nextflow_data.images import open_rgb
    from nextflow_tokenize.vision.sheets import preview

    folder = tokenizer or _of_run(root)
    loaded = _load(folder)
    picture = open_rgb(image.read_bytes(), IngestConfig())
    target = out or image.with_name(f"{image.stem}-roundtrip.png")
    target.parent.mkdir(parents=True, exist_ok=True)
    sheet = preview(loaded, picture, level)
    sheet.save(target)
    Console(highlight=False).print(f"{target}: {sheet.width}×{sheet.height} pixels, tokenizer {folder}", soft_wrap=True)


def _of_run(root: Path) -> Path:
    """The tokenizer that the run in `root` used. Raises NoRun where there is none."""
    from nextflow_orchestration.lineage import NoRun, chain

    commit = chain(root).get("vision_tokenizer")
    if commit is None or not (commit.folder / "tokenizer").is_dir():
        raise NoRun(f"{root} holds no vision tokenizer: name one with --tokenizer, or a run with --root")
    return commit.folder / "tokenizer"


def _load(folder: Path, device: Any = "cpu") -> VisionTokenizer:
    from nextflow_tokenize.vision.model import VisionTokenizer

    return VisionTokenizer.load(folder, device)
