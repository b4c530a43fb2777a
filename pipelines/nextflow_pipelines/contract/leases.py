"""A lock on an object store: one object that its holder renews, and that whoever finds it old takes over.

Taking, renewing and giving back are each one PutObject with a condition (If-None-Match, If-Match), so each has one winner.
How old a lease is, is told by the store's clock alone (the Date of its answer less the object's Last-Modified): clocks of
workers may differ by hours. A holder that was killed on this very machine is known by its process number and start time, and
its lease is taken at once; elsewhere it must grow old first. The cost: after a kill on another machine, a minute of waiting;
and a holder that could not renew for a minute goes on without knowing, which does no harm, because nothing that a stage
writes on a store is ever overwritten.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from nextflow_data.storage.conditional import put_if_absent, read_with_state, replace_if
from nextflow_data.storage.store_path import StorePath

LEASE_SECONDS = 60.0
"""Age at which a lease that nobody renews may be taken over. Our choice: four renewals may fail."""
RENEW_SECONDS = 12.0
GIVE_BACK_SECONDS = 15.0
"""Longest wait at the end for a store that does not answer; then the lease grows old by itself."""


@dataclass
class Holder:
    """Who holds a lease, as its object says. `machine` names the boot of a kernel and a space of process numbers."""

    host: str
    machine: str
    pid: int
    started: int
    token: str
    renewed: int = 0
    """Makes each writing another content: an ETag may be a hash of it."""
    released: bool = False

    @classmethod
    def of_this_process(cls) -> Holder:
        """With a token of its own, so that two leases of one process are two."""
        return cls(socket.gethostname(), _machine(), os.getpid(), _start_time(os.getpid()), uuid.uuid4().hex)

    @classmethod
    def read(cls, content: bytes) -> Holder | None:
        """None where the object is none of ours."""
        try:
            return cls(**json.loads(content))
        except (ValueError, TypeError):
            return None

    def as_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @property
    def is_dead(self) -> bool:
        """Whether it was a process of this machine that is no more."""
        return bool(self.machine) and self.machine == _machine() and _start_time(self.pid) != self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@contextmanager
def lease(place: StorePath, held: Callable[[str], None]) -> Iterator[bool]:
    """Holds the lease at `place` and renews it; gives whether it had to be waited for. `held` is called with its holder's
    words each time it is found held, and waits, or raises."""
    mine = Holder.of_this_process()
    waited = False
    while (etag := _take(place, mine, held)) is None:
        waited = True
    ended = threading.Event()
    renewing = threading.Thread(target=_renew, args=(place, mine, etag, ended), name=f"lease {place.name}", daemon=True)
    renewing.start()
    try:
        yield waited
    finally:
        ended.set()
        renewing.join(GIVE_BACK_SECONDS)


def _take(place: StorePath, mine: Holder, held: Callable[[str], None]) -> str | None:
    """The ETag of the lease that is now ours; None where it is not, after `held` or because another was faster."""
    try:
        content, state, now = read_with_state(place)
    except FileNotFoundError:
        put_if_absent(place, mine.as_json())
        content, state, now = read_with_state(place)
    theirs = Holder.read(content)
    if theirs is not None and theirs.token == mine.token:
        return state.etag
    age = now - state.modified_ns / 1e9
    if theirs is None or theirs.released or theirs.is_dead or age > LEASE_SECONDS:
        return replace_if(place, mine.as_json(), str(state.etag))
    held(f"{theirs} (seen {max(0, age):.0f} seconds ago)")
    return None


def _renew(place: StorePath, mine: Holder, etag: str | None, ended: threading.Event) -> None:
    """Until `ended`, and then gives it back; stops where another has taken it."""
    while etag is not None:
        mine.released = ended.wait(RENEW_SECONDS)
        mine.renewed += 1
        with suppress(OSError):  # the store does not answer now; the next time it may
            etag = replace_if(place, mine.as_json(), etag) or _still_mine(place, mine)
        if mine.released:
            return


def _still_mine(place: StorePath, mine: Holder) -> str | None:
    """The ETag of our own lease where a renewal was done whose answer was lost; None where another has the lease."""
    content, state, _ = read_with_state(place)
    theirs = Holder.read(content)
    return state.etag if theirs is not None and theirs.token == mine.token else None


def _machine() -> str:
    """ "" where the kernel does not say, so that nobody is taken for dead."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _start_time(pid: int) -> int:
    """Clock ticks after the boot at which a process began; -1 where there is none."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return -1
