"""One training of the tokenizer, step by step, in this process alone or in one of several that torchrun started.

A step is `micro_batches` micro-batches, dealt out to the processes; gradients are averaged over all of them
(DistributedDataParallel) and codebook sums summed, so the number of processes decides how fast a step is and nothing else
but sums' last bits. All that a step depends on is in the checkpoint or a function of the step's number, so a stopped
training goes on with the numbers it would have had.
"""

from __future__ import annotations

import contextlib
import math
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from nextflow_data.common.signal_handlers import ignore
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from nextflow_tokenize.config.vision import VisionTrainingConfig
from nextflow_tokenize.schedule import Grid
from nextflow_tokenize.vision import processes
from nextflow_tokenize.vision.codes.codebook import learner, seeded
from nextflow_tokenize.vision.images.dataset import CropSampler, Picture
from nextflow_tokenize.vision.images.pixels import to_pixels
from nextflow_tokenize.vision.model import VisionTokenizer
from nextflow_tokenize.vision.networks.discriminator import (
    PatchDiscriminator,
    hinge_discriminator_loss,
    hinge_generator_loss,
)
from nextflow_tokenize.vision.training.beginning import Batch
from nextflow_tokenize.vision.training.objective import Objective, Outcome, trained_parameters

Loaded = tuple[tuple[Grid, ...], Tensor, dict[str, str]]
START_BATCHES = 8
BETAS = (0.9, 0.95)
"""Adam's decays (TokenFlow's code)."""


