"""A run, or a stretch of one, as one Prefect flow: a task a stage, with retries, artifacts and logs in Prefect's UI.

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

from nextflow_data.storage.files import put
from nextflow_data.storage.store_path import AnyPath
from nextflow_pipelines.registry import STAGES, run_stage
from nextflow_pipelines.spark.context import RunContext, StageResult
from nextflow_pipelines.spark.session import stop_session
from prefect import flow, task
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from rich.console import Console

from nextflow_orchestration.flow.final_stages import IMAGE, REPORT, generate_stage, report_stage, train_stage
from nextflow_orchestration.flow.input_files import source_files
from nextflow_orchestration.flow.looking import Look, command, require_before
from nextflow_orchestration.flow.progress import StageDisplay
from nextflow_orchestration.flow.stage_summary import describe, table
from nextflow_orchestration.recipes.parts import Parts
from nextflow_orchestration.recipes.places import shown
from nextflow_orchestration.recipes.run import Recipe, load_run
from nextflow_orchestration.runs.interrupts import Interrupts
from nextflow_orchestration.runs.records import RUN, SETTINGS, begin_run, remember_run

T = TypeVar("T")


@dataclass(frozen=True)
class RunOutcome:
    """What a run left, for its last lines; None is what it did not get to."""

    last: StageResult
    """The last data stage that is committed."""
    shards: AnyPath | None = None
    training: Path | None = None
    step: int = 0
    image: AnyPath | None = None
    report: AnyPath | None = None


class NothingPacked(ValueError):
    """The input gave no pack."""


_NOTHING = "no document of the input became a pack, so there is nothing to train on"


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
def nextflow(
    recipe_path: str, overrides: list[str] | None = None, first: str | None = None, last: str | None = None
) -> RunOutcome:
    """Runs a recipe's parts from `first` to `last` (None: all it has). The parameters are JSON, so that a deployment can
    hold them. Raises RecipeError where what lies before `first` is not committed."""
    recipe, which = load_run(Path(recipe_path), overrides, first, last)
    recipe.check_inputs(which)
    before = require_before(recipe, which, command(recipe_path, overrides or []))
    for folder in (recipe.root, recipe.working):
        if isinstance(folder, Path):
            folder.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True, highlight=False)
    if others := begin_run(recipe.root, recipe.name):
        console.print(sharing(recipe, others), style="dim", markup=False, soft_wrap=True)
    with Interrupts() as interrupts, StageDisplay(console, interrupts.check) as display:
        return _Run(recipe, which, before, display).carry_out()


def sharing(recipe: Recipe, others: list[str]) -> str:
    """What is to be known of a root that other recipes have too."""
    return (
        f"note: {shown(recipe.root)} is also the root of {', '.join(map(repr, others))}. What each makes is kept apart, and "
        f"what both need is made once; {REPORT}, {SETTINGS} and {RUN} are those of the run that ended last."
    )


class _Run:
    """The parts of one run, one after another."""

    def __init__(self, recipe: Recipe, which: Parts, before: Look, display: StageDisplay) -> None:
        self.recipe, self.which, self.display = recipe, which, display
        self.context = RunContext(
            root=recipe.root, work=recipe.working, storage=recipe.storage, spark=recipe.spark, progress=display.update
        )
        self.results = {name: before.stages[name] for name in STAGES if name in before.stages}
        self.training, self.step = before.training, before.step
        self.generated = before.stages.get("generate")
        self.report: AnyPath | None = None

    def carry_out(self) -> RunOutcome:
        self._data()
        if "train" in self.which:
            self._train()
        if "generate" in self.which:
            self._generate()
        if "report" in self.which:
            self._report()
        return self._remembered()

    def _data(self) -> None:
        log, ran = get_run_logger(), [name for name in STAGES if name in self.which]
        for name, result in self.results.items():
            self.display.begin(name)
            self.display.end(describe(result), skipped=True)
        if not ran:
            return
        self.display.begin("input")
        files, note = _as_task(self.recipe, "input", lambda: source_files(self.recipe, self.display.update))
        self.display.end(note, skipped=False)
        sections = self.recipe.sections()
        for name in ran:
            self.display.begin(name)
            work = partial(run_stage, name, self.context, sections, self.results, files)
            result = self.results[name] = _as_task(self.recipe, name, work)
            self.display.end(describe(result), result.skipped)
            log.info("%s: %s", name, describe(result))
        if not all(result.skipped for result in self.results.values()):
            stop_session()  # training wants the cores and the memory

    def _train(self) -> None:
        recipe, train = self.recipe, self.recipe.train
        assert train is not None  # or there would be no such part
        if not self.results["pack"].facts["packs"]:
            report, _ = report_stage(recipe, self.results)
            raise NothingPacked(f"{_NOTHING}; {shown(report)} says why")
        self.display.begin("train", live=False)
        self.training, self.step, trained = _as_task(recipe, "train", lambda: train_stage(recipe, train, self.results))
        self.display.end(f"step {self.step}", skipped=not trained)

    def _generate(self) -> None:
        recipe, train, training = self.recipe, self.recipe.train, self.training
        assert train is not None and training is not None
        self.display.begin("generate")
        self.generated = _as_task(recipe, "generate", lambda: generate_stage(recipe, train, training, self.context))
        self.display.end(f'"{recipe.generate.prompt}"', self.generated.skipped)

    def _report(self) -> None:
        self.display.begin("report")
        self.report, written = _as_task(
            self.recipe,
            "report",
            lambda: report_stage(self.recipe, self.results, self.training, self.step, self.generated),
        )
        self.display.end("", skipped=not written)
        link = self.report.as_uri() if isinstance(self.report, Path) else str(self.report)
        create_link_artifact(link, link_text=shown(self.report), key="report", description="The run's report")

    def _image(self) -> AnyPath | None:
        return None if self.generated is None else self.generated.dir / IMAGE

    def _remembered(self) -> RunOutcome:
        """Writes down what the run made and found, once it has got to its shards."""
        words = "Documents, decisions and kept-aside records by stage"
        create_table_artifact(table(self.results), key="stages", description=words)
        pack = self.results.get("pack")
        if pack is not None:
            generated = None if self.generated is None else self.generated.dir
            made = {"pack": pack.dir, "train": self.training, "generate": generated}
            folders = {name: folder for name, folder in made.items() if folder is not None}
            remember_run(self.recipe.root, self.recipe.name, **folders)
        settings = json.dumps(self.recipe.model_dump(mode="json"), indent=1) + "\n"
        for folder in dict.fromkeys((self.recipe.root, self.recipe.working)):  # `mnf page` looks beside the training
            put(folder / SETTINGS, settings)
        last, shards = list(self.results.values())[-1], None if pack is None else pack.dir / "shards"
        return RunOutcome(last, shards, self.training, self.step, self._image(), self.report)
