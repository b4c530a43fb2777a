"""Signals are taken for a while, and given back whatever happens; a program's children hear what it swallows."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from types import FrameType

import pytest
from nextflow_data.common.signal_handlers import Handlers, ignore, kept, swallow


class Heard(Handlers):
    def __init__(self) -> None:
        super().__init__((signal.SIGUSR1, signal.SIGUSR2))
        self.numbers: list[int] = []

    def handle(self, number: int, frame: FrameType | None) -> None:
        self.numbers.append(number)


def test_taken_and_given_back() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    heard = Heard()
    with pytest.raises(ZeroDivisionError), heard:
        os.kill(os.getpid(), signal.SIGUSR2)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert sorted(heard.numbers) == sorted((signal.SIGUSR1, signal.SIGUSR2))
        1 / 0  # noqa: B018
    assert signal.getsignal(signal.SIGUSR1) == before
    with kept(signal.SIGUSR1):
        ignore(signal.SIGUSR1)
    assert signal.getsignal(signal.SIGUSR1) == before


def test_another_thread_takes_none() -> None:
    before, inside = signal.getsignal(signal.SIGUSR1), []

    def work() -> None:
        with Heard(), kept(signal.SIGUSR1):
            inside.append(signal.getsignal(signal.SIGUSR1))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [before]


@pytest.mark.parametrize("silence, inherited", [(swallow, "Handlers.SIG_DFL"), (ignore, "Handlers.SIG_IGN")])
def test_what_a_child_inherits(silence, inherited) -> None:
    """POSIX: exec keeps an ignored signal ignored and sets a handled one to its default."""
    with kept(signal.SIGUSR1):
        silence(signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR1)
        asked = [sys.executable, "-S", "-c", "import signal; print(repr(signal.getsignal(signal.SIGUSR1)))"]
        assert inherited in subprocess.run(asked, capture_output=True, text=True, check=True).stdout