class TokenizerTrainer:
    """Model, optimisers, running means and sampler of one training, stepped together."""

    def __init__(self, tokenizer: VisionTokenizer, pictures: Sequence[Picture], settings: VisionTrainingConfig) -> None:
        self.tokenizer, self.settings, self.device = tokenizer, settings, tokenizer.device
        if settings.micro_batches % processes.world():
            raise ValueError(
                f"micro_batches: {settings.micro_batches} cannot be shared out to {processes.world()} processes: "
                "give a multiple of their number"
            )
        self.sampler = CropSampler(
            pictures, tokenizer.config.levels, settings.batch_tokens, settings.crop, settings.seed, settings.flip
        )
        self.bf16 = settings.precision == "bfloat16" or (settings.precision == "auto" and native_bfloat16(self.device))
        self.step = 0
        self.failed: dict[str, str] = {}

    def start_batches(self) -> list[Batch]:
        """The images that training is started on, the same in every process."""
        drawn = [self.sampler.draw(number, purpose=1) for number in range(START_BATCHES)]
        return [(batch.schedule, to_pixels(batch.arrays).to(self.device)) for batch in drawn]

    def prepare(self) -> None:
        """Makes the optimisers and wraps the model, once its weights are where training starts."""
        settings, tokenizer = self.settings, self.tokenizer
        trained = trained_parameters(tokenizer, settings)
        self.means = learner(tokenizer.quantizer, settings)
        self.objective = Objective(tokenizer, self.means, settings, self.bf16)
        if settings.compile:
            for part in (tokenizer.pixel_encoder, tokenizer.pixel_decoder, tokenizer.semantic_encoder):
                part.compile(dynamic=True)  # grids come in dozens of shapes
        # The tokenizer's come first: what is exported is their running means.
        self.parameters = [*trained, *self.means.parameters()]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=settings.learning_rate, betas=BETAS, weight_decay=0.0)
        self.discriminator: PatchDiscriminator | None = None
        if settings.adversarial_weight:
            self.discriminator = PatchDiscriminator(settings.discriminator_channels, settings.discriminator_layers)
            self.discriminator.to(self.device)
            self.against = torch.optim.AdamW(
                self.discriminator.parameters(), lr=settings.learning_rate, betas=BETAS, weight_decay=0.0
            )
        self.averaged = [p.detach().clone() for p in self.parameters] if settings.weights_ema else []
        processes.same(self.objective)
        self.model: nn.Module = self.objective
        if processes.world() > 1:
            devices = [self.device.index] if self.device.type == "cuda" else None
            self.model = DistributedDataParallel(self.objective, device_ids=devices, broadcast_buffers=False)

    def batches(self) -> Iterator[Loaded]:
        """This process's micro-batches from the present step on."""
        settings, world = self.settings, processes.world()
        share = settings.micro_batches // world
        numbers = _Numbers(self.step, settings.steps, settings.micro_batches, processes.rank() * share, share)
        if settings.workers:
            loader = DataLoader(
                _ByNumber(self.sampler),
                batch_size=None,
                sampler=numbers,
                num_workers=settings.workers,
                prefetch_factor=2,
                collate_fn=_as_it_is,
                worker_init_fn=_deaf,
            )
            yield from loader
        else:
            for number in numbers:
                yield _load(self.sampler, number)

    def advance(self, batches: Iterator[Loaded], flags: Callable[[], dict[str, bool]]) -> dict[str, float]:
        """One step. Returns the means of its losses over all processes, and of the `flags` that each process raises, asked
        late in the step.

        Raises FloatingPointError when the loss or the gradient's norm is not a number; the weights are then as before.
        """
        settings = self.settings
        share = settings.micro_batches // processes.world()
        rate = _rate(self.step, settings.warmup_steps, settings.steps, settings.final_rate)
        adversarial = self.discriminator is not None and self.step >= settings.adversarial_start
        for optimizer in self._optimizers():
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * rate
            optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        outcomes: list[Outcome] = []
        seen: list[Tensor] = []
        for part in range(share):
            schedule, pixels, failed = next(batches)
            self.failed |= failed
            pixels = pixels.to(self.device)
            number = self.step * settings.micro_batches + processes.rank() * share + part
            synced = part == share - 1 or not isinstance(self.model, DistributedDataParallel)
            with contextlib.nullcontext() if synced else self.model.no_sync():  # type: ignore[operator]
                outcome = self.model(pixels, schedule, self._dropped(len(schedule), number))
                loss, losses = outcome.loss, outcome.losses
                if adversarial:
                    losses["adversarial"] = self._fool(outcome.image)
                    loss = loss + settings.adversarial_weight * losses["adversarial"]
                (loss / share).backward()
            for name, value in {"loss": loss, **losses}.items():
                sums[name] = sums.get(name, torch.zeros((), device=self.device)) + value.detach() / share
            outcomes.append(outcome)
            seen.append(pixels)
        norm = nn.utils.clip_grad_norm_(self.parameters, settings.gradient_clip)
        sums["gradient_norm"] = norm.detach()
        sums |= {name: torch.tensor(float(raised), device=self.device) for name, raised in flags().items()}
        metrics = self._means(sums)
        if not math.isfinite(metrics["loss"]) or not math.isfinite(metrics["gradient_norm"]):
            raise FloatingPointError(
                f"the loss or gradient of step {self.step + 1} is not a number: lower training.learning_rate, or set "
                "precision: float32"
            )
        self.optimizer.step()
        if adversarial:
            metrics["discriminator"] = self._discriminate(seen, [outcome.image.detach() for outcome in outcomes])
        self.means.update([outcome.trace for outcome in outcomes], self.step, moved=settings.stage != "decoder")
        if self.averaged:
            torch._foreach_lerp_(self.averaged, [p.detach() for p in self.parameters], 1 - settings.weights_ema)
        self.step += 1
        return metrics | {"learning_rate": settings.learning_rate * rate}

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        return [self.optimizer] if self.discriminator is None else [self.optimizer, self.against]

    def _fool(self, image: Tensor) -> Tensor:
        """The generator's loss; the discriminator gets no gradient from it."""
        assert self.discriminator is not None
        self.discriminator.requires_grad_(False)
        loss: Tensor = hinge_generator_loss(self.discriminator(image))
        self.discriminator.requires_grad_(True)
        return loss

    def _discriminate(self, real: Sequence[Tensor], made: Sequence[Tensor]) -> float:
        """One step of the discriminator on this step's images."""
        assert self.discriminator is not None
        total = torch.zeros((), device=self.device)
        for images, reconstructions in zip(real, made, strict=True):
            loss = hinge_discriminator_loss(self.discriminator(images), self.discriminator(reconstructions)) / len(real)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        processes.average_gradients(self.discriminator)
        nn.utils.clip_grad_norm_(self.discriminator.parameters(), self.settings.gradient_clip)
        self.against.step()
        return self._means({"discriminator": total})["discriminator"]

    def _means(self, values: dict[str, Tensor]) -> dict[str, float]:
        stacked = processes.total(torch.stack([value.float() for value in values.values()])) / processes.world()
        return dict(zip(values, stacked.tolist(), strict=True))

    def _dropped(self, scales: int, number: int) -> frozenset[int]:
        """Scales (from 0) that are left out of a micro-batch, never the first."""
        settings = self.settings
        chance = torch.rand(scales, generator=seeded(settings.seed, 2, number))
        if float(chance[0]) >= settings.scale_drop_steps:
            return frozenset()
        return frozenset(k for k in range(1, scales) if float(chance[k]) < settings.scale_drop)

    @contextlib.contextmanager
    def averages(self) -> Iterator[VisionTokenizer]:
        """The tokenizer as it is to be used: in evaluation mode, with its weights' running means where there are some."""
        kept = [p.detach().clone() for p in self.parameters] if self.averaged else []
        self._put(self.averaged)
        self.tokenizer.eval()
        try:
            yield self.tokenizer
        finally:
            self._put(kept)
            self.tokenizer.train()

    @torch.no_grad()
    def _put(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=False):
            parameter.copy_(value)

    def state(self) -> dict[str, Any]:
        """All that the next step depends on."""
        state: dict[str, Any] = {
            "step": self.step,
            "model": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "averaged": self.averaged,
            "failed": self.failed,
        }
        if self.discriminator is not None:
            state |= {"discriminator": self.discriminator.state_dict(), "against": self.against.state_dict()}
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Puts back what `state` gave."""
        self.step, self.failed = state["step"], dict(state["failed"])
        self.objective.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.averaged = [value.to(self.device) for value in state["averaged"]]
        if self.discriminator is not None:
            self.discriminator.load_state_dict(state["discriminator"])
            self.against.load_state_dict(state["against"])


def _load(sampler: CropSampler, number: int) -> Loaded:
    batch = sampler.draw(number)
    return batch.schedule, to_pixels(batch.arrays), batch.failed


class _Numbers(torch.utils.data.Sampler[int]):
    """The micro-batches of one process from step `first` on, none of them written down."""

    def __init__(self, first: int, steps: int, each: int, offset: int, share: int) -> None:
        self.first, self.steps, self.each, self.offset, self.share = first, steps, each, offset, share

    def __iter__(self) -> Iterator[int]:
        for step in range(self.first, self.steps):
            yield from range(step * self.each + self.offset, step * self.each + self.offset + self.share)

    def __len__(self) -> int:
        return (self.steps - self.first) * self.share


def _deaf(worker: int) -> None:
    """A loader's process leaves signals to the training process, which needs it for its last step; it ends with that one."""
    ignore(signal.SIGINT, signal.SIGTERM)


def _as_it_is(loaded: Any) -> Any:
    return loaded


class _ByNumber(torch.utils.data.Dataset[Loaded]):
    """Micro-batches by number, for a DataLoader's workers."""

    def __init__(self, sampler: CropSampler) -> None:
        self.sampler = sampler

    def __getitem__(self, number: int) -> Loaded:
        return _load(self.sampler, number)


def native_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 natively; where torch cannot tell, no."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    asked = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return any(bool(ask()) for ask in asked if ask is not None)


def _rate(step: int, warmup: int, steps: int, final: float) -> float:
    """Linear warm-up, then a cosine down to `final`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return final + (1 - final) * 0.5 * (1 + float(np.cos(np.pi * progress)))
