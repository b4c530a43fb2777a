"""Waiting for torchrun: pass on what asks to stop, end with no process left.

torchrun's own way with a signal is half a minute and then SIGKILL, which a large checkpoint outlasts; here its processes
are told, and waited for as long as they take. Only a second Ctrl-C, which a person at the keyboard means, kills: Slurm and
systemd repeat themselves by rule. The cost: a process that does not stop must be killed by hand.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

import psutil
from nextflow_data.common.signal_handlers import Handlers

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""What asks to save and stop. SIGUSR1 is what a Slurm job's script can pass on: `srun` answers SIGTERM by killing."""


class _Signals(Handlers):
    """What asked a training to stop, and which of its processes were told."""

    def __init__(self) -> None:
        ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # nohup
        super().__init__(number for number in STOPS if number != signal.SIGHUP or not ignored)
        self.received = 0
        self.again = False
        self._told: set[int] = set()

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Remembers the signal, and whether it is a second Ctrl-C."""
        self.again = number == self.received == signal.SIGINT
        self.received = number

    def pass_on(self, agent: subprocess.Popen[bytes]) -> None:
        """Tells the training processes, each once, also those that begin later; a second Ctrl-C kills them all.

        They are the agent's own children: what they started (data loaders, writers of checkpoints) has its work to finish.
        """
        if self.again:
            for process in _family(agent.pid, recursive=True):
                _send(process, signal.SIGKILL)
        elif self.received:
            for process in _family(agent.pid, recursive=False):
                if process.pid not in self._told:
                    self._told.add(process.pid)
                    _send(process, self.received if self.received == signal.SIGINT else signal.SIGTERM)


def attend(command: Sequence[str], environment: Mapping[str, str], status: Path) -> int:
    """Runs torchrun, passing signals to its processes, and leaves none of them; returns its exit status.

    128 + n where signal n asked to stop. `status` is the file in which a process may say why it ended.
    """
    code, received = watch(command, environment)
    if received:
        return 128 + received
    said = told(status)
    return code if said is None else said


def watch(command: Sequence[str], environment: Mapping[str, str]) -> tuple[int, int]:
    """Runs torchrun, in a session of its own, as `attend` does.

    Returns its exit status (128 + n where signal n ended it), and the signal that asked to stop, or 0.
    """
    with _Signals() as signals:
        agent = subprocess.Popen(command, env=environment, start_new_session=True)
        try:
            while True:
                try:
                    code = agent.wait(timeout=0.2)
                    break
                except subprocess.TimeoutExpired:
                    signals.pass_on(agent)
        finally:
            _end(agent)
    return code if code >= 0 else 128 - code, signals.received


def told(status: Path) -> int | None:
    """The exit status that a training process left, and removes it; None where none did."""
    if not status.is_file():
        return None
    said = status.read_text(encoding="utf-8").strip()
    status.unlink()
    return int(said) if said.isdigit() else 1


def _family(pid: int, recursive: bool) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=recursive)
    except psutil.NoSuchProcess:
        return []


def _send(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def _end(agent: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the agent's session: the agent where it is still there, and children that outlived it."""
    left = [p for p in psutil.process_iter() if _session(p.pid) == agent.pid]
    for process in left:
        _send(process, signal.SIGKILL)
    psutil.wait_procs(left, timeout=10)
    agent.wait()


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None
