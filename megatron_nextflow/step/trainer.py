"""Building the parallel model and taking one step with it: the part that is Megatron's, called in the order it wants.

Data-parallel gradients, the distributed optimizer, the pipeline schedules and the gradient norm are megatron-core's own.
Gradients are divided by the number of predicted tokens of the whole global batch (`calculate_per_token_loss`): of the
normalisations Megatron offers, this one gives the same update however the batch is cut into processes and micro-batches.
A step is two halves, gradients and update, so that a bad batch can be seen and left out between them. The cost: every
process is told the loss, a small broadcast along the pipeline.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.module import Float16Module
from torch import Tensor

from megatron_nextflow.config.train import TrainConfig
from megatron_nextflow.model.attention import BlockRangeParams
from megatron_nextflow.model.initialise import initialise
from megatron_nextflow.model.layer_spec import transformer_config
from megatron_nextflow.model.loss import kinds, total_names
from megatron_nextflow.model.nextflow import NextFlowModel
from megatron_nextflow.model.precision import precision_of
from megatron_nextflow.sequence.batch import LayoutBatch
from megatron_nextflow.sequence.vocabulary import Vocabulary

CONNECTOR_AND_HEAD = ("embedding.connector.", "embedding.scale_", "output_layer.")


class DivergedError(RuntimeError):
    """The loss or the gradient norm is not a finite number."""


@dataclass(frozen=True)
class StepReport:
    """What one step measured over the whole global batch.

    `loss`: the objective a predicted token, and `terms` what of it is each term's, by name. `by_kind`: plain cross-entropy,
    nats a token, by "text" and "image/1", "image/2", … (scale); kinds that the batch did not hold are absent. `tokens`:
    slots that are not padding; `labels`: how many of them predict something; `pairs`: how many slots they see, in sum.
    """

    loss: float
    tokens: int
    labels: int
    pairs: int
    terms: dict[str, float]
    by_kind: dict[str, float]


class Trainer:
    """The model, its optimizer and its schedule, on this process.

    `codebook` [V, D] float32. `draw`: whether weights are the initial ones; without, they are anything until a checkpoint
    fills them. Only the first data-parallel copy draws, the others are sent what it drew. `chunks` are the parts of the
    model on this process, one unless stages are interleaved; `stages` are the same within Megatron's data-parallel wrapper.
    `precision` says in words what is computed in. Raises ValueError where the recipe's FP8 cannot be had.
    """

    def __init__(
        self, config: TrainConfig, vocabulary: Vocabulary, codebook: Tensor, device: torch.device, draw: bool = True
    ) -> None:
        self.config = config
        self.device = device
        precision = precision_of(config, device)
        self.precision = precision.words
        self.megatron_config = transformer_config(config, precision)
        interleaved = config.parallel.interleaved
        self.chunks = [
            NextFlowModel(self.megatron_config, config.model, vocabulary, codebook, number if interleaved else None)
            for number in range(config.parallel.vpp)
        ]
        bf16 = precision.dtype == torch.bfloat16
        ddp = DistributedDataParallelConfig(
            grad_reduce_in_fp32=True,
            use_distributed_optimizer=True,
            overlap_grad_reduce=config.parallel.overlap_grad_reduce,
        )
        self.stages: list[DistributedDataParallel] = []
        first_copy = parallel_state.get_data_parallel_rank(with_context_parallel=True) == 0
        for chunk in self.chunks:
            if draw and first_copy:
                initialise(chunk.sharded_state_dict(), config.model)
            chunk.to(device)
            if config.trainable == "connector_and_head":
                for name, parameter in chunk.named_parameters():
                    parameter.requires_grad_(name.startswith(CONNECTOR_AND_HEAD))
            stage: torch.nn.Module = Float16Module(self.megatron_config, chunk) if bf16 else chunk
            bucketing = {"disable_bucketing": bool(self.stages)}
            self.stages.append(DistributedDataParallel(self.megatron_config, ddp, stage, **bucketing))
            if draw:
                self.stages[-1].broadcast_params()
        optimizer = config.optimizer
        self.optimizer = get_megatron_optimizer(
            OptimizerConfig(
                optimizer="adam",
                lr=optimizer.lr,
                min_lr=optimizer.min_lr,
                weight_decay=optimizer.weight_decay,
                adam_beta1=optimizer.betas[0],
                adam_beta2=optimizer.betas[1],
                adam_eps=optimizer.eps,
                clip_grad=optimizer.clip,
                bf16=bf16,
                params_dtype=self.megatron_config.params_dtype,
                use_distributed_optimizer=True,
            ),
            self.stages,
        )
        for one in getattr(self.optimizer, "chained_optimizers", [self.optimizer]):
            # Its state is made now, so that a checkpoint can be written before the first update.
            if one.optimizer is not None:
                one.init_state_fn(one.optimizer, one.config)
                for group in one.optimizer.param_groups:
                    group.setdefault("step", 0)
        self.scheduler = OptimizerParamScheduler(
            self.optimizer,
            init_lr=0.0,
            max_lr=optimizer.lr,
            min_lr=optimizer.min_lr,
            lr_warmup_steps=optimizer.warmup_steps,
            lr_decay_steps=optimizer.decay_steps or config.steps,
            lr_decay_style=optimizer.decay,
            start_wd=optimizer.weight_decay,
            end_wd=optimizer.weight_decay,
            wd_incr_steps=1,
            wd_incr_style="constant",
        )
        self.megatron_config.finalize_model_grads_func = finalize_model_grads
        self.megatron_config.grad_scale_func = self.optimizer.scale_loss
        if config.parallel.overlap_grad_reduce:
            quiet = [stage.no_sync for stage in self.stages]
            self.megatron_config.no_sync_func = quiet if interleaved else quiet[0]
        self.schedule = get_forward_backward_func()
        self.terms, self.kinds = config.loss.all_terms(), kinds(config.model.max_scales)
        self.totals = ["loss", "labels", "tokens", "pairs", *total_names(self.terms, config.model.max_scales)]
        self.micro_batches = config.data.global_batch_size // (
            config.data.micro_batch_size * parallel_state.get_data_parallel_world_size()
        )

    @property
    def model(self) -> NextFlowModel:
        """The first part of the model on this process; the whole of it where one process has everything."""
        return self.chunks[0]

    def set_step(self, step: int) -> None:
        """Put the schedule at `step` steps done, with the recipe's rates even where a checkpoint had others."""
        optimizer = self.config.optimizer
        for group in self.optimizer.param_groups:
            group.update(max_lr=optimizer.lr, min_lr=optimizer.min_lr, betas=optimizer.betas, eps=optimizer.eps)
        self.scheduler.num_steps = 0
        self.scheduler.step(step)

    @property
    def learning_rate(self) -> float:
        """The rate that the last step was taken with."""
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def parameters(self) -> int:
        """Trainable parameters of the whole model, each counted once."""
        counted = 0
        first_rank = parallel_state.get_tensor_model_parallel_rank() == 0
        for parameter in itertools.chain.from_iterable(chunk.parameters() for chunk in self.chunks):
            if parameter.requires_grad and (getattr(parameter, "tensor_model_parallel", False) or first_rank):
                counted += parameter.numel()
        total = torch.tensor(counted, dtype=torch.int64, device=self.device)
        dist.all_reduce(total, group=parallel_state.get_model_parallel_group())
        return int(total)

    def step(self, batches: Iterable[LayoutBatch]) -> tuple[StepReport, float]:
        """One update from `micro_batches` batches; the report and the gradient norm before clipping.

        Raises DivergedError on every process where loss or norm is not finite; weights are then not updated.
        """
        report = self.gradients(batches)
        finite = math.isfinite(report.loss)
        norm = self.update(skip=not finite)
        if not finite or not math.isfinite(norm):
            raise DivergedError(f"the {'gradient norm' if finite else 'loss'} is not a finite number")
        return report, norm

    def gradients(self, batches: Iterable[LayoutBatch]) -> StepReport:
        """Forward and backward passes over this copy's `micro_batches` batches; the report, the same on every process.

        Nothing is updated. Batches are whole rows; a context-parallel process takes its part of each.
        """
        for stage in self.stages:
            stage.zero_grad_buffer()
        self.optimizer.zero_grad()
        prepared = itertools.tee(self._prepared(batches), len(self.stages))
        reports = self.schedule(
            forward_step_func=self._forward,
            data_iterator=list(prepared) if len(self.stages) > 1 else prepared[0],
            model=self.stages if len(self.stages) > 1 else self.stages[0],
            num_microbatches=self.micro_batches,
            seq_length=self.config.model.max_length,
            micro_batch_size=1,
            forward_only=False,
        )
        return self._reduce(reports)

    def update(self, skip: bool = False) -> float:
        """The optimizer's step with the gradients at hand; returns their norm before clipping, the same on every process.

        Where the norm is not finite, or with `skip`, weights and optimizer stay as they are and only the schedule goes on.
        """
        self.scheduler.step(1)
        self.optimizer.prepare_grads()
        norm = float(self.optimizer.get_grad_norm())
        if skip or not math.isfinite(norm):
            return norm
        clip = self.config.optimizer.clip
        for one in getattr(self.optimizer, "chained_optimizers", [self.optimizer]):
            if clip and (parameters := one.get_parameters()):
                clip_grad_by_total_norm_fp32(parameters, max_norm=clip, total_norm=norm)
        self.optimizer.step_with_ready_grads()
        return norm

    def _prepared(self, batches: Iterable[LayoutBatch]) -> Iterator[tuple[LayoutBatch, BlockRangeParams]]:
        """Each batch as this process holds it, and its attention planned, once for all layers and chunks."""
        rank, size = parallel_state.get_context_parallel_rank(), parallel_state.get_context_parallel_world_size()
        for batch in batches:
            mine = batch.part(rank, size).to(self.device)
            yield mine, BlockRangeParams.of(mine.visible, self.device, mine.spans, mine.length)

    def _forward(self, batches: Iterator[tuple[LayoutBatch, BlockRangeParams]], stage: Any) -> tuple[Any, Any]:
        batch, ranges = next(batches)
        return stage(batch=batch, ranges=ranges, loss=self.config.loss), partial(self._loss, batch)

    def _loss(
        self, batch: LayoutBatch, output: tuple[Tensor, Tensor, dict[str, Tensor]]
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        loss, labels, totals = output
        sizes = torch.tensor([batch.used, batch.pairs], device=loss.device, dtype=torch.float64)
        # The schedule divides the loss it is given in place, so the report holds a copy.
        counts = {"loss": loss.detach().double().clone(), "labels": labels.double(), "tokens": sizes[0], "pairs": sizes[1]}
        return loss, labels.int(), counts | totals

    def _reduce(self, reports: list[dict[str, Tensor]]) -> StepReport:
        """What the micro-batches of all processes counted, added up by name."""
        if parallel_state.is_pipeline_last_stage(ignore_virtual=True):
            packed = torch.stack([torch.stack([report[name] for name in self.totals]) for report in reports]).sum(0)
            dist.all_reduce(packed, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
        else:
            packed = torch.empty(len(self.totals), dtype=torch.float64, device=self.device)
        if parallel_state.get_pipeline_model_parallel_world_size() > 1:
            last = parallel_state.get_pipeline_model_parallel_last_rank()
            dist.broadcast(packed, last, group=parallel_state.get_pipeline_model_parallel_group())
        total = dict(zip(self.totals, packed.tolist(), strict=True))
        labels = max(total["labels"], 1.0)
        return StepReport(
            loss=total["loss"] / labels,
            tokens=int(total["tokens"]),
            labels=int(total["labels"]),
            pairs=int(total["pairs"]),
            terms={name: total[f"term/{name}"] / labels for name in self.terms},
            by_kind={kind: total[f"nats/{kind}"] / n for kind in self.kinds if (n := total[f"labels/{kind}"])},
        )
