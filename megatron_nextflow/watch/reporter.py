"""What a training says while it runs: a line on the terminal, a row of metrics.jsonl, an event, curves for the trackers.

metrics.jsonl is the record: one JSON object a logged step whose update was made. On resuming or going back, rows after the
checkpoint's step are cut off, so a step occurs once whatever was killed. events.jsonl is the history, from which nothing is
cut. Only one process reports: the one that holds the loss (last pipeline stage, first of its other groups). Once a training
has begun, nothing that it says is a reason to lose it: rows that a full disk does not take wait in memory until it does,
which is the cost, and are lost where it never does. Reading needs no torch.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from nextflow_data.common.json_lines import read_rows
from rich.console import Console
from rich.markup import escape

from megatron_nextflow.config.loss import ALWAYS
from megatron_nextflow.config.train import TrainConfig
from megatron_nextflow.runtime import notices
from megatron_nextflow.runtime.training_folder import EVENTS, METRICS
from megatron_nextflow.watch.heartbeat import Heartbeat, State
from megatron_nextflow.watch.trackers import Tracker, open_trackers

Kind = (
    Literal[
        "nan", "spike", "data", "rollback", "stop", "saved", "resumed", "straggler", "hang", "tracker", "repeats", "finished"
    ]
    | notices.Kind
)
_STYLES = {"saved": "dim", "copied": "dim", "resumed": "", "finished": "", "stop": ""}
"""Of events on the terminal; those not named are warnings."""


def read_metrics(output: Path) -> list[dict[str, Any]]:
    """The rows of a training's metrics.jsonl in order; a line that a kill cut short is left out."""
    return read_rows(output / METRICS)


def read_events(output: Path) -> list[dict[str, Any]]:
    """The rows of a training's events.jsonl in order: time (seconds since 1970), step, kind, message, and what the kind
    adds.

    nan and spike add action, place (where the batch begins in the order of packs), loss, median and keys (of its packs);
    data adds action, place and keys (of the packs that cannot be used); rollback adds place; straggler adds rank, host, what
    and factor; copied adds copy (its address) and bytes, not-copied adds failures (so far).
    """
    return read_rows(output / EVENTS)


class Silence:
    """Takes what a `Reporter` takes and says nothing: for the processes that do not report."""

    def say(self, text: str) -> None: ...
    def event(self, kind: Kind, message: str, step: int, **details: Any) -> None: ...
    def step(self, row: dict[str, Any]) -> None: ...
    def beat(self, state: State, step: int | None = None, loss: float | None = None, speed: float | None = None) -> None: ...
    def rewind(self, step: int) -> None: ...
    def close(self) -> None: ...


