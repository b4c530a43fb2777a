"""What a training's folder tells whoever watches it: how far it is, what has happened, and that it has gone quiet.

Read from the heartbeat and the events that the training writes, so the watcher needs neither its process nor its output, and
can begin or begin again at any time. What an earlier run of the same folder left is not taken for news. Needs no Prefect.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_nextflow.watch.heartbeat import read_heartbeat
from megatron_nextflow.watch.reporter import read_events
from nextflow_orchestration.report.from_training_folder import span
from nextflow_orchestration.words.numbers import short

QUIET_SECONDS = 300.0
"""Silence after which it is said. The training's own watchdog ends what hangs (`health.hang_seconds`)."""


@dataclass(frozen=True)
class Look:
    """One look: steps done and to do, the state in a few words, and what is new since the look before."""

    step: int
    steps: int
    words: str
    news: tuple[str, ...] = ()

    @property
    def percent(self) -> float:
        return 100 * self.step / self.steps if self.steps else 0.0


class Watch:
    """Looks at a training's folder again and again. `since`: when this training began, `seen`: from when on events are
    news."""

    def __init__(self, output: Path, since: float, seen: float, quiet_seconds: float = QUIET_SECONDS) -> None:
        self.output = output
        self.since = since
        self.quiet_seconds = quiet_seconds
        self._told = sum(event.get("time", 0.0) < seen for event in read_events(output))
        self._quiet = False

    def look(self) -> Look:
        """What is to be seen now."""
        beat = read_heartbeat(self.output) or {}
        if float(beat.get("time") or 0) < self.since:
            beat = {}
        events = read_events(self.output)
        news = [str(event.get("message", "")) for event in events[self._told :]]
        self._told = len(events)
        step, steps = int(beat.get("step") or 0), int(beat.get("steps") or 0)
        news += self._silence(float(beat.get("time") or self.since), step)
        return Look(step, steps, _words(beat), tuple(news))

    def _silence(self, last: float, step: int) -> list[str]:
        silent = time.time() - last
        was, self._quiet = self._quiet, silent > self.quiet_seconds
        if self._quiet and not was:
            return [f"no word from the training for {span(silent)}; it was at step {step}. Its logs: {self.output / 'logs'}"]
        return ["the training is heard again"] if was and not self._quiet else []


def _words(beat: dict[str, Any]) -> str:
    if not beat:
        return "starting"
    words = [str(beat.get("state", ""))]
    if beat.get("loss") is not None:
        words.append(f"loss {beat['loss']:.4f}")
    if beat.get("tokens_per_second") is not None:
        words.append(f"{short(beat['tokens_per_second'])} tokens/s")
    return ", ".join(words)
