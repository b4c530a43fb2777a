"""The training run on one process: check, build, resume, step, save, stop when told.

Everything that can be refused is refused before the first step: a damaged shard, a tokenizer that is not the shards' or the
checkpoint's, a layout of processes that does not fit. A request to stop (SIGTERM, SIGINT) on any process is shared among all
after each step, so that they stop at the same one, save, and leave a checkpoint. The cost is one small all-reduce a step.
"""

from __future__ import annotations

import signal
import time
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_nextflow import checkpoint, inputs, resume
from megatron_nextflow.checkpoint import CheckpointState
from megatron_nextflow.config import TrainConfig
from megatron_nextflow.feed import Feed, Share
from megatron_nextflow.metrics import Reporter
from megatron_nextflow.training import StepReport, Trainer, start_parallel


class _Stop:
    """Remembers a signal that asks to stop, while the context lasts; the handlers before it are put back after."""

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Stop:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: Any) -> None:
        self.signal = number

    def anywhere(self, device: torch.device) -> bool:
        """Whether any process was told to stop; the same answer on all."""
        flag = torch.tensor(self.signal, device=device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag)


def train(config: TrainConfig, device: torch.device) -> int:
    """Run until `config.steps` steps are done or a signal asks to stop; returns the step reached.

    torch.distributed must be running (see `device.setup`); Megatron's process groups are made here and taken down after.
    Raises ValueError (CheckpointError, FeedError, InputError, ShardError are such) with a one-line reason for what cannot be
    trained on, before the first step on every process alike, and DivergedError where the loss is no longer a number.
    """
    config.check(dist.get_world_size())
    start_parallel(config)
    try:
        with _Stop() as stop:
            return _train(config, device, stop)
    finally:
        parallel_state.destroy_model_parallel()


def _train(config: TrainConfig, device: torch.device, stop: _Stop) -> int:
    source = inputs.open_inputs(config)
    trainer = Trainer(config, source.vocabulary, source.codebook, device)
    state = resume.begin(config, trainer, source)
    trainer.set_step(state.step)
    share = Share(parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size())
    feed = Feed(source.packs, config, source.vocabulary, share, state.consumed)
    opening = _opening(config, source, trainer.parameters, state)
    reporter = Reporter(config.output, state.step, config.steps) if _reports() else None
    try:
        if reporter:
            reporter.say(opening)
        return _steps(config, trainer, feed, state, reporter, stop)
    finally:
        if reporter:
            reporter.close()


def _steps(
    config: TrainConfig, trainer: Trainer, feed: Feed, state: CheckpointState, reporter: Reporter | None, stop: _Stop
) -> int:
    stopped = False
    while state.step < config.steps and not stopped:
        began = time.perf_counter()
        report, norm = trainer.step(feed.next_batch())
        state = state.model_copy(update={"step": state.step + 1, "consumed": feed.consumed})
        stopped = stop.anywhere(trainer.device)
        last = stopped or state.step == config.steps
        if reporter and report and (last or state.step % config.log_interval == 0):
            reporter.step(_row(state, report, norm, trainer.learning_rate, time.perf_counter() - began))
        if last or state.step % config.checkpoint_interval == 0:
            path = checkpoint.save(trainer, state, config.output, config.keep)
            if reporter:
                reporter.say(f"[dim]saved {path}[/dim]")
    if reporter:
        again = "stopped by a signal, saved; the same command goes on from here"
        reporter.say(f"step {state.step}: {again if stopped else 'done'}")
    return state.step


def _row(state: CheckpointState, report: StepReport, norm: float, rate: float, seconds: float) -> dict[str, Any]:
    return {
        "step": state.step,
        "loss": report.loss,
        "by_kind": report.by_kind,
        "grad_norm": norm,
        "lr": rate,
        "tokens": report.tokens,
        "labels": report.labels,
        "seconds": seconds,
        "tokens_per_second": report.tokens / seconds,
        "consumed": state.consumed,
    }


def _reports() -> bool:
    return bool(
        parallel_state.is_pipeline_last_stage()
        and parallel_state.get_tensor_model_parallel_rank() == 0
        and parallel_state.get_data_parallel_rank() == 0
    )


def _opening(config: TrainConfig, source: inputs.Inputs, parameters: int, state: CheckpointState) -> str:
    copies = parallel_state.get_data_parallel_world_size()
    begin = f"going on from step {state.step}" if state.step else "from the beginning"
    return (
        f"[bold]{parameters:,}[/bold] parameters, TP {config.parallel.tp} × PP {config.parallel.pp} × DP {copies}, "
        f"{config.precision}; {len(source.packs):,} packs, {config.data.global_batch_size} a step of "
        f"{config.model.max_length} slots; {begin}"
    )
