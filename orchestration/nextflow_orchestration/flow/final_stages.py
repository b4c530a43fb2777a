"""What follows the shards in a run: train, generate, report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from nextflow_data.storage.store_path import AnyPath
from nextflow_pipelines.contract.stage import StagePlan, canonical_json
from nextflow_pipelines.contract.units import unit_output
from nextflow_pipelines.contract.work import StageWork
from nextflow_pipelines.spark.context import RunContext, StageResult, run_contract

from megatron_nextflow.config.generate import GenerateConfig
from megatron_nextflow.config.train import TrainConfig
from nextflow_orchestration.generation import generate_in_process
from nextflow_orchestration.recipes.run import Recipe
from nextflow_orchestration.training.copies import checkpoint_on_disk, copy_of, fetch, newest_manifest, publish, step_of
from nextflow_orchestration.training.folders import on_disk, training_folder, with_paths
from nextflow_orchestration.training.here import run_training

GENERATE_VERSION = 1
REPORT_VERSION = 1
IMAGE = "image.png"
REPORT = "report.html"


def train_stage(recipe: Recipe, train: TrainConfig, results: Mapping[str, StageResult]) -> tuple[Path, int, bool]:
    """Trains on a committed pack stage; returns the folder, the step reached, and whether there was anything to do."""
    shards = results["pack"].dir / "shards"
    output = training_folder(recipe.working, train, shards)
    copy = copy_of(output, recipe.root)
    step = step_of(output, copy)
    if step >= train.steps:
        fetch(output, copy)
        return output, step, False
    tokenizer = on_disk(results["vision_tokenizer"].dir, "tokenizer", recipe.working)
    text_tokenizer = on_disk(results["text_tokenizer"].dir, "tokenizer.json", recipe.working)
    fetch(output, copy)
    try:
        outcome = run_training(with_paths(train, shards, tokenizer, text_tokenizer, output, copy, recipe.storage))
    finally:
        publish(output, copy)
    if not outcome.finished:
        raise KeyboardInterrupt  # a whole run that was stopped is not done, though all of it is saved
    return output, outcome.step, True


def generate_stage(recipe: Recipe, train: TrainConfig, training: Path, context: RunContext) -> StageResult:
    """One image from the recipe's prompt, under the stage contract: another checkpoint or setting makes another image."""
    settings = GenerateConfig.model_validate(recipe.generate.model_dump(exclude={"prompt"}))
    copy = copy_of(training, recipe.root)
    manifest = hashlib.sha256(newest_manifest(training, copy)).hexdigest()
    parameters = {"prompt": recipe.generate.prompt, "settings": settings.model_dump(mode="json")}
    plan = StagePlan("generate", GENERATE_VERSION, parameters, {"checkpoint": manifest})

    def body(work: StageWork) -> tuple[list[str], Mapping[str, Any]]:
        checkpoint = checkpoint_on_disk(training, copy)
        with unit_output(work.dir, "image") as out:
            prompts = [recipe.generate.prompt]
            result = generate_in_process(checkpoint, prompts, out.path(IMAGE), settings, train.threads)
            out.path("result.json").write_text(json.dumps(result["metadata"], sort_keys=True), encoding="utf-8")
        return ["image"], {"prompt": recipe.generate.prompt, "passes": result["passes"]}

    return run_contract(context, plan, body)


def report_identity(recipe: Recipe, results: Mapping[str, StageResult], training: Path | None, step: int) -> str:
    """What a run's report is of: a page that was made of the same is not made again. Which stages the run found committed
    is not in it: the page tells what the run did that wrote it. Nor is how a machine reaches and works on it."""
    made = {name: result.fingerprint for name, result in results.items()}
    try:
        ours = version("megatron-nextflow")
    except PackageNotFoundError:  # run from a source tree
        ours = ""
    identity = {
        "version": [REPORT_VERSION, ours], "stages": made, "training": training and [training.name, step],
        "recipe": recipe.model_dump(mode="json", exclude={"work", "storage"}),
    }  # fmt: skip
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()


def report_stage(
    recipe: Recipe,
    results: Mapping[str, StageResult],
    training: Path | None = None,
    step: int = 0,
    generated: StageResult | None = None,
) -> tuple[AnyPath, bool]:
    """Writes the run's report, unless that of the same results is there; returns it, and whether it was written.

    The shards' audit in it is the one that was made as they were written, unless `report.audit` asks for all to be read.
    """
    import yaml

    from nextflow_orchestration.report.run_report import is_report_of, write_report

    out = recipe.root / REPORT
    shown = dict(results) | ({} if generated is None else {"generate": generated})
    identity = report_identity(recipe, shown, training, step)
    if not recipe.report.audit and is_report_of(out, identity):
        return out, False
    write_report(
        recipe.root,
        out,
        work=recipe.working,
        storage=recipe.storage,
        title=recipe.name,
        end=results["pack"].dir,
        packs=recipe.report.packs,
        examples=recipe.report.examples,
        reused=frozenset(name for name, result in results.items() if result.skipped),
        training=training,
        generated=[] if generated is None else [(recipe.generate.prompt, generated.dir / IMAGE)],
        reread=recipe.report.audit,
        settings=yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False),
        identity=identity,
    )
    return out, True
