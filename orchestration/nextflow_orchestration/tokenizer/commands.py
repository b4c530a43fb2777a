"""What the verbs of `mnf tokenizer` do: train by a recipe, export, import, and show one image's round trip."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nextflow_data.common.errors import RequestError
from nextflow_data.common.whole_files import replace_file
from nextflow_data.storage.files import any_path, local_copy
from nextflow_data.storage.store_path import AnyPath
from nextflow_tokenize.config.vision_recipe import TokenizerRecipe
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from nextflow_orchestration.recipes.kinds import require_kind
from nextflow_orchestration.recipes.run import validated
from nextflow_orchestration.recipes.written import read

RECIPE = "recipe.json"


class TokenizerTrainingFailed(RuntimeError):
    """The training processes ended with an error."""


def train_tokenizer(recipe_path: Path, overrides: list[str], processes: int, device: str) -> None:
    """`mnf tokenizer train`. Raises RecipeError, TokenizerTrainingFailed, and what the stages raise."""
    written = read(recipe_path, overrides)
    require_kind(written, "tokenizer")
    recipe = validated(TokenizerRecipe, written)
    recipe.check_inputs()
    for number, config in enumerate(recipe.resolved()):
        if config.training.micro_batches % processes:
            raise RequestError(
                f"stage {recipe.stages[number].name}: training.micro_batches {config.training.micro_batches} cannot be "
                f"shared out to {processes} processes; set a multiple of their number"
            )
    recipe.output.mkdir(parents=True, exist_ok=True)
    file = recipe.output / RECIPE
    replace_file(file, recipe.model_dump_json(indent=1) + "\n")
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
    from nextflow_tokenize.vision.training.whole_training import train_by_recipe

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

        train_by_recipe(recipe, stage, lambda text: bar.console.print(text, soft_wrap=True), finished, device)


def _launch(file: Path, processes: int, device: str) -> None:
    from megatron_nextflow.launching.supervise import attend

    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += [
        "--max-restarts",
        "0",
        "-m",
        "nextflow_tokenize.vision.training.whole_training",
        str(file),
        "--device",
        device,
    ]
    values = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1", "LOGLEVEL": "ERROR"}
    status = attend(command, {**os.environ, **values}, file.with_name(".exit-status"))
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


def export_tokenizer(folder: Path, out: Path) -> None:
    """`mnf tokenizer export`: the folder of a finished stage, or the newest checkpoint of one that is at work."""
    import shutil

    from nextflow_tokenize.vision.identity import CONFIG_FILE, WEIGHTS_FILE, identity
    from nextflow_tokenize.vision.training.checkpoints import export

    if out.exists():
        raise FileExistsError(f"{out} exists: a tokenizer is never overwritten; name another folder")
    finished = next((p for p in (folder / "tokenizer", folder) if (p / WEIGHTS_FILE).is_file()), None)
    if finished is not None:
        out.mkdir(parents=True)
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            shutil.copyfile(finished / name, out / name)
        said = "finished"
    else:
        said = f"step {export(folder / 'work' if (folder / 'work').is_dir() else folder, out)}"
    Console(highlight=False).print(f"{out}: tokenizer {identity(out)[:16]}, {said}", soft_wrap=True)


def import_tokenizer(checkpoint: Path, out: Path) -> None:
    """`mnf tokenizer import`."""
    from nextflow_tokenize.vision.tokenflow import convert

    name = convert(checkpoint, out)
    Console(highlight=False).print(f"{out}: tokenizer {name[:16]}, from {checkpoint.name}", soft_wrap=True)


def roundtrip_image(image: Path, tokenizer: Path | None, root: str, out: Path | None, level: int | None) -> None:
    """`mnf tokenizer roundtrip`."""
    from nextflow_data.config import IngestConfig
    from nextflow_data.images.measure import ImageRejected, open_rgb
    from nextflow_tokenize.vision.model import VisionTokenizer
    from nextflow_tokenize.vision.scores.sheets import preview

    folder = tokenizer or _of_run(any_path(root))
    loaded = VisionTokenizer.load(folder)
    try:
        picture = open_rgb(image.read_bytes(), IngestConfig())
    except ImageRejected as error:
        raise RequestError(f"{image} is no image that can be shown: {error}") from None
    target = out or image.with_name(f"{image.stem}-roundtrip.png")
    target.parent.mkdir(parents=True, exist_ok=True)
    sheet = preview(loaded, picture, level)
    sheet.save(target)
    Console(highlight=False).print(f"{target}: {sheet.width}×{sheet.height} pixels, tokenizer {folder}", soft_wrap=True)


def _of_run(root: AnyPath) -> Path:
    """The tokenizer that the run in `root` used, or a copy of it on this machine. Raises NoRun where there is none."""
    from nextflow_orchestration.runs.lineage import NoRun, chain

    commit = chain(root).get("vision_tokenizer")
    if commit is None or not (commit.folder / "tokenizer").is_dir():
        raise NoRun(f"{root} holds no vision tokenizer: name one with --tokenizer, or a run with --root")
    return local_copy(commit.folder / "tokenizer")
