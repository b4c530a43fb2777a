"""What a stage is given to run in, what it gives back, and the one way in which every stage begins and ends."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nextflow_data.storage.config import StorageConfig
from nextflow_data.storage.store_path import AnyPath

from nextflow_pipelines.contract.made_with import made_with
from nextflow_pipelines.contract.metrics import append_metrics
from nextflow_pipelines.contract.progress import speed
from nextflow_pipelines.contract.stage import MANIFEST, Counts, StageManifest, StagePlan
from nextflow_pipelines.contract.work import StageWork, committed, open_stage
from nextflow_pipelines.spark.config import SparkConfig

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

Progress = Callable[[int, int | None, str], None]
"""Called with (units done, units in all or None, what is being done)."""


def no_progress(done: int, total: int | None, note: str) -> None:
    """Shows nothing."""


@dataclass
class RunContext:
    """Where a run's outputs go and what it may use; `progress` may be set anew for each stage.

    A `root` on a disk is made absolute, because workers on other machines stand in other folders.
    """

    root: AnyPath
    """What is committed: a folder, or a place in a store."""
    spark: SparkConfig = field(default_factory=SparkConfig)
    progress: Progress = no_progress
    look: bool = False
    """Only find what is committed: no stage does any work, and nothing is written."""
    storage: StorageConfig = field(default_factory=StorageConfig)
    """How stores are reached."""
    work: Path = None  # type: ignore[assignment]
    """What runs: a folder of this machine's disk for what must be renamed or added to (a training's checkpoints). Left out,
    it is `root` where that is on a disk, else one under the system's temporary folder that the root's address names."""

    def __post_init__(self) -> None:
        if isinstance(self.root, Path):
            self.root = self.root.absolute()
        if self.work is None:
            temporary = (
                Path(tempfile.gettempdir()) / f"nextflow-work-{hashlib.sha256(str(self.root).encode()).hexdigest()[:12]}"
            )
            self.work = self.root if isinstance(self.root, Path) else temporary
        self.work = self.work.absolute()

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
    dir: AnyPath
    fingerprint: str
    skipped: bool
    counts: Counts
    facts: Mapping[str, Any]
    seconds: float
    kept: int = 0
    notes: tuple[str, ...] = ()
    """What a person should know of how it came about: another run made it meanwhile, versions were mixed."""


Body = Callable[[StageWork], tuple[Sequence[str], Mapping[str, Any]]]
"""A stage's work: runs its units and gives their names, and the facts for the manifest."""

MEANWHILE = "another run committed it meanwhile; using that"


def run_contract(ctx: RunContext, plan: StagePlan, body: Body) -> StageResult:
    """Runs `body` under the stage contract, or finds the stage committed and does nothing.

    Waits while another run makes the stage, and uses what that commits. With `ctx.look`, only looks. Raises what
    `open_stage` and the body raise. Ctrl-C (KeyboardInterrupt) leaves finished units in place.
    """
    if ctx.look:
        return _look(ctx.root, plan)
    started = time.monotonic()
    with open_stage(ctx.root, plan, lambda words: ctx.progress(0, None, words)) as work:
        skipped = work.manifest is not None
        if not skipped:
            if work.mixed:
                ctx.progress(len(work.kept), None, f"going on under other versions: {work.mixed}")
            _carry_out(ctx, work, body)
    manifest = work.manifest
    assert manifest is not None
    seconds = time.monotonic() - started
    if work.by_another:
        ctx.progress(0, None, MEANWHILE)
    notes = (*([MEANWHILE] if work.by_another else ()), *([work.mixed] if work.mixed else ()))
    if not skipped and not work.by_another:
        append_metrics(ctx.root, plan.name, _metrics(plan, work, manifest, seconds))
    return StageResult(
        plan.name,
        work.dir,
        plan.fingerprint,
        skipped or work.by_another,
        manifest["counts"],
        manifest["facts"],
        seconds,
        len(work.kept),
        notes,
    )


def _carry_out(ctx: RunContext, work: StageWork, body: Body) -> None:
    try:
        units, facts = body(work)
        ctx.progress(len(units), len(units), "committing")
        work.commit(units, facts)
    except Exception:
        # Who has lost the lease finds working files gone once the other has committed.
        if not work.committed_meanwhile():
            raise


def _metrics(plan: StagePlan, work: StageWork, manifest: StageManifest, seconds: float) -> dict[str, Any]:
    rows = sum(manifest["counts"].get("rows", {}).values())
    amounts: dict[str, float] = {}
    for name, (amount, took) in work.amounts.items():
        amounts |= {name: amount, f"{name}_per_second": round(speed(amount, took), 2)}
    return {
        "fingerprint": plan.fingerprint,
        "seconds": round(seconds, 3),
        "rows": rows,
        "rows_per_second": round(rows / seconds, 2),
        "kept_units": len(work.kept),
        "made_with": dict(made_with()),
        **({"mixed_with": work.mixed} if work.mixed else {}),
        **amounts,
    }


def _look(root: AnyPath, plan: StagePlan) -> StageResult:
    folder = plan.folder(root)
    if not (folder / MANIFEST).is_file():
        return StageResult(plan.name, folder, plan.fingerprint, False, {}, FactsToCome(plan.name), 0.0)
    manifest = committed(folder, plan)
    return StageResult(plan.name, folder, plan.fingerprint, True, manifest["counts"], manifest["facts"], 0.0)
