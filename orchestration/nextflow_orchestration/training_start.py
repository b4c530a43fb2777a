"""What `mnf train` starts: a training here, a job on a Slurm cluster, or a dry run that starts nothing.

A whole run's recipe trains on the shards of its last run, or on a set named beside it; a training recipe names its own. What
can be refused is refused before any of the three begins.
"""

from __future__ import annotations

import hashlib
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from megatron_nextflow.config.train import TrainConfig
from megatron_nextflow.launching import slurm_queue
from megatron_nextflow.launching import slurm_script as slurm
from megatron_nextflow.launching.launch_record import LaunchRecord, read_record, write_record
from megatron_nextflow.launching.launcher import resolve as absolute
from nextflow_orchestration.lineage import NoRun, chain
from nextflow_orchestration.prefect_server import send_what_is_queued, server
from nextflow_orchestration.recipe import Recipe
from nextflow_orchestration.recipe_error import RecipeError
from nextflow_orchestration.training import TrainingRefused, resolve, run_training, training_folder
from nextflow_orchestration.training_recipe import TrainingRecipe, load_either

console = Console(stderr=True, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Prepared:
    """A recipe made ready: its configuration with absolute paths, and the folder beside which Prefect keeps its records."""

    name: str
    config: TrainConfig
    home: Path


def prepare(recipe_path: Path, overrides: list[str], shards: Path | None, out: Path | None) -> Prepared:
    """The configuration that a recipe of either kind trains with. Raises RecipeError, NoRun.

    `shards` replaces the set that the recipe trains on, `out` the folder that it trains into.
    """
    recipe = load_either(recipe_path, overrides)
    if isinstance(recipe, TrainingRecipe):
        config = _of_training_recipe(recipe.train, shards, out)
        return Prepared(recipe.name, config, config.output)
    return Prepared(recipe.name, _of_run(recipe, recipe_path, shards, out), recipe.root)


def _of_training_recipe(config: TrainConfig, shards: Path | None, out: Path | None) -> TrainConfig:
    data = config.data if shards is None else config.data.model_copy(update={"shards": str(shards)})
    return absolute(config.model_copy(update={"data": data, "output": out or config.output}), Path.cwd())


def _of_run(recipe: Recipe, recipe_path: Path, shards: Path | None, out: Path | None) -> TrainConfig:
    if shards is None:
        commits = chain(recipe.root)
        if "pack" not in commits:
            raise NoRun(f"{recipe.root} holds no shards yet: run `mnf run {recipe_path}` first, or name a set with --shards")
        pack = commits["pack"]
        shards, tokenizer = pack.folder / "shards", commits["vision_tokenizer"].folder / "tokenizer"
        text_tokenizer: Path | None = commits["text_tokenizer"].folder / "tokenizer.json"
        fingerprint = pack.manifest["fingerprint"]
    else:
        given = recipe.train.data.vision_tokenizer
        if given is None:
            raise RecipeError("--shards needs train.data.vision_tokenizer: the folder of the tokenizer that made them")
        tokenizer, text_tokenizer = given, recipe.train.data.text_tokenizer
        fingerprint = hashlib.sha256((shards / "manifest.json").read_bytes()).hexdigest()
    output = out or training_folder(recipe.root, recipe.train, fingerprint)
    return absolute(resolve(recipe, shards, tokenizer, text_tokenizer, output), Path.cwd())


def train_here(prepared: Prepared, processes: int | None) -> None:
    """Trains in this terminal; a signal saves and is no error. Raises what `run_training` raises."""
    outcome = run_training(prepared.config, processes)
    console.print(f"{outcome}\ncheckpoints, metrics.jsonl, logs and run.html in {outcome.output}", markup=False)


def train_on_slurm(prepared: Prepared, submit: bool) -> None:
    """Writes the job script, and puts it into the queue where `submit`. Raises TrainingRefused, SlurmError."""
    if not submit:
        console.print(f"{write_script(prepared)}: look at it, then submit it with sbatch or --submit", markup=False)
        return
    job, script = queue(prepared)
    console.print(f"{script}: Slurm job {job}; watch it with --flow, or `mnf page {prepared.config.output}`", markup=False)


def watch(
    recipe_path: Path, overrides: list[str], shards: Path | None, out: Path | None, processes: int | None, on_slurm: bool
) -> None:
    """Trains as a Prefect flow; a stop that saved is no error. Raises what the flow raises."""
    prepared = prepare(recipe_path, overrides, shards, out)
    with server(prepared.home) as ui:
        console.print(f"[dim]Prefect UI while this runs: {ui}[/]")
        from nextflow_orchestration.training_flow import nextflow_training

        given = (str(recipe_path), overrides, *(None if path is None else str(path) for path in (shards, out)))
        try:
            state = nextflow_training(*given, processes, on_slurm, return_state=True)
        finally:
            send_what_is_queued()
    console.print(str(state.message if state.is_cancelled() else state.result()), markup=False)
    console.print(f"the run page: {prepared.config.output / 'run.html'}", markup=False)


def queue(prepared: Prepared) -> tuple[str, Path]:
    """Writes the job script and queues it; returns the job's number and the script. Raises TrainingRefused, SlurmError."""
    output = prepared.config.output
    record = read_record(output)
    if record is not None and record.job is not None:
        state = slurm_queue.state(record.job)
        if state in slurm_queue.WAITING | slurm_queue.AT_WORK:
            raise TrainingRefused(
                f"Slurm job {record.job} ({state}) trains into {output} already: let it, `scancel` it, or name another"
            )
    script = write_script(prepared)
    job = slurm_queue.submit(script)
    now = time.time()
    submitted = LaunchRecord(
        pid=0,
        started=now,
        host=socket.gethostname(),
        launcher="slurm",
        job=job,
        processes=slurm.processes(prepared.config),
        nodes=prepared.config.slurm.nodes,
        status="submitted",
        began=now,
    )
    begun = read_record(output)
    if begun is None or begun.job != job:  # else it runs already and says so itself
        write_record(output, submitted)
    return job, script


def write_script(prepared: Prepared) -> Path:
    """The job script, which ends by writing the run page where this program's interpreter is on the nodes too."""
    config = prepared.config
    here = config.slurm.container is None and config.slurm.python is None
    page = (sys.executable, "-m", "nextflow_orchestration.cli", "page", str(config.output))
    try:
        return slurm.write_script(config, Path.cwd(), prepared.name, page if here else ())
    except ValueError as error:
        raise TrainingRefused(str(error)) from error


def dry_run(recipe_path: Path, overrides: list[str], processes: int | None, on_slurm: bool) -> int:
    """What the recipe amounts to, printed by a process of its own; returns that one's exit status.

    Neither shards nor tokenizers need be there. A recipe with a `slurm` section is reckoned for that job's processes.
    """
    recipe = load_either(recipe_path, overrides)
    config = _foreseen(recipe, recipe_path)
    if processes is None:
        for_job = on_slurm or "slurm" in recipe.train.model_fields_set
        processes = slurm.processes(config) if for_job else config.parallel.model_parallel
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "train.json"
        file.write_text(config.model_dump_json(), encoding="utf-8")
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


def _foreseen(recipe: Recipe | TrainingRecipe, recipe_path: Path) -> TrainConfig:
    """The configuration of a training; for a run that has no shards yet, with the sizes that its tokenizers will have."""
    if isinstance(recipe, TrainingRecipe):
        return _of_training_recipe(recipe.train, None, None)
    try:
        return _of_run(recipe, recipe_path, None, None)
    except NoRun:
        vision, train = recipe.vision_tokenizer, recipe.train
        sizes = {"codebook_size": vision.codebook_size, "codebook_dim": vision.semantic_dim + vision.pixel_dim}
        text = {"text_vocabulary": train.model.text_vocabulary or recipe.text_tokenizer.vocab_size}
        return train.model_copy(
            update={"data": train.data.model_copy(update=sizes), "model": train.model.model_copy(update=text)}
        )
