"""What a run says while it runs: a line on the terminal, a row of metrics.jsonl, an event, curves for the trackers.

metrics.jsonl is the record: one JSON object a logged step whose update was made. On resuming or going back, rows after the
checkpoint's step are cut off, so a step occurs once whatever was killed. events.jsonl is the history, from which nothing is
cut. Only one process reports: the one that holds the loss (last pipeline stage, first of its other groups). Reading needs no
torch.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from pathlib import Path
from typing import Any, Literal, TextIO

from rich.console import Console
from rich.markup import escape

from megatron_nextflow.config import TrainConfig
from megatron_nextflow.heartbeat import Heartbeat, State
from megatron_nextflow.trackers import open_trackers

METRICS = "metrics.jsonl"
EVENTS = "events.jsonl"
Kind = Literal["nan", "spike", "rollback", "stop", "saved", "resumed", "straggler", "hang", "tracker", "finished"]
_STYLES = {"saved": "dim", "resumed": "", "finished": "", "stop": ""}
"""Of events on the terminal; those not named are warnings."""


def read_metrics(output: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl in order; a line that a kill cut short is left out."""
    return _rows(output / METRICS)


def read_events(output: Path) -> list[dict[str, Any]]:
    """The rows of a run's events.jsonl in order: time (seconds since 1970), step, kind, message, and what the kind adds.

    nan and spike add action, place (where the batch begins in the order of packs), loss, median and keys (of its packs);
    rollback adds place; straggler adds rank, host, what and factor.
    """
    return _rows(output / EVENTS)


def _rows(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                rows.append(json.loads(line))
    return rows


class Silence:
    """Takes what a `Reporter` takes and says nothing: for the processes that do not report."""

    def say(self, text: str) -> None: ...
    def event(self, kind: Kind, message: str, step: int, **details: Any) -> None: ...
    def step(self, row: dict[str, Any]) -> None: ...
    def beat(self, state: State, step: int | None = None, loss: float | None = None, speed: float | None = None) -> None: ...
    def rewind(self, step: int) -> None: ...
    def close(self) -> None: ...


class Reporter:
    """Writes what a run says. `step`: steps already done; rows of later ones are removed.

    Raises ValueError where a tracker cannot begin, OSError where the output folder cannot be written.
    """

    def __init__(self, config: TrainConfig, step: int) -> None:
        self.console = Console(highlight=False)
        self.output = config.output
        self.steps = config.steps
        self.output.mkdir(parents=True, exist_ok=True)
        self.stream = self._cut(step)
        self.beat = Heartbeat(config.output, step, config.steps).beat
        self.beat("starting")
        self.trackers = open_trackers(config, step)

    def say(self, text: str) -> None:
        """A line on the terminal, with rich's markup."""
        self.console.print(text, soft_wrap=True)

    def event(self, kind: Kind, message: str, step: int, **details: Any) -> None:
        """A row of events.jsonl, and the message on the terminal."""
        row = {"time": time.time(), "step": step, "kind": kind, "message": message, **details}
        with open(self.output / EVENTS, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
        logging.getLogger(__name__).info("step %d: %s", step, message)
        self.console.print(escape(message), style=_STYLES.get(kind, "yellow"), soft_wrap=True)

    def step(self, row: dict[str, Any]) -> None:
        """`row`: step, loss, by_kind {name: nats}, grad_norm, lr, tokens, labels, pairs, seconds, tokens_per_second, tflops
        (of one device), mfu (or None), consumed, skipped (batches of the run so far)."""
        self.stream.write(json.dumps(row) + "\n")
        self.stream.flush()
        names = ("loss", "grad_norm", "lr", "tokens_per_second", "tflops", "mfu", "skipped")
        values = {name: row[name] for name in names if row[name] is not None}
        self._track(row["step"], values | {f"loss/{name}": value for name, value in row["by_kind"].items()})
        scales = [f"{n.partition('/')[2]}:{v:.2f}" for n, v in row["by_kind"].items() if n != "text"]
        text = f"{row['by_kind']['text']:.3f}" if "text" in row["by_kind"] else "–"
        image = f"  [dim]image by scale[/dim] {' '.join(scales)}" if scales else ""
        mfu = "" if row["mfu"] is None else f", MFU {row['mfu']:.1%}"
        self.say(
            f"[bold]{row['step']:>6}[/bold]/{self.steps}  loss {row['loss']:.4f}  [dim]text[/dim] {text}{image}  "
            f"[dim]norm[/dim] {row['grad_norm']:.2f}  {row['tokens_per_second']:,.0f} tokens/s, "
            f"{row['tflops']:.3g} TFLOP/s{mfu}  {row['seconds']:.2f} s/step"
        )

    def rewind(self, step: int) -> None:
        """Steps after `step` will come again: forget their rows."""
        self.stream.close()
        self.stream = self._cut(step)
        for tracker in self.trackers:
            tracker.rewind(step)

    def close(self) -> None:
        """Flush and close what is open."""
        self.stream.close()
        for tracker in self.trackers:
            tracker.close()

    def _cut(self, step: int) -> TextIO:
        path = self.output / METRICS
        beside = path.with_name(f".{METRICS}.writing")
        kept = [row for row in read_metrics(self.output) if row["step"] <= step]
        beside.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        os.replace(beside, path)
        return open(path, "a", encoding="utf-8")

    def _track(self, step: int, values: dict[str, float]) -> None:
        for tracker in list(self.trackers):
            try:
                tracker.scalars(step, values)
            except Exception as error:  # a view of the record is no reason to lose a run
                self.trackers.remove(tracker)
                self.event("tracker", f"{type(tracker).__name__} is left out from here on: {error}", step)
