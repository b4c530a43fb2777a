"""Generation as part of a run: in a process of its own, with the run's own settings where none are given.

A process of its own, because setting up the device changes the whole process. The cost: the model is loaded anew each time.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nextflow_data.common.errors import REFUSED
from nextflow_data.storage.store_path import AnyPath
from nextflow_pipelines.contract.stage import StageError
from rich.console import Console

from megatron_nextflow.config.generate import GenerateConfig, GenerationError
from megatron_nextflow.runtime.training_folder import last_step
from nextflow_orchestration.recipes.sections import GenerateSection
from nextflow_orchestration.report.training_page import SAMPLES
from nextflow_orchestration.runs.lineage import newest_training
from nextflow_orchestration.runs.records import SETTINGS, RunPlace, last_recipe
from nextflow_orchestration.training.copies import checkpoint_on_disk, copy_of
from nextflow_orchestration.training.folders import last_checkpoint
from nextflow_orchestration.words.numbers import short


def generate_in_process(
    checkpoint: Path,
    prompts: Sequence[str],
    out: Path | None,
    settings: GenerateConfig,
    threads: int,
    options: Sequence[str] = (),
) -> dict[str, Any]:
    """`megatron_nextflow.generate` in a process of its own, because setting up the device changes the whole process.

    `options`: more of its command line. Returns its report; raises, with its last line, GenerationError where it refuses and
    StageError where it fails.
    """
    command = [sys.executable, "-m", "megatron_nextflow.generate", f"--threads={threads}", *options]
    command += [f"--settings={settings.model_dump_json()}", *([] if out is None else [f"--out={out}"])]
    # Whatever a prompt begins with, it is no option.
    command += ["--", str(checkpoint), *prompts]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"]
        raise (GenerationError if done.returncode == REFUSED else StageError)(f"generate: {lines[-1]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def generate_from_run(
    run: RunPlace,
    checkpoint: Path | None,
    prompts: list[str],
    out: Path | None,
    images: list[Path],
    interleaved: bool,
    n: int,
    batch: int,
    files: Mapping[str, Path | None],
    **overrides: Any,
) -> None:
    """`mnf generate`: from `checkpoint`, or the newest of the run; settings left out are the run's own.

    `files`: options of `megatron_nextflow.generate` that name a file, and the file.
    """
    if checkpoint is None:
        training = newest_training(run)
        checkpoint = checkpoint_on_disk(training, copy_of(training, run.root))
    given = (run_settings(run.root) if run.settings is None else _sampling(run.settings)) | {
        key: value for key, value in overrides.items() if value is not None
    }
    settings = GenerateConfig.of({key: value for key, value in given.items() if key != "prompt"})
    options = [f"--image={image}" for image in images] + [f"--n={n}", f"--batch={batch}"] + ["--interleaved"] * interleaved
    options += [f"--{name}={file}" for name, file in files.items() if file is not None]
    console = Console(highlight=False, soft_wrap=True)
    with console.status("generating…"):
        done = generate_in_process(checkpoint, prompts, out, settings, threads=2, options=options)
    for result in done["results"]:
        if result["path"] is None:
            console.print(result["metadata"]["prompt"], end="", style="bold", markup=False)
            console.print(result["text"], markup=False)
        else:
            size = f"{result['images']} images" if interleaved else f"{result['width']}×{result['height']} pixels"
            console.print(f"{result['path']}: {size}", markup=False)
    took = f"{done['passes']} forward passes, {short(done['flops'])} FLOPs, {done['seconds']:.1f} s"
    Console(stderr=True, highlight=False).print(took)


def make_samples(output: Path, count: int, prompts: list[str], level: int | None) -> list[Path]:
    """Images from the newest checkpoint, `count` a prompt, kept in the run's folder.

    Without prompts, the prompt and the sampling of the whole run that the training belongs to, or the defaults. Raises
    NoRun, GenerationError, StageError.
    """
    settings = run_settings(output.parent) | ({} if level is None else {"level": level})
    prompts = prompts or [settings.get("prompt", GenerateSection().prompt)]
    config = GenerateConfig.of({key: value for key, value in settings.items() if key != "prompt"})
    file = output / SAMPLES / f"step-{last_step(output):08d}.png"
    done = generate_in_process(last_checkpoint(output), prompts, file, config, threads=2, options=[f"--n={count}"])
    return [Path(result["path"]) for result in done["results"]]


def run_settings(root: AnyPath) -> dict[str, Any]:
    """How the last run in `root` samples, and its `prompt`, as its stored recipe says; nothing where there is none, or it is
    another run's that ended beside it."""
    try:
        tree = json.loads((root / SETTINGS).read_text(encoding="utf-8"))
        return _sampling(tree) if last_recipe(root) in (None, tree.get("name")) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _sampling(recipe: Mapping[str, Any]) -> dict[str, Any]:
    return {"end_of_text": recipe["text_tokenizer"]["end_of_text"], **recipe["generate"]}