class _Lines:
    """A file of JSON lines that is added to. What the disk does not take waits, and goes before the next that it takes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.waiting = b""

    def add(self, row: dict[str, Any]) -> None:
        """Raises OSError where the row, or a part of it, has to wait."""
        self.waiting += json.dumps(row).encode() + b"\n"
        self.flush()

    def flush(self) -> None:
        """Write what waits. Raises OSError."""
        with open(self.path, "ab", buffering=0) as stream:
            while self.waiting:
                self.waiting = self.waiting[stream.write(self.waiting) :]

    def cut(self, step: int) -> None:
        """Cut off what follows the last row of a step up to `step`, whole rows and parts. Raises OSError."""
        self.waiting = b""
        self.path.touch()
        place = end = 0
        with open(self.path, "rb") as stream:
            for line in stream:
                place += len(line)
                with contextlib.suppress(ValueError, TypeError, KeyError):  # no row of ours, or cut short
                    if line.endswith(b"\n") and json.loads(line)["step"] <= step:
                        end = place
        os.truncate(self.path, end)


class Reporter:
    """Writes what a training says. `step`: steps already done; rows of later ones are removed.

    Raises ValueError where a tracker cannot begin, OSError where the output folder cannot be written.
    """

    def __init__(self, config: TrainConfig, step: int) -> None:
        self.console = Console(highlight=False)
        self.steps = config.steps
        config.output.mkdir(parents=True, exist_ok=True)
        self.rows, self.events = _Lines(config.output / METRICS), _Lines(config.output / EVENTS)
        self.rows.cut(step)
        self.heart = Heartbeat(config.output, step, config.steps)
        self.beat = self.heart.beat
        self.beat("starting")
        self.trackers = open_trackers(config, step)

    def say(self, text: str, style: str = "") -> None:
        """A line on the terminal, with rich's markup."""
        with contextlib.suppress(OSError):  # it may be a file on a full disk
            self.console.print(text, style=style, soft_wrap=True)

    def event(self, kind: Kind, message: str, step: int, **details: Any) -> None:
        """A row of events.jsonl, and the message on the terminal."""
        self._add(self.events, {"time": time.time(), "step": step, "kind": kind, "message": message, **details})
        logging.getLogger(__name__).info("step %d: %s", step, message)
        self.say(escape(message), _STYLES.get(kind, "yellow"))

    def step(self, row: dict[str, Any]) -> None:
        """`row`: step, loss, terms {name: its part of the loss}, by_kind {name: nats}, grad_norm, lr, tokens (slots that are
        not padding), labels, pairs, seconds, tokens_per_second, tflops (of one device), mfu (or None), consumed, skipped
        (batches of the training so far)."""
        self._add(self.rows, row)
        names = ("loss", "grad_norm", "lr", "tokens_per_second", "tflops", "mfu", "skipped")
        values = {name: row[name] for name in names if row[name] is not None}
        values |= {f"loss/{name}": value for name, value in row["by_kind"].items()}
        values |= {f"term/{name}": value for name, value in row["terms"].items()}
        self._have(lambda tracker: tracker.scalars(row["step"], values), row["step"])
        scales = [f"{n.partition('/')[2]}:{v:.2f}" for n, v in row["by_kind"].items() if n != "text"]
        text = f"{row['by_kind']['text']:.3f}" if "text" in row["by_kind"] else "–"
        image = f"  [dim]image by scale[/dim] {' '.join(scales)}" if scales else ""
        more = "".join(f"  [dim]{name}[/dim] {value:.3g}" for name, value in row["terms"].items() if name not in ALWAYS)
        mfu = "" if row["mfu"] is None else f", MFU {row['mfu']:.1%}"
        self.say(
            f"[bold]{row['step']:>6}[/bold]/{self.steps}  loss {row['loss']:.4f}  [dim]text[/dim] {text}{image}{more}  "
            f"[dim]norm[/dim] {row['grad_norm']:.2f}  {row['tokens_per_second']:,.0f} tokens/s, "
            f"{row['tflops']:.3g} TFLOP/s{mfu}  {row['seconds']:.2f} s/step"
        )

    def rewind(self, step: int) -> None:
        """Steps after `step` will come again: forget their rows. Raises OSError where the record cannot be cut."""
        self.rows.cut(step)
        self._have(lambda tracker: tracker.rewind(step), step)

    def close(self) -> None:
        """Write what waits, and close the trackers."""
        for lines in (self.rows, self.events):
            with contextlib.suppress(OSError):
                lines.flush()
        self._have(lambda tracker: tracker.close(), self.heart.values["step"])

    def _add(self, lines: _Lines, row: dict[str, Any]) -> None:
        begun = bool(lines.waiting)
        try:
            lines.add(row)
        except OSError as error:
            if not begun:
                self.say(escape(f"{lines.path}: {error.strerror}; its rows wait in memory until it takes them"), "yellow")

    def _have(self, do: Callable[[Tracker], None], step: int) -> None:
        for tracker in list(self.trackers):
            try:
                do(tracker)
            except Exception as error:
                self.trackers.remove(tracker)
                self.event("tracker", f"{type(tracker).__name__} is left out from here on: {error}", step)
