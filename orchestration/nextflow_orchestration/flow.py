"""The whole way as one Prefect flow: a task a stage, with retries, artifacts and logs in Prefect's UI.

Prefect says when a stage runs and remembers that it did; whether there is anything to do is the stage contract's to say
(a committed fingerprint), so Prefect's own caching is off. Stages run one after another in this process, because each is a
job that takes the whole cluster; the Spark session is started by the first stage that has work.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nextflow_pipelines.context import RunContext, StageResult
from nextflow_pipelines.registry import STAGES, run_stage
from prefect import flow, task
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from rich.console import Console

from nextflow_orchestration.final_stages import generate_stage, report_stage, train_stage
from nextflow_orchestration.progress import StageDisplay
from nextflow_orchestration.recipe import Recipe, load_recipe
from nextflow_orchestration.sources import source_files
from nextflow_orchestration.summary import describe_counts, rows


@dataclass(frozen=True)
class RunOutcome:
    """What a run left, for its last lines."""

    recipe: Recipe
    results: Mapping[str, StageResult]
    shards: Path
    training: Path
    step: int
    image: Path
    report: Path


def _retry(task_: Any, run: Any, state: Any) -> bool:
    """Another try can help against a lost worker or a full disk; against a wrong setting or a damaged input it cannot."""
    try:
        state.result()
    except (ValueError, FileNotFoundError, ModuleNotFoundError):
        return False
    except Exception:
        return True
    return False


def _as_task(name: str, recipe: Recipe) -> Any:
    def decorate(function: Any) -> Any:
        return task(
            function, name=name, task_run_name=name, retries=recipe.flow.retries, retry_delay_seconds=recipe.flow.retry_delay_seconds,
            retry_condition_fn=_retry, cache_policy=NO_CACHE, persist_result=False,
        )  # fmt: skip

    return decorate


@flow(name="nextflow", flow_run_name="{recipe_path}", validate_parameters=False, persist_result=False)
def nextflow(recipe_path: str, overrides: list[str] | None = None) -> RunOutcome:
    """Runs a recipe from source files to report. Parameters are JSON, so a deployment can hold them."""
    recipe = load_recipe(Path(recipe_path), overrides or [])
    recipe.check_inputs()
    recipe.root.mkdir(parents=True, exist_ok=True)
    log = get_run_logger()
    results: dict[str, StageResult] = {}
    with StageDisplay(Console(stderr=True)) as display:
        display.begin("input")
        files, note = source_files(recipe, display.update)
        display.end(note, skipped=False)
        context = RunContext(root=recipe.root, spark=recipe.spark, progress=display.update)
        try:
            for name in STAGES:

                @_as_task(name, recipe)
                def stage(name: str = name) -> StageResult:
                    return run_stage(name, context, recipe.sections(), results, files)

                display.begin(name)
                results[name] = stage()
                text = describe_counts(results[name])
                display.end(text, results[name].skipped)
                log.info("%s: %s", name, text)
        finally:
            context.close()
        pack = results["pack"]
        tokenizer = results["vision_tokenizer"].dir / "tokenizer"

        display.begin("train")
        training, step, trained = _as_task("train", recipe)(train_stage)(recipe, pack, tokenizer, display)
        display.end(f"step {step}", skipped=not trained)
        display.begin("generate")
        image, skipped = _as_task("generate", recipe)(generate_stage)(recipe, training)
        display.end(f'"{recipe.generate.prompt}" → {image}', skipped)
        display.begin("report")
        report = _as_task("report", recipe)(report_stage)(recipe, pack)
        display.end(str(report), skipped=False)
    create_table_artifact(rows(results), key="stages", description="Documents, decisions and kept-aside records by stage")
    create_link_artifact(report.absolute().as_uri(), link_text="report", key="report", description="The run's report")
    (recipe.root / "recipe.json").write_text(json.dumps(recipe.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8")
    return RunOutcome(recipe, results, pack.dir / "shards", training, step, image, report)
