"""What follows the shards in a run: train, generate, report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nextflow_data.common.whole_files import file_sha256
from nextflow_pipelines.contract.stage import StagePlan
from nextflow_pipelines.contract.units import unit_output
from nextflow_pipelines.contract.work import StageWork
from nextflow_pipelines.spark.context import RunContext, StageResult, run_contract

from megatron_nextflow.config.generate import GenerateConfig
from megatron_nextflow.config.train import TrainConfig
from megatron_nextflow.runtime.training_folder import last_step
from nextflow_orchestration.generation import generate_in_process
from nextflow_orchestration.recipes.run import Recipe
from nextflow_orchestration.training.folders import last_checkpoint, training_folder, with_paths
from nextflow_orchestration.training.here import run_training

GENERATE_VERSION = 1
IMAGE = "image.png"


def train_stage(recipe: Recipe, train: TrainConfig, results: Mapping[str, StageResult]) -> tuple[Path, int, bool]:
    """Trains on a committed pack stage; returns the folder, the step reached, and whether there was anything to do."""
    shards = results["pack"].dir / "shards"
    output = training_folder(recipe.root, train, shards)
    if last_step(output) >= train.steps:
        return output, last_step(output), False
    tokenizer = results["vision_tokenizer"].dir / "tokenizer"
    text_tokenizer = results["text_tokenizer"].dir / "tokenizer.json"
    outcome = run_training(with_paths(train, shards, tokenizer, text_tokenizer, output))
    if not outcome.finished:
        raise KeyboardInterrupt  # a whole run that was stopped is not done, though all of it is saved
    return output, outcome.step, True


def generate_stage(recipe: Recipe, train: TrainConfig, training: Path, context: RunContext) -> StageResult:
    """One image from the recipe's prompt, under the stage contract: another checkpoint or setting makes another image."""
    settings = GenerateConfig.model_validate(recipe.generate.model_dump(exclude={"prompt"}))
    checkpoint = last_checkpoint(training)
    parameters = {"prompt": recipe.generate.prompt, "settings": settings.model_dump(mode="json")}
    plan = StagePlan("generate", GENERATE_VERSION, parameters, {"checkpoint": file_sha256(checkpoint / "manifest.json")})

    def body(work: StageWork) -> tuple[list[str], Mapping[str, Any]]:
        with unit_output(work.dir, "image") as out:
            prompts = [recipe.generate.prompt]
            result = generate_in_process(checkpoint, prompts, out.path(IMAGE), settings, train.threads)
            out.path("result.json").write_text(json.dumps(result["metadata"], sort_keys=True), encoding="utf-8")
        return ["image"], {"prompt": recipe.generate.prompt, "passes": result["passes"]}

    return run_contract(context, plan, body)


def report_stage(
    recipe: Recipe, results: Mapping[str, StageResult], training: Path | None = None, image: Path | None = None
) -> Path:
    """Writes the run's report, anew each time: it audits the shard set, which takes as long as reading all of it."""
    import yaml

    from nextflow_orchestration.report.run_report import write_report

    return write_report(
        recipe.root,
        recipe.root / "report.html",
        title=recipe.name,
        end=results["pack"].dir,
        packs=recipe.report.packs,
        examples=recipe.report.examples,
        reused=frozenset(name for name, result in results.items() if result.skipped),
        training=training,
        generated=[] if image is None else [(recipe.generate.prompt, image)],
        settings=yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False),
    )
