"""`mnf train` and `mnf page`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from nextflow_orchestration.verbs.common import RecipeArg, SetOption, plain_errors


class Launcher(StrEnum):
    """Where a training runs."""

    local = "local"
    slurm = "slurm"


def train(
    recipe: RecipeArg,
    set_: SetOption = None,
    shards: Annotated[
        str | None, typer.Option(help="shard set, a folder or s3:// address (default: the recipe's, or its last run's)")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="folder for checkpoints and metrics")] = None,
    processes: Annotated[
        int | None, typer.Option(help="processes on this machine, one a GPU or core (default: one copy of the model)", min=1)
    ] = None,
    launcher: Annotated[Launcher, typer.Option(help="this machine, or a job script for a Slurm cluster")] = Launcher.local,
    submit: Annotated[bool, typer.Option("--submit", help="with --launcher slurm: put the job into the queue")] = False,
    flow: Annotated[bool, typer.Option("--flow", help="as a Prefect flow, which may be killed and finds it again")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what it amounts to, and whether it fits")] = False,
) -> None:
    """Trains on a shard set with torchrun and Megatron-Core; resumes where the last run of the same folder stopped.

    Takes a whole run's recipe or a training recipe. Ctrl-C and SIGTERM save and stop.
    """
    on_slurm = launcher is Launcher.slurm
    if submit and not on_slurm:
        raise typer.BadParameter("--submit needs --launcher slurm")
    if on_slurm and processes is not None and not dry_run:
        raise typer.BadParameter("--processes: a Slurm job has slurm.nodes × slurm.gpus_per_node of the recipe")
    with plain_errors():
        from nextflow_orchestration.training import start
        from nextflow_orchestration.training.prepare import prepare

        if dry_run:
            raise typer.Exit(start.dry_run(recipe, set_ or [], processes, on_slurm))
        if flow:
            start.watch(recipe, set_ or [], shards, out, processes, on_slurm)
            return
        prepared = prepare(recipe, set_ or [], shards, out)
        if on_slurm:
            start.train_on_slurm(prepared, submit)
        else:
            start.train_here(prepared, processes)


def page(
    output: Annotated[Path, typer.Argument(help="a training's folder: the one with train.json and checkpoints")],
    samples: Annotated[int, typer.Option(help="images to make from the newest checkpoint, each prompt", min=0)] = 0,
    prompt: Annotated[list[str] | None, typer.Option(help="of the samples (default: the training's); repeatable")] = None,
    level: Annotated[int | None, typer.Option(help="resolution level of the samples: 128, 256, 512 or 1024")] = None,
) -> None:
    """Writes training.html into a training's folder: loss by scale, speed, events, checkpoints, samples, settings."""
    with plain_errors():
        from nextflow_orchestration.report.training_page import SAMPLES, write_training_page

        console = Console(highlight=False, soft_wrap=True)
        if samples:
            from nextflow_orchestration.generation import make_samples

            with console.status("generating…"):
                made = make_samples(output, samples, prompt or [], level)
            console.print(f"{len(made)} samples in {output / SAMPLES}", markup=False)
        console.print(str(write_training_page(output)), markup=False)
