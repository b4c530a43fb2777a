"""Where a training's curves are shown besides metrics.jsonl: TensorBoard by default, Weights & Biases by setting.

Both are views of the record and never a reason to lose a training: what they raise while it runs is told once, and the
training goes on without them. Weights & Biases gets the settings that decide what is learnt and the curves, and nothing of
the machine: no code, git remote, console, host, environment or usage report. Its run has an id kept in the output folder, so
a restart goes on in the same curve. The cost: a step that is repeated after going back appears there twice.
"""

from __future__ import annotations

import os
import time
import uuid
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from megatron_nextflow.config.train import TrainConfig, WandbConfig

if TYPE_CHECKING:
    import wandb

SHOWN = {"model", "parallel", "optimizer", "loss", "steps", "trainable", "precision", "fp8", "first_last_bf16", "recompute"}
"""The parts of the recipe that Weights & Biases is told; paths and addresses are not among them."""


class Tracker(Protocol):
    """Takes the scalars of one step after the other."""

    def scalars(self, step: int, values: dict[str, float]) -> None: ...
    def rewind(self, step: int) -> None:
        """Steps after `step` will come again."""

    def close(self) -> None: ...


class TensorBoard:
    """Event files under `output`/tensorboard; steps that will come again are purged there."""

    def __init__(self, output: Path, step: int) -> None:
        # Imported here, because it brings torch, which readers of the metrics do without.
        from torch.utils.tensorboard import SummaryWriter

        self.open = partial(SummaryWriter, str(output / "tensorboard"))
        self.writer = self.open(purge_step=step + 1)

    def rewind(self, step: int) -> None:
        self.writer.close()
        # Files are read in the order of their names: by the second they were begun in, and within one by a counter as text,
        # where 10 comes before 9.
        time.sleep(1 - time.time() % 1)
        self.writer = self.open(purge_step=step + 1)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """One training on Weights & Biases, or under `output`/wandb where the mode is offline."""

    def __init__(self, settings: WandbConfig, config: TrainConfig) -> None:
        os.environ["WANDB_ERROR_REPORTING"] = "false"  # read when wandb is imported
        import wandb

        self.run: wandb.Run = wandb.init(
            project=settings.project,
            name=settings.name or config.output.name,
            mode=settings.mode,
            dir=config.output,
            id=_run_id(config.output / "wandb" / "run-id"),
            resume="allow",
            allow_val_change=True,  # a restart may have other settings: more steps, another parallel layout
            config=config.model_dump(mode="json", include=SHOWN),
            settings=wandb.Settings(
                console="off",
                disable_code=True,
                disable_git=True,
                finish_timeout=60,  # the training is over, whether the server can be reached or not
                silent=True,
                x_disable_machine_info=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_save_requirements=False,
            ),
        )
        # Steps are a column and not wandb's own count, which refuses to go back.
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def rewind(self, step: int) -> None: ...

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self.run.log({"step": step, **values})

    def close(self) -> None:
        self.run.finish()


def open_trackers(config: TrainConfig, step: int) -> list[Tracker]:
    """The trackers that the recipe names, for a training that has done `step` steps. Raises ValueError where one cannot
    begin."""
    found: list[Tracker] = []
    if config.tensorboard:
        found.append(TensorBoard(config.output, step))
    if config.wandb is not None:
        try:
            found.append(WeightsAndBiases(config.wandb, config))
        except Exception as error:
            raise ValueError(f"Weights & Biases: {error}; wandb.mode: offline does without its server") from error
    return found


def _run_id(file: Path) -> str:
    """The training's id, made at the first start."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(uuid.uuid4().hex + "\n", encoding="utf-8")
    return file.read_text(encoding="utf-8").strip()
