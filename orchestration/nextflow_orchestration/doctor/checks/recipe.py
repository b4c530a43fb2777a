"""What the recipe asks of this machine: its inputs, its cluster, its trackers, its processes."""

from __future__ import annotations

import importlib.util
import netrc
import os
import shutil
import socket
from pathlib import Path
from urllib.parse import urlsplit

from nextflow_data.storage.files import any_path
from nextflow_pipelines.inputs import is_listed
from nextflow_pipelines.spark.gpus import GpuError, TaskGpus
from nextflow_pipelines.spark.session import is_local
from nextflow_tokenize.config.vision_recipe import TokenizerRecipe
from nextflow_tokenize.shards.manifest import MANIFEST

from nextflow_orchestration.doctor.check import Case, Diagnosis, bad, check, ok, unneeded
from nextflow_orchestration.doctor.checks.gpu import gpus
from nextflow_orchestration.doctor.requirements import pip_install
from nextflow_orchestration.recipes.errors import RecipeError
from nextflow_orchestration.recipes.run import SAMPLE, Recipe
from nextflow_orchestration.recipes.training import TrainingRecipe

MOST = 1000
"""Files that are opened of many."""


def _is_run(case: Case) -> bool:
    return isinstance(case.recipe, Recipe)


def _trains(case: Case) -> bool:
    return case.train is not None


@check("recipe", "inputs", when=lambda case: case.recipe is not None)
def inputs(case: Case) -> Diagnosis:
    """All that it reads is there and can be read."""
    recipe = case.recipe
    files: list[str] = []
    if isinstance(recipe, Recipe | TokenizerRecipe):
        try:
            recipe.check_inputs()
        except (RecipeError, ValueError, OSError) as error:
            return bad(str(error), "correct the recipe, or put the file there")
    if isinstance(recipe, Recipe):
        files += [name for entry in recipe.entries() for name in entry.files if name != SAMPLE and not is_listed(name)]
    if isinstance(recipe, TrainingRecipe):
        data = recipe.train.data
        if data.shards is None:
            return bad("train.data.shards is not set", "name a shard set in the recipe, or with mnf train --shards")
        files.append(f"{data.shards}/{MANIFEST}")
        files += [f"{data.vision_tokenizer}/config.json"] if data.vision_tokenizer is not None else []
        files += [str(data.text_tokenizer)] if data.text_tokenizer is not None else []
    for file in files[:MOST]:
        try:
            with any_path(file, case.storage).open("rb") as stream:
                stream.read(1)
        except OSError as error:
            said = f"{file}: {error.strerror}" if error.strerror else str(error)
            return bad(said, "correct the recipe, or put the file there")
    if len(files) > MOST:
        return ok(f"{MOST:,} of {len(files):,} files can be read")
    return ok(f"{len(files)} files can be read" if files else "nothing is missing")


@check("recipe", "spark", when=_is_run)
def master(case: Case) -> Diagnosis:
    """Its master answers; in local mode the GPUs that tasks ask for are there."""
    config = case.spark
    if not is_local(config.master):
        return _cluster(config.master)
    try:
        TaskGpus.of(config).check()
    except GpuError as error:
        return bad(str(error), "see gpu")
    return ok(f"{config.master}, on this machine")


def _cluster(master: str) -> Diagnosis:
    if master == "yarn":
        folder = next((os.environ[name] for name in ("HADOOP_CONF_DIR", "YARN_CONF_DIR") if name in os.environ), None)
        if folder is None or not Path(folder).is_dir():
            return bad("yarn, and no folder of its settings", "export HADOOP_CONF_DIR=/its/folder")
        return ok(f"yarn, by {folder}")
    for one in master.removeprefix("k8s://").removeprefix("spark://").split(","):
        address = urlsplit(one if "://" in one else f"//{one}")
        try:
            port = address.port or (443 if address.scheme == "https" else 7077)
            with socket.create_connection((address.hostname or "", port), timeout=5):
                return ok(f"{master} answers")
        except (OSError, ValueError) as error:
            why = error
    return bad(f"{master} does not answer: {why}", "start it, or correct spark.master; local[2] is this machine")


@check("recipe", "processes", when=_trains)
def processes(case: Case) -> Diagnosis:
    """One copy of the model's processes, beside the cores or GPUs that are there."""
    train = case.train
    assert train is not None
    if "slurm" in train.model_fields_set:
        if shutil.which("sbatch") is None:
            return unneeded("Slurm's commands are not here", "write the script here, submit it where sbatch is")
        return ok(f"a Slurm job of {train.slurm.nodes} × {train.slurm.gpus_per_node} processes")
    count, cores = train.parallel.model_parallel, len(os.sched_getaffinity(0))
    there = 0 if train.device == "cpu" else gpus()
    if there and count > there:
        return bad(f"one copy of the model takes {count} GPUs, there are {there}", "set train.parallel lower, or use Slurm")
    if not there and count * train.threads > cores:
        return ok(f"{count} processes on {cores} cores", "more than there are cores: right, but slow")
    return ok(f"{count} processes on {f'{there} GPUs' if there else f'{cores} cores'}")


@check("recipe", "wandb", when=lambda case: case.train is not None and case.train.wandb is not None)
def wandb(case: Case) -> Diagnosis:
    """It is installed, and has a key where it is to be online."""
    assert case.train is not None and case.train.wandb is not None
    if importlib.util.find_spec("wandb") is None:
        return bad("wandb is not installed", f"{pip_install('wandb')}, or leave train.wandb out")
    if case.train.wandb.mode == "offline" or os.environ.get("WANDB_MODE") == "offline":
        return ok("installed; offline")
    if os.environ.get("WANDB_API_KEY") or _in_netrc("api.wandb.ai"):
        return ok("installed; a key is there")
    return bad("no key", "export WANDB_API_KEY, run `wandb login`, or set train.wandb.mode to offline")


def _in_netrc(host: str) -> bool:
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
