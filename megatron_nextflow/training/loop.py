"""The training on one process: check, build, resume, read, step, judge, save, stop when told.

Everything that can be refused is refused before the first step: a set that cannot be opened, a tokenizer that is not the
shards' or the checkpoint's, a parallel layout that does not fit, a place where nothing can be copied to. A request to stop
(SIGTERM, SIGINT) on any process is shared among all before each step, so that they stop at the same one, save, and leave a
checkpoint; until a training has begun it has nothing to save, and the signal ends it. A batch is read whole before its step
begins, beside the steps before it. One that holds a pack that cannot be used is left out; so is one with a bad loss, or the
training goes back to its last checkpoint, as the recipe's `health` says, and which batches those were is part of the
checkpoints that follow. The cost: two small all-reduces a step, and a checkpoint before the first step where the recipe may
go back.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from nextflow_data.storage.files import any_path
from rich.markup import escape

from megatron_nextflow.checkpoint.copier import Copier
from megatron_nextflow.checkpoint.format import CheckpointState
from megatron_nextflow.checkpoint.load import in_force, load
from megatron_nextflow.checkpoint.save import Saver
from megatron_nextflow.config.train import TrainConfig
from megatron_nextflow.feeding import inputs
from megatron_nextflow.feeding.ahead import FeedAhead, PacksAhead
from megatron_nextflow.feeding.feed import Feed, FeedError, Share
from megatron_nextflow.runtime import training_folder
from megatron_nextflow.runtime.agreement import of_all
from megatron_nextflow.runtime.notices import Notice
from megatron_nextflow.runtime.stop_request import Stop
from megatron_nextflow.sequence.batch import LayoutBatch
from megatron_nextflow.step.process_groups import start_parallel
from megatron_nextflow.step.trainer import DivergedError, Trainer
from megatron_nextflow.training.agreed_batch import Trouble, UnreadableError, read
from megatron_nextflow.training.beginning import Beginning, begin, find_origin
from megatron_nextflow.training.figures import Figures
from megatron_nextflow.training.reporting import open_reporter
from megatron_nextflow.watch.health import BadBatch, Health
from megatron_nextflow.watch.reporter import Reporter, Silence
from megatron_nextflow.watch.stragglers import Stragglers
from megatron_nextflow.watch.watchdog import Watchdog

End = Callable[[str], None]


def train(config: TrainConfig, device: torch.device, end: End | None = None) -> int:
    """Run until `config.steps` steps are done or a signal asks to stop; returns the step reached.

    torch.distributed must be running (see `device.setup`); Megatron's process groups are made here, and left for another
    run in this process. Raises what `prepare` and `Training.run` raise.
    """
    return prepare(config, device, end).run()


def prepare(config: TrainConfig, device: torch.device, end: End | None = None) -> Training:
    """All that comes before the first step, on every process.

    `end` is called, with a reason of one line and from another thread, when no step ends any more: it must end the process.
    Without it nobody watches. Raises ValueError (CheckpointError, InputError, ShardError are such) with a one-line reason
    for what cannot be trained on, on every process alike.
    """
    config.check(dist.get_world_size())
    start_parallel(config)
    source = inputs.open_inputs(config)
    origin = find_origin(config, source)
    trainer = Trainer(config, source.vocabulary, source.codebook, device, draw=origin.checkpoint is None)
    beginning = begin(origin, trainer)
    state = beginning.state
    trainer.set_step(state.step)
    reporter = open_reporter(config, state.step)
    figures = Figures(config, source, trainer, dist.get_world_size())
    reporter.say(figures.opening())
    if beginning.said:
        reporter.say(escape(beginning.said))
    if repeated := config.data.repeats(len(source.packs)):
        reporter.event("repeats", repeated, state.step)
    return Training(config, source, trainer, beginning, reporter, figures, end)


class Training:
    """The state of a training and what changes it. Every decision is made from what all processes know alike.

    `begun`: whether a step was begun; what is raised before is a refusal, and after it a failure.
    """

    def __init__(
        self,
        config: TrainConfig,
        source: inputs.Inputs,
        trainer: Trainer,
        beginning: Beginning,
        reporter: Reporter | Silence,
        figures: Figures,
        end: End | None,
    ) -> None:
        self.config = config
        self.source = source
        self.trainer = trainer
        self.reporter = reporter
        self.figures = figures
        self.end = end
        self.begun = False
        self.saved_step = beginning.state.step if beginning.resumed else -1
        self.copier: Copier | None = None
        if config.checkpoint.copy_to is not None and dist.get_rank() == 0:
            place = any_path(config.checkpoint.copy_to, config.storage)
            self.copier = Copier(place, config.checkpoint.copy_keep, source.notices)
        self.saver = Saver(trainer, config, self.copier.held if self.copier else tuple)
        self.stragglers = Stragglers(trainer.device, config.health.straggler_factor)
        seconds = config.health.hang_seconds
        self.watchdog = Watchdog(seconds, config.output, dist.get_rank(), self._hung) if end else None
        self._begin_at(beginning.state)

    def _begin_at(self, state: CheckpointState) -> None:
        self.state = state
        self.health = Health(self.config.health, state.losses)
        share = Share(parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size())
        packs = PacksAhead(self.source.fed, self.source.threads)
        feed = Feed(packs, self.config, self.source.vocabulary, share, state.consumed, state.skipped)
        self.feed = FeedAhead(feed, packs, self.config.data.read_ahead if self.source.threads else 0)

    def run(self) -> int:
        """Step until the last one or a signal; returns the step reached, of which a checkpoint then lies there, if any.

        Raises DivergedError where a bad loss stops the training; FeedError or UnreadableError, with everything saved, where
        too many batches cannot be used or the shards cannot be read any more.
        """
        try:
            with Stop() as stop:
                return self._until_done(stop)
        except BaseException:
            self.reporter.beat("failed")
            raise
        finally:
            self.feed.close()
            if self.copier:
                self.copier.close()
            if self.watchdog:
                self.watchdog.close()
            self.reporter.close()

    def _until_done(self, stop: Stop) -> int:
        if self.state.step:
            self.reporter.event("resumed", f"going on from step {self.state.step}", self.state.step)
            self._copy(training_folder.folder(self.config.output) / training_folder.folder_name(self.state.step))
        if self.saved_step < 0 and "rollback" in (self.config.health.nan, self.config.health.spike):
            self._save()  # something to go back to
            self._announce(self.saver.finish())
        if self.watchdog:
            self.watchdog.start()
        interval = self.config.health.straggler_interval
        while (left := self.state.step < self.config.steps) and not stop.anywhere(self.trainer.device):
            self._step()
            if self.state.step % self.config.checkpoint_interval == 0:
                self._save()
            self._announce(self.saver.poll())
            if interval and self.state.step % interval == 0:
                self._compare()
        self._save_last()
        step = self.state.step
        if left:
            self.reporter.event("stop", f"step {step}: stopped by a signal, saved; the same command goes on from here", step)
        else:
            self.reporter.event("finished", f"step {step}: done", step)
        self.reporter.beat("stopped" if left else "finished")
        return step

    def _step(self) -> None:
        """One batch: its update, or what its loss calls for instead."""
        began = time.perf_counter()
        batches = self._read()
        self.begun = True
        report = self.trainer.gradients(batches)
        loss = report.loss
        left_out = len(self.state.skipped)
        finding = self.health.of_loss(loss, left_out)
        norm = self.trainer.update(skip=finding is not None and finding.action != "warn")
        if finding is None or finding.action == "warn":
            finding = self.health.of_norm(norm, left_out) or finding
        if finding is not None:
            self._act(finding, loss)
            if finding.action == "rollback":
                return
        taken = finding is None or finding.action == "warn"
        if taken:
            self.health.accept(loss)
        changes = {"step": self.state.step + 1, "consumed": self.feed.consumed, "losses": list(self.health.losses)}
        self.state = self.state.model_copy(update=changes)
        seconds = time.perf_counter() - began
        if self.watchdog:
            self.watchdog.beat(self.state.step)
        logged = self.state.step % self.config.log_interval == 0 or self.state.step == self.config.steps
        if taken and logged:
            self.reporter.step(self.figures.row(self.state, report, norm, seconds))
        self.reporter.beat("training", self.state.step, loss, report.tokens / seconds)

    def _read(self) -> list[LayoutBatch]:
        """This copy's part of the next global batch that all processes can use."""
        in_a_row = 0
        reading = (self.feed, self.stragglers, self.trainer.device, self.source.notices, self._tell)
        while isinstance(found := read(*reading), Trouble):
            self._leave_out(found, in_a_row)
            in_a_row += 1
        return found

    def _tell(self, notice: Notice) -> None:
        self.reporter.event(notice.kind, notice.message, self.state.step, **notice.details)

    def _leave_out(self, trouble: Trouble, in_a_row: int) -> None:
        """Say so of the batch just read, or end the training, saved. No checkpoint names it: whoever comes to it again
        sees."""
        place, step = self._place(), self.state.step + 1
        finding = self.health.of_data(trouble.reason, trouble.lasting, in_a_row)
        done = "left out" if finding.action == "skip" else "the training ends before it"
        message = f"step {step}: {finding.reason}; the batch at place {place}: {done}"
        self.reporter.event("data", message, step, action=finding.action, place=place, keys=list(trouble.keys))
        if finding.action == "stop":
            self._save_last()
            raise UnreadableError(message) if trouble.lasting else FeedError(message)

    def _act(self, finding: BadBatch, loss: float) -> None:
        place, step = self._place(), self.state.step + 1
        packs = sorted(set().union(*of_all(self.feed.keys)))
        named = ", ".join(packs[:8]) + (f" and {len(packs) - 8} more" if len(packs) > 8 else "")
        done = {"warn": "", "skip": "left out; ", "rollback": "going back; ", "stop": ""}[finding.action]
        message = f"step {step}: {finding.reason}; {done}the batch at place {place} has the packs {named}"
        details = {"loss": loss if math.isfinite(loss) else None, "median": finding.median}
        self.reporter.event(finding.kind, message, step, action=finding.action, place=place, keys=packs, **details)
        if finding.action == "stop":
            self._announce(self.saver.finish())
            raise DivergedError(message)
        if finding.action != "warn":
            self.state = self.state.model_copy(update={"skipped": [*self.state.skipped, place]})
        if finding.action == "rollback":
            self._roll_back(place)

    def _roll_back(self, place: int) -> None:
        """To the newest checkpoint, from which the batches left out so far are jumped over."""
        with self._patiently("going back to a checkpoint"):
            self._announce(self.saver.finish())
            found = in_force(lambda: training_folder.latest(self.config.output))
            assert found is not None  # _until_done saw to it
            path, manifest = found
            load(self.trainer, path, manifest)
            kept = {name: getattr(manifest.state, name) for name in ("step", "consumed", "losses")}
            self.feed.close()
            self._begin_at(self.state.model_copy(update=kept))
            self.trainer.set_step(self.state.step)
            # It has the step already: only what is left out is written down there, for a training that is killed before it
            # saves.
            self.saver.begin(self.state)
            for saved in self.saver.poll():
                self._copy(saved)
        self.saved_step = self.state.step
        self.reporter.rewind(self.state.step)
        self.reporter.event("rollback", f"back at step {self.state.step}, from {path}", self.state.step, place=place)

    def _save(self) -> None:
        if self.state.step == self.saved_step:
            return
        self.reporter.beat("saving")
        with self._patiently("saving a checkpoint"):
            self.saver.begin(self.state)
        self.saved_step = self.state.step

    def _save_last(self) -> None:
        with self._patiently("saving the last checkpoint"):
            if self.state.step:  # else there is nothing yet that a fresh start has not
                self._save()
            self._announce(self.saver.finish())
        if self.config.checkpoint.copy_to is not None:
            with self._patiently("copying the last checkpoint"):
                if self.copier:
                    self.copier.finish(min(self.config.checkpoint.copy_wait, 2 * self.config.health.hang_seconds))
                for notice in (one for some in of_all(self.source.notices.take()) for one in some):
                    self._tell(notice)

    def _copy(self, checkpoint: Path) -> None:
        if self.copier:
            self.copier.submit(checkpoint)

    def _announce(self, saved: list[Path]) -> None:
        for path in saved:
            self._copy(path)
            self.reporter.event("saved", f"saved {path}", int(path.name.removeprefix("step-")))

    def _compare(self) -> None:
        found = self.stragglers.compare()
        if found is not None:
            host, step = self.stragglers.hosts[found.rank], self.state.step
            message = f"step {step}: rank {found.rank} on {host} is slow in {found.what}, {found.factor:.1f} × the median"
            details = {"rank": found.rank, "host": host, "what": found.what, "factor": found.factor}
            self.reporter.event("straggler", message, step, **details)

    def _place(self) -> int:
        """Where the batch that was read last begins in the order of packs."""
        return self.feed.consumed - self.config.data.global_batch_size

    def _patiently(self, what: str) -> AbstractContextManager[None]:
        return self.watchdog.patient(what) if self.watchdog else nullcontext()

    def _hung(self, reason: str) -> None:
        """In the watchdog's thread: say it and end."""
        try:
            self.reporter.event("hang", reason, self.state.step)
            self.reporter.beat("failed")
        finally:
            if self.end:
                self.end(reason)
