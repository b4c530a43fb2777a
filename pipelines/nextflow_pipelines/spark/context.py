"""What a stage is given to run in, what it gives back, and the one way in which every stage begins and ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nextflow_data.storage.config import StorageConfig

from nextflow_pipelines.contract.progress import speed
from nextflow_pipelines.contract.stage import (
    MANIFEST,
    Corrupt,
    Counts,
    StagePlan,
    append_metrics,
    check_sizes,
    read_manifest,
)
from nextflow_pipelines.contract.work import StageWork, open_stage
from nextflow_pipelines.spark.config import SparkConfig

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

Progress = Callable[[int, int | None, str], None]
"""Called with (units done, units in all or None, what is being done)."""


def no_progress(done: int, total: int | None, note: str) -> None:
    """Shows nothing."""


@dataclass
class RunContext:
    """Where a run's outputs go and what it may use; `progress` may be set anew for each stage."""

    root: Path
    spark: SparkConfig = field(default_factory=SparkConfig)
    progress: Progress = no_progress
    storage: StorageConfig = field(default_factory=StorageConfig)
    """How stores are reached."""
    look: bool = False
    """Only find what is committed: no stage does any work, and nothing is written."""

    def session(self) -> SparkSession:
        """The Spark session, started at the first call: a run in which all is committed never starts one."""
        from nextflow_pipelines.spark.session import spark_session

        return spark_session(self.spark, lambda: self.progress(0, None, "starting Spark"))

    def close(self) -> None:
        """Stops the session of this process, if there is one; a later `session()` starts another."""
        import sys

        if "pyspark" in sys.modules:
            from nextflow_pipelines.spark.session import stop_session

            stop_session()


class NotKnown(LookupError):
    """A fact of a stage that has not run yet; `stage` names it."""

    def __init__(self, stage: str) -> None:
        super().__init__(f"cannot be known before {stage} has run")
        self.stage = stage


class FactsToCome(dict[str, Any]):
    """Facts of a stage that was looked for and is not there: any of them is NotKnown."""

    def __init__(self, stage: str) -> None:
        super().__init__()
        self.stage = stage

    def __missing__(self, key: str) -> Any:
        raise NotKnown(self.stage)


@dataclass(frozen=True)
class StageResult:
    """A committed stage. `counts` and `facts` are its manifest's; `kept` units were found finished by a killed run.

    Where stages are only looked for (`RunContext.look`), `skipped` False is one that is not committed: its folder and
    fingerprint are those that it will have.
    """

    name: str
    dir: Path
    fingerprint: str
    skipped: bool
    counts: Counts
    facts: Mapping[str, Any]
    seconds: float
    kept: int = 0


Body = Callable[[StageWork], tuple[Sequence[str], Mapping[str, Any]]]
"""A stage's work: runs its units and gives their names, and the facts for the manifest."""


def run_contract(ctx: RunContext, plan: StagePlan, body: Body) -> StageResult:
    """Runs `body` under the stage contract, or finds the stage committed and does nothing.

    With `ctx.look`, only looks. Raises what `open_stage` and the body raise. Ctrl-C (KeyboardInterrupt) leaves finished
    units in place.
    """
    if ctx.look:
        return _look(ctx.root, plan)
    started = time.monotonic()
    with open_stage(ctx.root, plan) as work:
        skipped = work.manifest is not None
        if work.manifest is None:
            units, facts = body(work)
            ctx.progress(len(units), len(units), "committing")
            work.commit(units, facts)
        seconds = time.monotonic() - started
        manifest = work.manifest
        assert manifest is not None
        result = StageResult(
            plan.name, work.dir, plan.fingerprint, skipped, manifest["counts"], manifest["facts"], seconds, len(work.kept)
        )
    if not skipped:
        rows = sum(manifest["counts"].get("rows", {}).values())
        amounts: dict[str, float] = {}
        for name, (amount, took) in work.amounts.items():
            amounts |= {name: amount, f"{name}_per_second": round(speed(amount, took), 2)}
        append_metrics(
            ctx.root,
            plan.name,
            {
                "fingerprint": plan.fingerprint,
                "seconds": round(seconds, 3),
                "rows": rows,
                "rows_per_second": round(rows / seconds, 2),
                "kept_units": len(work.kept),
                **amounts,
            },
        )
    return result


def _look(root: Path, plan: StagePlan) -> StageResult:
    folder = plan.folder(root)
    if not (folder / MANIFEST).is_file():
        return StageResult(plan.name, folder, plan.fingerprint, False, {}, FactsToCome(plan.name), 0.0)
    manifest = read_manifest(folder)
    wrong = check_sizes(folder, manifest)
    if manifest["fingerprint"] != plan.fingerprint or wrong:
        why = wrong[0] if wrong else "its fingerprint is another than its name says"
        raise Corrupt(f"{folder} is committed but {why}; remove the folder and run again")
    return StageResult(plan.name, folder, plan.fingerprint, True, manifest["counts"], manifest["facts"], 0.0)
