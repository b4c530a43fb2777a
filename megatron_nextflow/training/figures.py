"""A training in figures: the line that it begins with, and the row of metrics.jsonl that a step makes.

Everything here is reckoned from what the processes know alike, so no process is asked. The cost: utilisation is that of the
mean device, and a slow one does not show in it (see `stragglers`).
"""

from __future__ import annotations

from typing import Any

import torch

from megatron_nextflow.checkpoint.format import CheckpointState
from megatron_nextflow.config.train import TrainConfig
from megatron_nextflow.estimate import flops
from megatron_nextflow.feeding.inputs import Inputs
from megatron_nextflow.model.loss import logits_bytes
from megatron_nextflow.step.trainer import StepReport, Trainer


class Figures:
    """Of one training of `trainer` on `source`, on `processes` processes."""

    def __init__(self, config: TrainConfig, source: Inputs, trainer: Trainer, processes: int) -> None:
        self.config = config
        self.source = source
        self.trainer = trainer
        self.processes = processes
        self.peak = config.peak_tflops
        if self.peak is None and trainer.device.type == "cuda":
            self.peak = flops.peak_tflops(torch.cuda.get_device_name(trainer.device))

    def opening(self) -> str:
        """Size, layout, precision, data and the memory of logits, with rich's markup; every process must call this."""
        config, source, trainer = self.config, self.source, self.trainer
        parallel = config.parallel
        spread = parallel.words(self.processes)
        sequence = ", sequence parallel" if parallel.sequence_parallel else ""
        a_token = flops.flops_per_token(config.model, source.vocabulary, config.model.max_length)
        whole, trained = flops.parameter_count(config.model, source.vocabulary, source.codebook.shape[1]), trainer.parameters
        rows = source.vocabulary.padded // parallel.tp
        plain, held = logits_bytes(config.model.max_length * config.data.micro_batch_size, rows, config.loss.chunk)
        return (
            f"[bold]{whole:,}[/bold] parameters{'' if trained == whole else f', {trained:,} of them trained'}, "
            f"{a_token:.3g} FLOPs a token of a full pack; {spread}{sequence}, {trainer.precision}; {len(source.packs):,} "
            f"packs, {config.data.global_batch_size} a step of up to {config.model.max_length} slots; logits take at most "
            f"{held / 2**20:,.0f} MiB a process, not {plain / 2**20:,.0f}"
        )

    def row(self, state: CheckpointState, report: StepReport, norm: float, seconds: float) -> dict[str, Any]:
        """What `Reporter.step` takes; `state` is the one after the step."""
        model, vocabulary = self.config.model, self.source.vocabulary
        frozen = self.config.trainable != "all"
        work = flops.step_flops(model, vocabulary, report.tokens, report.pairs, report.labels, frozen_layers=frozen)
        tflops = work / seconds / self.processes / 1e12
        return {
            "step": state.step,
            "loss": report.loss,
            "terms": report.terms,
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
            "consumed": state.consumed,
            "skipped": len(state.skipped),
        }
