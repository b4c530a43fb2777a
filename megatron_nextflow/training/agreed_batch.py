"""A global batch, read whole before its step and by all processes or by none.

Reading fails on one process: on the copy whose pack is damaged, on the machine whose disk does not answer. In the step's
collectives the others would wait for it, and peers that read the same packs would go on with different ones. So the
processes agree first, in their main threads, whatever read ahead. What any of them has to tell goes along. The cost: a small
all-reduce a step, and a step's pack layouts in host memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from nextflow_tokenize.shards.reader import ShardError

from megatron_nextflow.feeding.ahead import FeedAhead
from megatron_nextflow.feeding.feed import FeedError
from megatron_nextflow.runtime.agreement import of_all
from megatron_nextflow.runtime.notices import Notice, Notices
from megatron_nextflow.sequence.batch import LayoutBatch
from megatron_nextflow.watch.stragglers import Stragglers


class UnreadableError(OSError):
    """The shards cannot be read any more."""


@dataclass(frozen=True)
class Trouble:
    """Why there is no batch: packs of it (`keys`, as far as they are known) cannot be used; or, where `lasting`, the shards
    cannot be read and the next batch would fail too."""

    reason: str
    keys: tuple[str, ...] = ()
    lasting: bool = False


def read(
    feed: FeedAhead, stragglers: Stragglers, device: torch.device, notices: Notices, tell: Callable[[Notice], None]
) -> list[LayoutBatch] | Trouble:
    """This copy's part of the next global batch, or what keeps any process from its own; every process must call this.

    The feed has moved on by the batch either way. `tell` is given what any process has in `notices`, on all of them.
    """
    batches: list[LayoutBatch] = []
    mine: Trouble | None = None
    try:
        batches += stragglers.timed(feed.next_batch())
    except FeedError as error:
        mine = Trouble(str(error), (feed.keys[-1],))
    except ShardError as error:
        mine = Trouble(str(error), (error.key,) if error.key else ())
    except OSError as error:
        mine = Trouble(f"rank {dist.get_rank()} cannot read {feed.config.data.shards}: {error}", lasting=True)
    to_tell = torch.tensor(mine is not None or bool(notices), dtype=torch.int32, device=device)
    dist.all_reduce(to_tell, op=dist.ReduceOp.MAX)
    if not to_tell:
        return batches
    told = of_all((mine, notices.take()))
    for notice in (one for _, some in told for one in some):
        tell(notice)
    found = [trouble for trouble, _ in told if trouble is not None]
    return _worst(found) if found else batches


def _worst(found: list[Trouble]) -> Trouble:
    lasting = any(one.lasting for one in found)
    reasons = sorted({one.reason for one in found if one.lasting == lasting})
    more = f" (and {len(reasons) - 1} more)" if reasons[1:] else ""
    return Trouble(reasons[0] + more, tuple(sorted({key for one in found for key in one.keys})), lasting)
