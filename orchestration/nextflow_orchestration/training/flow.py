"""A training as a Prefect flow that launches it, watches it, and finds it again after its own end.

The training is a process, or a Slurm job, of its own (`job`), and everything the flow shows comes from its folder: a
progress artifact, log lines, a link to the training page, which is written anew while it goes. A flow that is killed leaves
the training at work, and the next run of the flow goes on watching it. A flow that is told to stop (Ctrl-C, SIGTERM, Cancel
in Prefect's pages) has the training save and stop, and is then Cancelled, not Completed. The cost: nobody watches between a
kill and the next run; the training's own watchdog and its record are what there is then.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any
from uuid import UUID

from nextflow_data.common.signal_handlers import Handlers
from nextflow_data.common.whole_files import replace_file
from prefect import flow
from prefect.artifacts import create_link_artifact, create_progress_artifact, update_progress_artifact
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Cancelled, Crashed, State
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from megatron_nextflow.launching.exit_status import REFUSED
from megatron_nextflow.launching.launch_record import own_start, process_alive, read_record
from megatron_nextflow.runtime.training_folder import METRICS, last_step
from nextflow_orchestration.report.training_page import write_training_page
from nextflow_orchestration.training.job import LOG, Job, last_words, start_or_find
from nextflow_orchestration.training.outcome import TrainingFailed, TrainingOutcome, TrainingRefused
from nextflow_orchestration.training.prepare import prepare
from nextflow_orchestration.training.watch import Look, Watch

WATCHER = "watcher.json"
"""Which flow run watches, and in which process; a flow run whose process is gone is marked Crashed by the next one."""
POLL_SECONDS = 0.5
SHOW_SECONDS = 5.0
"""Between updates of the progress artifact, and between questions whether the flow run was cancelled."""
PAGE_SECONDS = 30.0
LOG_SECONDS = 60.0


@flow(name="nextflow-training", flow_run_name="{recipe_path}", validate_parameters=False, persist_result=False)
def nextflow_training(
    recipe_path: str,
    overrides: list[str] | None = None,
    shards: str | None = None,
    out: str | None = None,
    processes: int | None = None,
    on_slurm: bool = False,
) -> TrainingOutcome | State[Any]:
    """Trains as a recipe says, and watches. The parameters are JSON, so that a deployment can hold them.

    Returns the outcome, or the state Cancelled where the training was stopped before its last step. Raises TrainingRefused,
    TrainingFailed, SlurmError.
    """
    prepared = prepare(Path(recipe_path), overrides or [], shards, Path(out) if out else None)
    output, began = prepared.config.output, time.time()
    with _Asked() as asked:
        job, found = start_or_find(prepared, processes, on_slurm)
        _take_over(output)
        watching = _Watching(output, job, found, began)
        watching.until_it_ends(asked)
    return watching.outcome(prepared.config.steps)


class _Asked(Handlers):
    """Whether the flow was asked to stop, by SIGINT or SIGTERM; a SIGINT after that is KeyboardInterrupt."""

    def __init__(self) -> None:
        super().__init__((signal.SIGINT, signal.SIGTERM))
        self.to_stop = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Remembers the first; raises at a Ctrl-C after it."""
        if self.to_stop and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.to_stop = True


class _Watching:
    """One watch over a job, shown on the console, in Prefect's log and artifacts, and on the training page."""

    def __init__(self, output: Path, job: Job, found: bool, began: float) -> None:
        self.output, self.job = output, job
        self.log = get_run_logger()
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.began = began
        record = read_record(output) if found else None
        # Of a training that was found, what happened before is known to whoever watched it then.
        self.watch = Watch(output, record.began if record else began, began)
        progress = create_progress_artifact(0.0, key="training-progress", description="steps done")
        assert isinstance(progress, UUID)  # a coroutine in an asynchronous flow
        self.progress = progress
        self._say(f"{'found at work' if found else 'started'}: {job}; {output}")
        page, metrics = write_training_page(output), output / METRICS
        create_link_artifact(page.as_uri(), link_text=str(page), key="training-page", description="The training page")
        create_link_artifact(metrics.as_uri(), link_text=str(metrics), key="training-metrics", description="A row a step")

    def until_it_ends(self, asked: _Asked) -> None:
        """Looks until the job is over; passes on, once, that it shall stop."""
        bar = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
            TimeElapsedColumn(), console=self.console, transient=True,
        )  # fmt: skip
        task = bar.add_task("training", total=None)
        shown = logged = time.monotonic()
        page_at = shown + PAGE_SECONDS
        stopping = False
        with bar:
            while self.job.at_work():
                look, now = self._look(), time.monotonic()
                for line in look.news:
                    self._say(line)
                bar.update(task, description=look.words, completed=look.step, total=look.steps or None)
                if now - shown >= SHOW_SECONDS:
                    shown = now
                    self._show(look)
                    asked.to_stop = asked.to_stop or _cancelled()
                if now >= page_at:
                    write_training_page(self.output)
                    page_at = time.monotonic() + max(PAGE_SECONDS, 20 * (time.monotonic() - now))  # long trainings take long
                if now - logged >= LOG_SECONDS and look.step:
                    logged = now
                    self.log.info("step %d of %d: %s", look.step, look.steps, look.words)
                if asked.to_stop and not stopping:
                    stopping = True
                    self._say("stopping: the training saves; Ctrl-C again leaves it to that alone")
                    self.job.stop()
                time.sleep(POLL_SECONDS)
        look = self.watch.look()
        for line in look.news:
            self._say(line)
        self._show(look)
        write_training_page(self.output)

    def _look(self) -> Look:
        if not self.job.waiting:
            return self.watch.look()
        self.watch.since = time.time()
        return Look(0, 0, str(self.job))

    def outcome(self, steps: int) -> TrainingOutcome | State[Any]:
        """What came of it."""
        (self.output / WATCHER).unlink(missing_ok=True)
        record = self.job.ended()
        if record.status == "failed":
            said = last_words(self.output / LOG) if (self.output / LOG).is_file() else ""
            if record.exit_code == REFUSED:
                raise TrainingRefused(said or f"nothing was trained; see {self.output / 'logs'}")
            if said:
                self._say(said)
            raise TrainingFailed(record.exit_code, self.output)
        outcome = TrainingOutcome(self.output, last_step(self.output), steps)
        if outcome.finished:
            return outcome
        return Cancelled(message=str(outcome) if outcome.step else "stopped before there was anything to save")

    def _show(self, look: Look) -> None:
        words = f"step {look.step:,} of {look.steps:,}: {look.words}" if look.steps else look.words
        update_progress_artifact(self.progress, progress=look.percent, description=words)

    def _say(self, line: str) -> None:
        self.console.print(line, markup=False)
        self.log.info(line)


def _cancelled() -> bool:
    """Whether Prefect was asked to cancel this flow run."""
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(UUID(str(flow_run.id))).state
    return state is not None and state.is_cancelling()


def _take_over(output: Path) -> None:
    """Writes down that this flow run watches; one that did so before and whose process is gone is marked Crashed."""
    path = output / WATCHER
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, ObjectNotFound):
        before = json.loads(path.read_text(encoding="utf-8"))
        if not process_alive(before["pid"], before["started"]):
            crashed: State[Any] = Crashed(message=f"its process is gone; watched on by flow run {flow_run.id}")
            with get_client(sync_client=True) as client:
                client.set_flow_run_state(UUID(before["flow_run"]), crashed, force=True)
    mine = {"flow_run": str(flow_run.id), "pid": os.getpid(), "started": own_start()}
    replace_file(path, json.dumps(mine).encode())
