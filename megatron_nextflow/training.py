"""Building the parallel model and taking one step with it: the part that is Megatron's, called in the order it wants.

Data-parallel gradients, the distributed optimizer, the pipeline schedules and the gradient norm are megatron-core's own.
Gradients are divided by the number of predicted tokens of the whole global batch (`calculate_per_token_loss`): of the
normalisations Megatron offers, this one gives the same update however the batch is cut into processes and micro-batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
from megatron.core.transformer.module import Float16Module
from torch import Tensor

from megatron_nextflow.attention import BlockRangeParams
from megatron_nextflow.config import TrainConfig
from megatron_nextflow.initialise import initialise
from megatron_nextflow.layout import LayoutBatch
from megatron_nextflow.loss import weighted_loss
from megatron_nextflow.model import NextFlowModel
from megatron_nextflow.spec import transformer_config
from megatron_nextflow.vocabulary import Vocabulary


class DivergedError(RuntimeError):
    """The loss or the gradient norm is not a finite number."""


@dataclass(frozen=True)
class StepReport:
    """What one step measured over the whole global batch.

    `loss`: the weighted objective, nats a predicted token. `by_kind`: plain cross-entropy, nats a token, by "text" and
    "image/1", "image/2", … (scale); kinds that the batch did not hold are absent. `tokens`: slots that are not padding;
    `labels`: how many of them predict something.
    """

    loss: float
    tokens: int
    labels: int
    by_kind: dict[str, float]


def start_parallel(config: TrainConfig) -> None:
    """Megatron's process groups for this layout, in place of any before, and its seeds. torch.distributed must run."""
    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(config.parallel.tp, config.parallel.pp)
    model_parallel_cuda_manual_seed(config.model.seed)


class Trainer:
    """The model, its optimizer and its schedule, on this process. Weights are the initial ones until a checkpoint is loaded.

    `codebook` [V, D] float32.
    """

    def __init__(self, config: TrainConfig, vocabulary: Vocabulary, codebook: Tensor, device: torch.device) -> None:
        self.config = config
        self.device = device
        self.megatron_config = transformer_config(config)
        self.model = NextFlowModel(self.megatron_config, config.model, vocabulary, codebook)
        initialise(self.model.sharded_state_dict(), config.model)
        self.model.to(device)
        bf16 = config.precision == "bf16"
        stage: torch.nn.Module = Float16Module(self.megatron_config, self.model) if bf16 else self.model
        ddp = DistributedDataParallelConfig(
            grad_reduce_in_fp32=True, use_distributed_optimizer=True, overlap_grad_reduce=False
        )
        self.stage = DistributedDataParallel(self.megatron_config, ddp, stage)
        self.stage.broadcast_params()
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
            [self.stage],
        )
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
        self.schedule = get_forward_backward_func()
        self.kinds = config.model.max_scales + 1
        self.micro_batches = config.data.global_batch_size // (
            config.data.micro_batch_size * parallel_state.get_data_parallel_world_size()
        )

    def set_step(self, step: int) -> None:
        """Put the schedule at `step` steps done, with the recipe's rates even where a checkpoint had others."""
        optimizer = self.config.optimizer
        for group in self.optimizer.param_groups:
            group.update(max_lr=optimizer.lr, min_lr=optimizer.min_lr, betas=optimizer.betas, eps=optimizer.eps)
        self.scheduler.num_steps = 0
        self.scheduler.step(step)

    @property
    def learning_rate(self) -> float:
        """Of the step last taken."""
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def parameters(self) -> int:
        """Trainable parameters of the whole model, each counted once."""
        counted = 0
        first_rank = parallel_state.get_tensor_model_parallel_rank() == 0
        for p in self.model.parameters():
            if p.requires_grad and (getattr(p, "tensor_model_parallel", False) or first_rank):
                counted += p.numel()
        total = torch.tensor(counted, dtype=torch.int64, device=self.device)
        dist.all_reduce(total, group=parallel_state.get_model_parallel_group())
        return int(total)

    def step(self, batches: Iterator[LayoutBatch]) -> tuple[StepReport | None, float]:
        """One update from `micro_batches` batches; the report (last stage only) and the gradient norm before clipping.

        Raises DivergedError on every process where loss or norm is not finite; weights are then not updated.
        """
        self.stage.zero_grad_buffer()
        self.optimizer.zero_grad()
        reports = self.schedule(
            forward_step_func=self._forward,
            data_iterator=batches,
            model=self.stage,
            num_microbatches=self.micro_batches,
            seq_length=self.config.model.max_length,
            micro_batch_size=self.config.data.micro_batch_size,
            forward_only=False,
        )
        report = self._reduce(reports)
        self._require_finite(report)
        self.scheduler.step(1)
        _, norm, _ = self.optimizer.step()
        return report, float(norm)

    def _forward(self, batches: Iterator[LayoutBatch], stage: Any) -> tuple[Tensor, Any]:
        batch = next(batches).to(self.device)
        output = stage(batch=batch, ranges=BlockRangeParams.of(batch.visible, self.device))
        return output, partial(self._loss, batch)

    def _loss(self, batch: LayoutBatch, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        loss, tokens, by_kind = weighted_loss(logits, batch, self.kinds)
        # The schedule divides the loss it is given in place, so the report holds a copy.
        used = torch.tensor(batch.used, device=loss.device)
        totals = torch.stack([loss.detach().double().clone(), used.double(), tokens.double()])
        return loss, tokens.int(), torch.cat([totals, by_kind.detach().double().flatten()])

    def _reduce(self, reports: list[Tensor]) -> StepReport | None:
        if not parallel_state.is_pipeline_last_stage():
            return None
        total = torch.stack(reports).sum(0)
        dist.all_reduce(total, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
        loss, tokens, labels, *flat = total.tolist()
        names = ["text", *(f"image/{k}" for k in range(1, self.kinds))]
        sums = zip(names, flat[::2], flat[1::2], strict=True)
        return StepReport(loss / max(labels, 1.0), int(tokens), int(labels), {name: s / n for name, s, n in sums if n})

    def _require_finite(self, report: StepReport | None) -> None:
        bad = report is not None and not torch.isfinite(torch.tensor(report.loss))
        flag = torch.tensor(int(bad), device=self.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        if int(flag):
            raise DivergedError("the loss is not a finite number")
