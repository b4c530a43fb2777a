"""The training run on one process: check, build, resume, step, judge, save, stop when told.

Everything that can be refused is refused before the first step: a damaged shard, a tokenizer that is not the shards' or the
checkpoint's, a layout of processes that does not fit. A request to stop (SIGTERM, SIGINT) on any process is shared among all
after each step, so that they stop at the same one, save, and leave a checkpoint. A batch with a bad loss is left out, or the
run goes back to its last checkpoint, as the recipe's `health` says; which batches were left out is part of the checkpoints
that follow. The cost: one small all-reduce a step, and a checkpoint before the first step where the recipe may go back.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from rich.markup import escape

from megatron_nextflow import checkpoint, flops, inputs, resume
from megatron_nextflow.checkpoint import CheckpointState
from megatron_nextflow.checkpoint_saver import Saver
from megatron_nextflow.config import TrainConfig
from megatron_nextflow.feed import Feed, Share
from megatron_nextflow.health import Finding, Health
from megatron_nextflow.loss import logits_bytes
from megatron_nextflow.metrics import Reporter, Silence
from megatron_nextflow.signals import Stop
from megatron_nextflow.stragglers import Stragglers
from megatron_nextflow.training import DivergedError, StepReport, Trainer, start_parallel
from megatron_nextflow.watchdog import Watchdog

End = Callable[[str], None]


def train(config: TrainConfig, device: torch.device, end: End | None = None) -> int:
    """Run until `config.steps` steps are done or a signal asks to stop; returns the step reached.

    torch.distributed must be running (see `device.setup`); Megatron's process groups are made here and taken down after.
    `end` is called, with a reason of one line and from another thread, when no step ends any more: it must end the process.
    Without it nobody watches. Raises ValueError (CheckpointError, FeedError, InputError, ShardError are such) with a
    one-line reason for what cannot be trained on, before the first step on every process alike, and DivergedError where a
    bad loss stops the run.
    """
    config.check(dist.get_world_size())
    start_parallel(config)
    try:
        with Stop() as stop:
            return _train(config, device, stop, end)
    finally:
        parallel_state.destroy_model_parallel()


def _train(config: TrainConfig, device: torch.device, stop: Stop, end: End | None) -> int:
    source = inputs.open_inputs(config)
    trainer = Trainer(config, source.vocabulary, source.codebook, device)
    beginning = resume.begin(config, trainer, source)
    state = beginning.state
    trainer.set_step(state.step)
    reporter = _reporter(config, state.step)
    reporter.say(_opening(config, source, trainer))
    if beginning.inherited:
        reporter.say(escape(beginning.inherited))
    run = _Run(config, source, trainer, state, reporter, end)
    try:
        return run.until_done(stop)
    except BaseException:
        reporter.beat("failed")
        raise
    finally:
        if run.watchdog:
            run.watchdog.close()
        reporter.close()


class _Run:
    """The state of a run and what changes it. Every decision is made from what all processes know alike."""

    def __init__(
        self,
        config: TrainConfig,
        source: inputs.Inputs,
        trainer: Trainer,
        state: CheckpointState,
        reporter: Reporter | Silence,
        end: End | None,
    ) -> None:
        self.config = config
        self.source = source
        self.trainer = trainer
        self.reporter = reporter
        self.end = end
        self.saved_step = state.step if checkpoint.latest(config.output) else -1
        self.saver = Saver(trainer, config)
        self.stragglers = Stragglers(trainer.device, config.health.straggler_factor)
        self.peak = config.peak_tflops
        if self.peak is None and trainer.device.type == "cuda":
            self.peak = flops.peak_tflops(torch.cuda.get_device_name(trainer.device))
        seconds = config.health.hang_seconds
        self.watchdog = Watchdog(seconds, config.output, dist.get_rank(), self._hung) if end else None
        self._begin_at(state)

    def _begin_at(self, state: CheckpointState) -> None:
        self.state = state
        self.health = Health(self.config.health, state.losses)
        share = Share(parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size())
        self.feed = Feed(self.source.packs, self.config, self.source.vocabulary, share, state.consumed, state.skipped)

    def until_done(self, stop: Stop) -> int:
        """Step until the last one or a signal; returns the step reached, of which a checkpoint then lies there."""
        stopped = False
        if self.state.step:
            self.reporter.event("resumed", f"going on from step {self.state.step}", self.state.step)
        if self.saved_step < 0 and "rollback" in (self.config.health.nan, self.config.health.spike):
            self._save()  # something to go back to
            self._announce(self.saver.finish())
        if self.watchdog:
            self.watchdog.start()
        while self.state.step < self.config.steps and not stopped:
            self._step()
            stopped = stop.anywhere(self.trainer.device)
            if stopped or self.state.step == self.config.steps or self.state.step % self.config.checkpoint_interval == 0:
                self._save()
            self._announce(self.saver.poll())
            if self.config.health.straggler_interval and self.state.step % self.config.health.straggler_interval == 0:
                self._compare()
        with self._patiently("saving the last checkpoint"):
            self._announce(self.saver.finish())
        step = self.state.step
        if stopped:
            self.reporter.event("stop", f"step {step}: stopped by a signal, saved; the same command goes on from here", step)
        else:
            self.reporter.event("finished", f"step {step}: done", step)
        self.reporter.beat("stopped" if stopped else "finished")
        return step

    def _step(self) -> None:
        """One batch: its update, or what its loss calls for instead."""
        began = time.perf_counter()
        batches = self.stragglers.timed(self.feed.next_batch())
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
            self.reporter.step(self._row(report, norm, seconds))
        self.reporter.beat("training", self.state.step, loss, report.tokens / seconds)

    def _act(self, finding: Finding, loss: float) -> None:
        place = self.feed.consumed - self.config.data.global_batch_size
        step = self.state.step + 1
        keys: list[list[str]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(keys, self.feed.keys)
        packs = sorted(set().union(*keys))
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
            path = checkpoint.latest(self.config.output)
            assert path is not None  # until_done saw to it
            manifest = checkpoint.read_manifest(path)
            checkpoint.load(self.trainer, path, manifest)
            kept = {name: getattr(manifest.state, name) for name in ("step", "consumed", "losses")}
            self._begin_at(self.state.model_copy(update=kept))
            self.trainer.set_step(self.state.step)
            # It has the step already: only what is left out is written down there, for a run that is killed before it saves.
            self.saver.begin(self.state)
            self.saver.poll()
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

    def _announce(self, saved: list[Path]) -> None:
        for path in saved:
            self.reporter.event("saved", f"saved {path}", int(path.name.removeprefix("step-")))

    def _compare(self) -> None:
        found = self.stragglers.compare()
        if found is not None:
            host, step = self.stragglers.hosts[found.rank], self.state.step
            message = f"step {step}: rank {found.rank} on {host} is slow in {found.what}, {found.factor:.1f} × the median"
            details = {"rank": found.rank, "host": host, "what": found.what, "factor": found.factor}
            self.reporter.event("straggler", message, step, **details)

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

    def _row(self, report: StepReport, norm: float, seconds: float) -> dict[str, Any]:
        model, vocabulary = self.config.model, self.source.vocabulary
        frozen = self.config.trainable != "all"
        work = flops.step_flops(model, vocabulary, report.tokens, report.pairs, report.labels, frozen_layers=frozen)
        tflops = work / seconds / dist.get_world_size() / 1e12
        return {
            "step": self.state.step,
            "loss": report.loss,
            "by_kind": report.by_kind,
            "grad_norm": norm,
            "lr": self.trainer.learning_rate,
            "tokens": report.tokens,
            "labels": report.labels,
            "pairs": report.pairs,
            "seconds": seconds,
            "tokens_per_second": report.tokens / seconds,
            "tflops": tflops,
            "mfu": tflops / self.peak if self.peak else None,
            "consumed": self.state.consumed,
            "skipped": len(self.state.skipped),
        }


def _reporter(config: TrainConfig, step: int) -> Reporter | Silence:
    """The reporter, on the process that holds the loss; what keeps it from beginning is raised on all."""
    made: Reporter | Silence = Silence()
    problem = ""
    if (
        parallel_state.is_pipeline_last_stage(ignore_virtual=True)
        and parallel_state.get_tensor_model_parallel_rank() == 0
        and parallel_state.get_data_parallel_rank(with_context_parallel=True) == 0
    ):
        try:
            made = Reporter(config, step)
        except (OSError, ValueError) as error:
            problem = str(error)
    problems: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    if any(problems):
        raise ValueError("; ".join(filter(None, problems)))
    return made


def _opening(config: TrainConfig, source: inputs.Inputs, trainer: Trainer) -> str:
    parallel, copies = config.parallel, parallel_state.get_data_parallel_world_size()
    layout = [("TP", parallel.tp), ("CP", parallel.cp), ("PP", parallel.pp), ("VPP", parallel.vpp), ("DP", copies)]
    spread = " × ".join(f"{name} {size}" for name, size in layout if size > 1 or name in ("TP", "PP", "DP"))
    sequence = ", sequence parallel" if parallel.sequence_parallel else ""
    a_token = flops.flops_per_token(config.model, source.vocabulary, config.model.max_length)
    whole, trained = flops.parameter_count(config.model, source.vocabulary, source.codebook.shape[1]), trainer.parameters
    rows = source.vocabulary.padded // parallel.tp
    plain, held = logits_bytes(config.model.max_length * config.data.micro_batch_size, rows, config.loss.chunk)
    return (
        f"[bold]{whole:,}[/bold] parameters{'' if trained == whole else f', {trained:,} of them trained'}, {a_token:.3g} FLOPs "
        f"a token of a full pack; {spread}{sequence}, {trainer.precision}; {len(source.packs):,} packs, "
        f"{config.data.global_batch_size} a step of up to {config.model.max_length} slots; logits take at most "
        f"{held / 2**20:,.0f} MiB a process, not {plain / 2**20:,.0f}"
    )
