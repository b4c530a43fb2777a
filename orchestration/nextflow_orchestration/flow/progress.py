"""What a person sees while stages run: one live line for the stage at work, one lasting line for each that is done.

On a terminal the live line is rich's progress bar. Elsewhere (CI, a log file) a plain line says every `QUIET_SECONDS` how
far the stage is, so that the log of a run at work never looks like one of a run that hangs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

QUIET_SECONDS = 15.0
"""Longest silence of a stage where there is no terminal."""


class StageDisplay:
    """Progress of a run's stages on one console."""

    def __init__(self, console: Console, between: Callable[[], None] = lambda: None) -> None:
        """`between` is called before and after each stage; what it raises ends the run there."""
        self.console = console
        self._between = between
        self._bar = Progress(
            SpinnerColumn(), TextColumn("{task.description:<17}"), BarColumn(bar_width=24), MofNCompleteColumn(),
            TimeElapsedColumn(), TextColumn("{task.fields[note]}"), console=console, transient=True,
        )  # fmt: skip
        self._task: TaskID | None = None
        self._stage = ""
        self._since = 0.0
        self._over = threading.Event()

    def __enter__(self) -> Self:
        self._bar.start()
        if not self.console.is_terminal:
            threading.Thread(target=self._speak, name="stage-display", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._bar.stop()
        if error is not None and self._stage:
            self.console.print(f" [red]✗[/] {self._stage:<17} stopped after {time.monotonic() - self._since:.0f} s")

    def _speak(self) -> None:
        """Says every `QUIET_SECONDS` what the live line would show."""
        while not self._over.wait(QUIET_SECONDS):
            for task in self._bar.tasks:
                done = f"{task.completed:.0f}/{task.total:.0f} " if task.total else ""
                line = f" … {task.description:<17}{time.monotonic() - self._since:6.0f} s  {done}{task.fields['note']}"
                self.console.print(line.rstrip(), style="dim", highlight=False, soft_wrap=True)

    def begin(self, stage: str, live: bool = True) -> None:
        """A stage starts; `live` False for one that prints its own progress."""
        self._stage, self._since = stage, time.monotonic()
        self._between()
        if live:
            self._task = self._bar.add_task(stage, total=None, note="")

    def update(self, done: int, total: int | None, note: str = "") -> None:
        """The stage has done `done` of `total` units."""
        if self._task is not None:
            self._bar.update(self._task, completed=done, total=total, note=note)

    def end(self, text: str, skipped: bool) -> None:
        """The stage is committed; `text` says what came of it."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        seconds = f"{time.monotonic() - self._since:6.1f} s"
        mark, took = ("[dim]=[/]", "[dim]kept    [/]") if skipped else ("[green]✓[/]", f"[dim]{seconds}[/]")
        self.console.print(f" {mark} {self._stage:<17}{took}  {text}", highlight=False, soft_wrap=True)
        self._task, self._stage = None, ""
        self._between()
