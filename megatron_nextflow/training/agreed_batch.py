"""A global batch, read whole before its step and by all processes or by none.

Reading fails on one process: on the copy whose pack is damaged, on the machine whose disk does not answer. In the step's
collectives the others would wait for it, and peers that read the same packs would go on with different ones. So the
processes agree first. The cost: a small all-reduce a step, a step's pack layouts in host memory, and reading that no step
hides.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from nextflow_tokenize.shards.reader import ShardError

from megatron_nextflow.feeding.feed import Feed, FeedError
from megatron_nextflow.runtime.agreement import of_all
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


def read(feed: Feed, stragglers: Stragglers, device: torch.device) -> list[LayoutBatch] | Trouble:
    """This copy's part of the next global batch, or what keeps any process from its own; every process must call this.

    The feed has moved on by the batch either way.
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
    failed = torch.tensor(mine is not None, dtype=torch.int32, device=device)
    dist.all_reduce(failed, op=dist.ReduceOp.MAX)
    return _worst([one for one in of_all(mine) if one is not None]) if failed else batches


def _worst(found: list[Trouble]) -> Trouble:
    lasting = any(one.lasting for one in found)
    reasons = sorted({one.reason for one in found if one.lasting == lasting})
    more = f" (and {len(reasons) - 1} more)" if reasons[1:] else ""
    return Trouble(reasons[0] + more, tuple(sorted({key for one in found for key in one.keys})), lasting)
