"""A request is tried again with growing pauses, drawn at random so that many workers do not come back at once.

This is the only such loop: boto3's own is switched off, so `attempts` bounds what a request may cost, and whether an
answer may have been lost, which put-if-absent must know, is known here. Full jitter: M. Brooker, "Exponential Backoff And
Jitter", AWS Architecture Blog 2015. With 8 attempts a request waits 16 seconds on average before it is given up.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

FIRST_PAUSE = 0.25
LONGEST_PAUSE = 20.0
"""Seconds."""

T = TypeVar("T")


def again(request: Callable[[int], T], attempts: int, passing: Callable[[Exception], bool]) -> T:
    """What `request(attempt)` answers, attempt 0, 1, …; `attempts` in all, as long as its errors are `passing`."""
    for attempt in range(attempts):
        try:
            return request(attempt)
        except Exception as error:
            if attempt + 1 == attempts or not passing(error):
                raise
        pause(attempt)
    raise AssertionError("a request has at least one attempt")


def pause(attempt: int) -> None:
    """Waits as the attempt after `attempt` has to."""
    time.sleep(random.uniform(0, min(LONGEST_PAUSE, FIRST_PAUSE * 2**attempt)))
