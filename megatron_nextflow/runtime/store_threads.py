"""Threads that wait for a store, by name: a program that is done does not wait with them.

A read ahead that nobody wants any more, or a copy that was given up, may hang on a store for minutes. Python waits for such
threads before it ends, or ends them in the middle of their Python. The cost of leaving at once: nothing that is registered
for the end of the interpreter is done.
"""

from __future__ import annotations

import threading

PREFIX = "store-"
"""With which their names begin."""


def waiting() -> bool:
    """Whether there are any."""
    return any(thread.name.startswith(PREFIX) for thread in threading.enumerate())
