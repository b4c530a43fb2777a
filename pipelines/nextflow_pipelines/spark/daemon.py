"""pyspark's daemon for local mode, where what its workers print is printed to a person.

When Spark stops, Java closes the sockets of idle workers, and over Unix domain sockets a worker notices while it still has
something to say. That is no error. Elsewhere pyspark's own daemon runs, and its words go to the executors' logs. Started as
a program by Spark (`spark.python.daemon.module`); imports nothing else, because it forks.
"""

from __future__ import annotations

import socket

from pyspark import daemon

_worker = daemon.worker


def worker(sock: socket.socket, authenticated: bool) -> int:
    """A worker's life, or one task of it: its exit code."""
    try:
        return int(_worker(sock, authenticated))
    except BrokenPipeError:
        return 1


if __name__ == "__main__":
    daemon.worker = worker
    daemon.manager()
