"""Writer processes that race for one object after another."""

from __future__ import annotations

import multiprocessing
import multiprocessing.synchronize
from typing import Literal

from nextflow_data.storage.conditional import read_with_state, replace_if
from nextflow_data.storage.files import put_if_absent
from nextflow_data.storage.store_path import StorePath

Kind = Literal["absent", "replace"]
_STUCK_SECONDS = 120


def race(root: StorePath, writers: int, rounds: int, kind: Kind) -> list[list[bool]]:
    """Whether each writer believed to have won, by round. `replace`: root/number is there and all know its first ETag."""
    spawning = multiprocessing.get_context("spawn")
    barrier, answers = spawning.Barrier(writers), spawning.Queue()
    started = [
        spawning.Process(target=_write, args=(root, writer, rounds, kind, barrier, answers)) for writer in range(writers)
    ]
    for process in started:
        process.start()
    found = dict(answers.get(timeout=_STUCK_SECONDS) for _ in started)
    for process in started:
        process.join()
    return [[found[writer][number] for writer in range(writers)] for number in range(rounds)]


def _write(
    root: StorePath,
    writer: int,
    rounds: int,
    kind: Kind,
    barrier: multiprocessing.synchronize.Barrier,
    answers: multiprocessing.Queue,
) -> None:
    won = []
    for number in range(rounds):
        path, content = root / str(number), b"writer %d" % writer
        etag = read_with_state(path)[1].etag if kind == "replace" else None
        barrier.wait(_STUCK_SECONDS)
        won.append(put_if_absent(path, content) if etag is None else replace_if(path, content, etag) is not None)
        barrier.wait(_STUCK_SECONDS)
    answers.put((writer, won))
