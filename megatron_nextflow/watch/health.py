"""When a loss, a gradient norm or a batch that cannot be used is a reason to leave the batch out, go back or stop.

Decided from numbers that are the same on every process, so all of them decide alike without asking each other. A spike is
judged against the median of the losses before it, which a few bad ones do not move; the window is part of a checkpoint, so a
resumed training decides as the training that was never stopped. A loss that was left out does not enter the window. The
cost: a true rise of the loss (a new data source, say) is a spike until half the window has seen it. Needs no torch.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from megatron_nextflow.config.health import HealthConfig


@dataclass(frozen=True)
class BadBatch:
    """What is wrong with a batch and what to do about it. `median` of the losses before it, for a spike only."""

    kind: Literal["nan", "spike", "data"]
    action: Literal["warn", "skip", "rollback", "stop"]
    reason: str
    median: float | None = None


class Health:
    """Judges one loss after the other. `losses`: the window of a checkpoint, oldest first."""

    def __init__(self, config: HealthConfig, losses: Sequence[float] = ()) -> None:
        self.config = config
        self.losses = deque(losses, maxlen=config.spike_window)

    def of_loss(self, loss: float, left_out: int) -> BadBatch | None:
        """What is to be done before the update, `left_out` batches having been left out of this training; None: nothing."""
        if not math.isfinite(loss):
            return self._limited(BadBatch("nan", self.config.nan, "the loss is not a finite number"), left_out)
        if self.config.spike == "off" or len(self.losses) < self.config.spike_window:
            return None
        median, factor = statistics.median(self.losses), self.config.spike_factor
        if loss <= factor * median:
            return None
        reason = f"the loss {loss:.4g} is above {factor:g} × {median:.4g}, the median of the {len(self.losses)} before it"
        return self._limited(BadBatch("spike", self.config.spike, reason, median), left_out)

    def of_norm(self, norm: float, left_out: int) -> BadBatch | None:
        """As `of_loss`, for a gradient norm that is not finite and with which nothing was updated."""
        if math.isfinite(norm):
            return None
        return self._limited(BadBatch("nan", self.config.nan, "the gradient norm is not a finite number"), left_out)

    def of_data(self, reason: str, lasting: bool, left_out: int) -> BadBatch:
        """For a batch that cannot be used, `left_out` such in a row before it; `lasting`: no more could the next."""
        return self._limited(BadBatch("data", "stop" if lasting else "skip", reason), left_out)

    def accept(self, loss: float) -> None:
        """Remember the loss of a step that was taken."""
        if self.config.spike != "off":
            self.losses.append(loss)

    def _limited(self, finding: BadBatch, left_out: int) -> BadBatch:
        if finding.action not in ("skip", "rollback") or left_out < self.config.most_skipped:
            return finding
        reason = f"{finding.reason}, and {left_out} batches were left out before it (health.most_skipped)"
        return replace(finding, action="stop", reason=reason)
