"""What processes tell each other so that all of them decide alike.

A collective that one process skips, because it failed where the others did not, leaves the others waiting. So what can fail
on one process is caught there, told, and raised on all. The cost: objects are pickled between the processes of one training,
which trust each other, and a message more wherever something can fail.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")


def of_all(mine: T) -> list[T]:
    """What each process brings, by rank; every process must call this."""
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    return found


def on_first(work: Callable[[], T], failure: Callable[[Exception], Exception]) -> T:
    """What `work` returns on the first process, which alone does it; every process must call this.

    Where it raises OSError or ValueError, `failure` makes of that, there, what every process raises.
    """
    told: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            told[0] = work()
        except (OSError, ValueError) as error:
            told[1] = failure(error)
    dist.broadcast_object_list(told)
    if told[1] is not None:
        raise told[1]
    done: T = told[0]
    return done
