"""Training and generation as part of a run: which folder, which checkpoint, and how a training ended.

A training folder is named after what decides the weights: the shard set, the model, the optimizer, the loss. How many steps,
how often to save and how many processes are not in the name, so the same command with more steps, or another layout, goes on
from the last checkpoint. The checkpoints have manifests of their own (`megatron_nextflow.checkpoint`), so training is not
under the stage contract.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nextflow_pipelines.contract.stage import canonical_json
from rich.console import Console

from megatron_nextflow.config.generate import GenerateConfig
from megatron_nextflow.config.train import TrainConfig
from megatron_nextflow.runtime.training_folder import RECORD, last_step
from nextflow_orchestration.lineage import NoRun, last_run
from nextflow_orchestration.recipe import Recipe

OPERATIONAL = (
    "output", "parallel", "steps", "log_interval", "checkpoint_interval", "keep", "keep_every", "async_save", "resume",
    "health", "tensorboard", "wandb", "peak_tflops", "memory_gib", "slurm", "recompute", "device", "threads", "master_port",
)  # fmt: skip
"""Settings that decide how a training is carried out, not what is learnt."""


class TrainingFailed(RuntimeError):
    """The training processes ended with an error; `status` is their exit status, None where nobody could tell it."""

    def __init__(self, status: int | None, output: Path) -> None:
        step = last_step(output)
        kept = (
            f"the checkpoint of step {step} is kept and the same command goes on from it"
            if step
            else "nothing was saved yet"
        )
        how = "ended without a word" if status is None else f"ended with status {status}"
        super().__init__(f"training {how} ({output}); {kept}")
        self.status = status


class TrainingRefused(ValueError):
    """What the run was given cannot be trained on; trying again would not help."""


@dataclass(frozen=True)
class TrainingOutcome:
    """Where a training stands after it ended well: finished, or told to stop and saved."""

    output: Path
    step: int
    steps: int

    @property
    def finished(self) -> bool:
        return self.step >= self.steps

    def __str__(self) -> str:
        if self.finished:
            return f"step {self.step}: done"
        return f"stopped early at step {self.step} of {self.steps}, saved; the same command goes on from there"


def training_folder(root: Path, config: TrainConfig, shards_fingerprint: str) -> Path:
    """`<root>/train-<12 digits>`, from the settings that decide the weights and the fingerprint of the shard set."""
    settings = config.model_dump(mode="json", exclude=set(OPERATIONAL))
    settings["data"] = {k: v for k, v in settings["data"].items() if k in ("seed", "global_batch_size")}
    del settings["loss"]["chunk"]
    identity = canonical_json({"settings": settings, "shards": shards_fingerprint})
    return root / f"train-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"


def last_checkpoint(output: Path) -> Path:
    """The newest checkpoint's folder. Raises NoRun where there is none."""
    if not last_step(output):
        raise NoRun(f"{output} holds no checkpoint: run `mnf train` first, or name one with --checkpoint")
    return output / "checkpoints" / (output / "checkpoints" / "latest").read_text(encoding="utf-8").strip()


def resolve(recipe: Recipe, shards: Path, vision_tokenizer: Path, text_tokenizer: Path | None, output: Path) -> TrainConfig:
    """The recipe's `train` section with its paths filled in, validated again."""
    tree: dict[str, Any] = recipe.train.model_dump()
    tree["output"] = output.absolute()
    tree["data"] |= {"shards": str(shards.absolute()), "vision_tokenizer": vision_tokenizer.absolute()}
    if text_tokenizer is not None:
        tree["data"]["text_tokenizer"] = text_tokenizer.absolute()
    return TrainConfig.model_validate(tree)


def run_training(config: TrainConfig, processes: int | None = None) -> TrainingOutcome:
    """Trains on this machine until `config.steps` or until a signal asks to stop, and writes the run page.

    `processes`: as many as one copy of the model takes, where it is None. Raises TrainingRefused, TrainingFailed, and
    KeyboardInterrupt where the signal came before there was anything to save.
    """
    from megatron_nextflow.launching.exit_status import REFUSED
    from megatron_nextflow.launching.launcher import launch
    from nextflow_orchestration.report.run_page import write_run_page

    try:
        status = launch(config, Path.cwd(), processes or config.parallel.model_parallel)
    except ValueError as error:
        raise TrainingRefused(str(error)) from error
    if (config.output / RECORD).is_file():
        write_run_page(config.output)
    if status > 128:
        raise KeyboardInterrupt
    if status == REFUSED:
        raise TrainingRefused(f"the training in {config.output} cannot go on: the line above says why")
    if status:
        raise TrainingFailed(status, config.output)
    return TrainingOutcome(config.output, last_step(config.output), config.steps)


def newest_training(root: Path) -> Path:
    """The last run's training folder, else the one with the newest checkpoint. Raises NoRun where there is none."""
    remembered = last_run(root).get("train")
    if remembered is not None and last_step(remembered):
        return remembered
    found = [p for p in root.glob("train-*") if last_step(p)]
    if not found:
        raise NoRun(f"{root} holds no trained model: run `mnf run` or `mnf train` first, or name one with --checkpoint")
    return max(found, key=lambda p: (p / "checkpoints" / "latest").stat().st_mtime_ns)


def generate_from_run(
    root: Path,
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
    """`mnf generate`: from `checkpoint`, or the newest of the run in `root`; settings left out are the run's own.

    `files`: options of `megatron_nextflow.generate` that name a file, and the file.
    """
    from nextflow_orchestration.final_stages import generate_in_process
    from nextflow_orchestration.report.charts import short

    path = checkpoint or last_checkpoint(newest_training(root))
    given = run_settings(root) | {key: value for key, value in overrides.items() if value is not None}
    settings = GenerateConfig.of({key: value for key, value in given.items() if key != "prompt"})
    options = [f"--image={image}" for image in images] + [f"--n={n}", f"--batch={batch}"] + ["--interleaved"] * interleaved
    options += [f"--{name}={path}" for name, path in files.items() if path is not None]
    console = Console(highlight=False, soft_wrap=True)
    with console.status("generating…"):
        done = generate_in_process(path, prompts, out, settings, threads=2, options=options)
    for result in done["results"]:
        if result["path"] is None:
            console.print(result["metadata"]["prompt"], end="", style="bold", markup=False)
            console.print(result["text"], markup=False)
        else:
            size = f"{result['images']} images" if interleaved else f"{result['width']}×{result['height']} pixels"
            console.print(f"{result['path']}: {size}", markup=False)
    took = f"{done['passes']} forward passes, {short(done['flops'])} FLOPs, {done['seconds']:.1f} s"
    Console(stderr=True, highlight=False).print(took)


def run_settings(root: Path) -> dict[str, Any]:
    """How the run in `root` samples, and its `prompt`, as its stored recipe says; nothing where there is none."""
    try:
        tree = json.loads((root / "recipe.json").read_text(encoding="utf-8"))
        return {**tree["generate"], "end_of_text": tree["text_tokenizer"]["end_of_text"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
