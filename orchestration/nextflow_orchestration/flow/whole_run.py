"""The whole way as one Prefect flow: a task a stage, with retries, artifacts and logs in Prefect's UI.

Prefect says when a stage runs and remembers that it did; whether there is anything to do is the stage contract's to say
(a committed fingerprint), so Prefect's own caching is off. Stages run one after another in this process, because each is a
job that takes the whole cluster; the Spark session is started by the first stage that has work.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from nextflow_data.whole_files import replace_file
from nextflow_pipelines.registry import STAGES, run_stage
from nextflow_pipelines.spark.context import RunContext, StageResult
from nextflow_pipelines.spark.session import stop_session
from prefect import flow, task
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from rich.console import Console

from nextflow_orchestration.flow.final_stages import IMAGE, generate_stage, report_stage, train_stage
from nextflow_orchestration.flow.input_files import source_files
from nextflow_orchestration.flow.progress import StageDisplay
from nextflow_orchestration.flow.stage_summary import describe, table
from nextflow_orchestration.recipes.run import Recipe, load_recipe
from nextflow_orchestration.runs.interrupts import Interrupts
from nextflow_orchestration.runs.lineage import remember_run

T = TypeVar("T")


@dataclass(frozen=True)
class RunOutcome:
    """What a run left, for its last lines."""

    shards: Path
    training: Path
    step: int
    image: Path
    report: Path


class NothingPacked(ValueError):
    """The input gave no pack."""


def _worth_another_try(task_: Any, run: Any, state: Any) -> bool:
    """A retry can help against a lost worker; against a wrong setting, a missing file or a damaged input it cannot."""
    try:
        state.result()
    except (ValueError, FileNotFoundError, ModuleNotFoundError):
        return False
    except Exception:
        return True
    return False


def _as_task(recipe: Recipe, name: str, work: Callable[[], T]) -> T:
    """Runs `work` as a Prefect task called `name`, with the recipe's retries."""
    retried = task(
        name=name,
        task_run_name=name,
        retries=recipe.flow.retries,
        retry_delay_seconds=recipe.flow.retry_delay_seconds,
        retry_condition_fn=_worth_another_try,
        cache_policy=NO_CACHE,
        persist_result=False,
    )
    return retried(work)()


@flow(name="nextflow", flow_run_name="{recipe_path}", validate_parameters=False, persist_result=False)
def nextflow(recipe_path: str, overrides: list[str] | None = None) -> RunOutcome:
    """Runs a recipe from source files to report. The parameters are JSON, so that a deployment can hold them."""
    recipe = load_recipe(Path(recipe_path), overrides or [])
    recipe.check_inputs()
    recipe.root.mkdir(parents=True, exist_ok=True)
    with Interrupts() as interrupts, StageDisplay(Console(stderr=True), interrupts.check) as display:
        return _run(recipe, display)


def _run(recipe: Recipe, display: StageDisplay) -> RunOutcome:
    log = get_run_logger()
    display.begin("input")
    entries, note = _as_task(recipe, "input", lambda: source_files(recipe, display.update))
    display.end(note, skipped=False)
    context = RunContext(root=recipe.root, spark=recipe.spark, progress=display.update)
    sections = recipe.sections()
    results: dict[str, StageResult] = {}
    for name in STAGES:
        display.begin(name)
        results[name] = _as_task(recipe, name, partial(run_stage, name, context, sections, results, entries))
        display.end(describe(results[name]), results[name].skipped)
        log.info("%s: %s", name, describe(results[name]))
    if not all(result.skipped for result in results.values()):
        stop_session()  # training wants the cores and the memory
    pack = results["pack"]
    reused = frozenset(name for name, result in results.items() if result.skipped)
    if not pack.facts["packs"]:
        report = report_stage(recipe, pack, reused)
        raise NothingPacked(f"no document of the input became a pack, so there is nothing to train on; {report} says why")
    tokenizer, text_tokenizer = (
        results["vision_tokenizer"].dir / "tokenizer",
        results["text_tokenizer"].dir / "tokenizer.json",
    )

    display.begin("train", live=False)
    training, step, trained = _as_task(recipe, "train", lambda: train_stage(recipe, pack, tokenizer, text_tokenizer))
    display.end(f"step {step}", skipped=not trained)
    display.begin("generate")
    generated = _as_task(recipe, "generate", lambda: generate_stage(recipe, training))
    image = generated.dir / IMAGE
    display.end(f'"{recipe.generate.prompt}"', generated.skipped)
    display.begin("report")
    report = _as_task(recipe, "report", lambda: report_stage(recipe, pack, reused, training, image))
    display.end("", skipped=False)
    create_table_artifact(table(results), key="stages", description="Documents, decisions and kept-aside records by stage")
    create_link_artifact(report.absolute().as_uri(), link_text=str(report), key="report", description="The run's report")
    remember_run(recipe.root, pack=pack.dir, train=training, generate=generated.dir)
    settings = json.dumps(recipe.model_dump(mode="json"), indent=1) + "\n"
    replace_file(recipe.root / "recipe.json", settings.encode())
    return RunOutcome(pack.dir / "shards", training, step, image, report)
