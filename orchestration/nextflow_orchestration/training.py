"""Training and generation as part of a run: which folder, which shards, which checkpoint.

A training folder is named after what decides the weights: the shard set, the model, the optimizer, the loss. How many steps,
how often to save and how many processes are not in the name, so the same command with more steps, or another layout, goes on
from the last checkpoint. The checkpoints have manifests of their own (`megatron_nextflow.checkpoint`), so training is not
under the stage contract.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from nextflow_pipelines.stage import canonical_json
from rich.console import Console

from megatron_nextflow.config import TrainConfig
from megatron_nextflow.generate_config import GenerateConfig
from nextflow_orchestration.lineage import NoRun, chain, last_run
from nextflow_orchestration.recipe import Recipe, load_recipe

OPERATIONAL = (
    "output", "parallel", "steps", "log_interval", "checkpoint_interval", "keep", "keep_every", "async_save", "resume",
    "health", "tensorboard", "wandb", "peak_tflops", "memory_gib", "slurm", "recompute", "device", "threads", "master_port",
)  # fmt: skip
"""Settings that decide how a training is carried out, not what is learnt."""


class TrainingFailed(RuntimeError):
    """The training processes ended with an error; `status` is their exit status."""

    def __init__(self, status: int, output: Path) -> None:
        step = last_step(output)
        kept = (
            f"the checkpoint of step {step} is kept and the same command goes on from it"
            if step
            else "nothing was saved yet"
        )
        super().__init__(f"training ended with status {status} ({output}); {kept}")
        self.status = status


class TrainingRefused(ValueError):
    """What the run was given cannot be trained on; the training processes have said why. Trying again would not help."""


def training_folder(root: Path, config: TrainConfig, shards_fingerprint: str) -> Path:
    """`<root>/train-<12 digits>`, from the settings that decide the weights and the fingerprint of the shard set."""
    settings = config.model_dump(mode="json", exclude=set(OPERATIONAL))
    settings["data"] = {k: v for k, v in settings["data"].items() if k in ("seed", "global_batch_size")}
    del settings["loss"]["chunk"]
    identity = canonical_json({"settings": settings, "shards": shards_fingerprint})
    return root / f"train-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"


def last_step(output: Path) -> int:
    """The step of a training folder's newest checkpoint, 0 where there is none; read without torch."""
    try:
        name = (output / "checkpoints" / "latest").read_text(encoding="utf-8").strip()
        return int(name.removeprefix("step-"))
    except (OSError, ValueError):
        return 0


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


def run_training(config: TrainConfig, processes: int | None = None) -> int:
    """Trains until `config.steps`; returns the step reached. Raises TrainingFailed, KeyboardInterrupt after SIGINT."""
    from megatron_nextflow.launch import launch
    from megatron_nextflow.train import REFUSED

    status = launch(config, Path.cwd(), processes or config.parallel.tp * config.parallel.pp)
    if status == 128 + 2:
        raise KeyboardInterrupt
    if status == REFUSED:
        raise TrainingRefused(f"nothing was trained in {config.output}: the line above says why")
    if status:
        raise TrainingFailed(status, config.output)
    return last_step(config.output)


def train_recipe(recipe_path: Path, overrides: list[str], shards: Path | None, out: Path | None) -> None:
    """`mnf train`: trains on the recipe's shards, or on `shards`, whose vision tokenizer the recipe must then name."""
    recipe = load_recipe(recipe_path, overrides)
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
            raise ValueError("--shards needs train.data.vision_tokenizer: the folder of the tokenizer that made them")
        tokenizer, text_tokenizer = given, recipe.train.data.text_tokenizer
        fingerprint = hashlib.sha256((shards / "manifest.json").read_bytes()).hexdigest()
    output = out or training_folder(recipe.root, recipe.train, fingerprint)
    step = run_training(resolve(recipe, shards, tokenizer, text_tokenizer, output))
    Console(stderr=True, highlight=False).print(f"step {step}; checkpoints, metrics.jsonl and TensorBoard files in {output}")


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
    preview: Path | None,
    **overrides: Any,
) -> None:
    """`mnf generate`: from `checkpoint`, or the newest of the run in `root`; settings left out are the run's own."""
    from nextflow_orchestration.final_stages import generate_in_process
    from nextflow_orchestration.report.charts import short

    path = checkpoint or last_checkpoint(newest_training(root))
    settings = GenerateConfig.of(_run_settings(root) | {key: value for key, value in overrides.items() if value is not None})
    options = [f"--image={image}" for image in images] + [f"--n={n}", f"--batch={batch}"] + ["--interleaved"] * interleaved
    options += [] if preview is None else [f"--preview={preview}"]
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


def _run_settings(root: Path) -> dict[str, Any]:
    try:
        settings = dict(json.loads((root / "recipe.json").read_text(encoding="utf-8"))["generate"])
    except (OSError, ValueError, KeyError):
        return {}
    settings.pop("prompt", None)
    return settings
