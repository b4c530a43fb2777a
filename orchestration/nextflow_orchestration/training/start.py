"""What `mnf train` starts: a training here, a job on a Slurm cluster, or a dry run that starts nothing.

What can be refused is refused before any of the three begins.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from nextflow_data.common.whole_files import replace_file
from rich.console import Console

from megatron_nextflow.launching import slurm_script
from nextflow_orchestration.recipes.training import load_either
from nextflow_orchestration.runs.server import send_what_is_queued, server
from nextflow_orchestration.training.here import run_training
from nextflow_orchestration.training.prepare import Prepared, foreseen, prepare
from nextflow_orchestration.training.slurm import queue, write_script

console = Console(stderr=True, highlight=False, soft_wrap=True)


def train_here(prepared: Prepared, processes: int | None) -> None:
    """Trains in this terminal; a signal saves and is no error. Raises what `run_training` raises."""
    outcome = run_training(prepared.config, processes)
    console.print(f"{outcome}\ncheckpoints, metrics.jsonl, logs and training.html in {outcome.output}", markup=False)


def train_on_slurm(prepared: Prepared, submit: bool) -> None:
    """Writes the job script, and puts it into the queue where `submit`. Raises TrainingRefused, SlurmError."""
    if not submit:
        console.print(f"{write_script(prepared)}: look at it, then submit it with sbatch or --submit", markup=False)
        return
    job, script = queue(prepared)
    console.print(f"{script}: Slurm job {job}; watch it with --flow, or `mnf page {prepared.config.output}`", markup=False)


def watch(
    recipe_path: Path, overrides: list[str], shards: str | None, out: Path | None, processes: int | None, on_slurm: bool
) -> None:
    """Trains as a Prefect flow; a stop that saved is no error. Raises what the flow raises."""
    prepared = prepare(recipe_path, overrides, shards, out)
    with server(prepared.home) as ui:
        console.print(f"[dim]Prefect UI while this runs: {ui}[/]")
        from nextflow_orchestration.training.flow import nextflow_training

        given = (str(recipe_path), overrides, shards, None if out is None else str(out))
        try:
            state = nextflow_training(*given, processes, on_slurm, return_state=True)
        finally:
            send_what_is_queued()
    console.print(str(state.message if state.is_cancelled() else state.result()), markup=False)
    console.print(f"the training page: {prepared.config.output / 'training.html'}", markup=False)


def dry_run(recipe_path: Path, overrides: list[str], processes: int | None, on_slurm: bool) -> int:
    """What the recipe amounts to, printed by a process of its own; returns that one's exit status.

    Neither shards nor tokenizers need be there. A recipe with a `slurm` section is reckoned for that job's processes.
    """
    recipe = load_either(recipe_path, overrides)
    config = foreseen(recipe, recipe_path)
    if processes is None:
        for_job = on_slurm or (recipe.train is not None and "slurm" in recipe.train.model_fields_set)
        processes = slurm_script.processes(config) if for_job else config.parallel.model_parallel
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "train.json"
        replace_file(file, config.model_dump_json())
        command = [
            sys.executable,
            "-m",
            "megatron_nextflow.dry_run",
            "--config",
            str(file),
            "--processes",
            str(processes),
        ]
        return subprocess.run(command).returncode
