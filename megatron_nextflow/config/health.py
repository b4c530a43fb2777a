"""What a training does when something is wrong with it: the `health` part of a training recipe.

The defaults stop for what is certainly broken and only say what is suspicious. Needs no torch.
"""

from __future__ import annotations

import math
from typing import Literal

from nextflow_data.common.section import Section
from pydantic import Field

PATIENCE = 3.0
"""How many times as long the first step, loading and saving may take."""


class HealthConfig(Section):
    """Losses that are no numbers or leap, processes that hang or lag. Thresholds are our choice."""

    nan: Literal["stop", "skip", "rollback"] = "stop"
    """A loss or gradient norm that is not finite: stop; leave this batch's update out; or go back to the last checkpoint and
    leave the batch out of what follows. The keys of the batch's packs are written down each time."""
    spike: Literal["off", "warn", "skip", "rollback"] = "warn"
    """A loss above `spike_factor` times the median of the `spike_window` losses before it."""
    spike_factor: float = Field(default=2.0, gt=1)
    """Times the median of the losses before it."""
    spike_window: int = Field(default=32, ge=4)
    """Losses that must have been seen before one can be called a spike."""
    most_skipped: int = Field(default=8, ge=1)
    """Batches left out, by skip or rollback, after which the training stops: more than that is not the data. And as many
    in a row with a pack that cannot be used: more than that is not a pack."""
    hang_seconds: float = Field(default=1800.0, gt=0)
    """Time without a finished step after which a process writes down its threads' stacks and ends the training. The first
    step (compiling) and saving have three times as long."""
    straggler_interval: int = Field(default=0, ge=0)
    """Steps between comparisons of the processes' own speed; 0 for none."""
    straggler_factor: float = Field(default=1.5, gt=1)
    """A process whose own work takes this much longer than the median's is named."""

    @property
    def timeout_minutes(self) -> int:
        """After which torch gives up on a collective: later than the watchdog, which says more."""
        return math.ceil(PATIENCE * self.hang_seconds / 60) + 5
