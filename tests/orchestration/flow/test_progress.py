"""What a log shows while stages run: never nothing for long."""

from __future__ import annotations

import io
import threading
import time

import pytest
from nextflow_orchestration.flow import progress
from nextflow_orchestration.flow.progress import StageDisplay
from rich.console import Console


def said_within(stream: io.StringIO, words: str) -> bool:
    until = time.monotonic() + 30
    while words not in stream.getvalue() and time.monotonic() < until:
        time.sleep(0.005)
    return words in stream.getvalue()


def test_without_a_terminal_a_stage_at_work_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.02)
    stream = io.StringIO()
    with StageDisplay(Console(file=stream, width=200)) as display:
        display.begin("ingest")
        display.update(3, 5, "2/4 measuring images")
        assert said_within(stream, "3/5 2/4 measuring images")
        display.update(4, None, "assembling")
        assert said_within(stream, "4/5 assembling")
        display.end("10 documents", skipped=False)
        assert "✓ ingest" in stream.getvalue()
        before = stream.getvalue()
        display.begin("train", live=False)  # it prints its own progress
        time.sleep(0.1)
        assert stream.getvalue() == before
    assert not [thread for thread in threading.enumerate() if thread.name == "stage-display" and _alive_soon(thread)]


def _alive_soon(thread: threading.Thread) -> bool:
    thread.join(30)
    return thread.is_alive()


def test_a_terminal_has_its_bar_and_no_lines_between(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.02)
    stream = io.StringIO()
    with StageDisplay(Console(file=stream, width=200, force_terminal=True)) as display:
        display.begin("ingest")
        assert not [thread for thread in threading.enumerate() if thread.name == "stage-display"]
        display.end("", skipped=False)
