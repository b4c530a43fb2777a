"""Block ranges as FlexAttention's block mask, and the compiled kernel: what a GPU attends with.

Two integers a slot become, by minima and maxima over blocks of 128 slots, lists of key blocks to visit for each block of
queries; only blocks that a range cuts are tested slot by slot. The cost: (s/128)² flags a microbatch are made and sorted.
Its mask is tested on a CPU; the kernel has not been run on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

_BLOCK = 128


def block_mask_of(visible: torch.Tensor, keys: int | None = None) -> BlockMask:
    """FlexAttention's block mask for ranges [2, b, s], from block minima and maxima: memory (s/128)², never s².

    A query block may see a key block that holds any of its ranges' hull; whole blocks inside every range need no test.
    `keys`: how many there are, where the queries are only some of the slots.
    """
    from torch.nn.attention.flex_attention import BlockMask

    start, end = visible.int().contiguous()
    rows, length = start.shape
    keys = keys or length
    # At least two blocks, the second then seen by nobody: for a size of one torch would compile a graph apart.
    blocks, key_blocks = (max(2, -(-n // _BLOCK)) for n in (length, keys))
    padding = (0, blocks * _BLOCK - length)
    high = torch.iinfo(torch.int32).max

    def reduced(values: torch.Tensor, fill: int, largest: bool) -> torch.Tensor:
        tiled = torch.nn.functional.pad(values, padding, value=fill).view(rows, blocks, _BLOCK)
        return (tiled.amax(-1) if largest else tiled.amin(-1)).unsqueeze(-1)

    left = torch.arange(key_blocks, device=visible.device, dtype=torch.int32) * _BLOCK
    right = left + _BLOCK
    some = (right > reduced(start, high, False)) & (left < reduced(end, 0, True))
    full = some & (left >= reduced(start, -1, True)) & (right <= reduced(end, high, False))

    def listed(chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        order = torch.argsort(chosen.int(), dim=-1, descending=True, stable=True).int()
        return chosen.sum(-1, dtype=torch.int32).unsqueeze(1), order.unsqueeze(1)

    def allowed(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return (k >= start[b, q]) & (k < end[b, q])

    return BlockMask.from_kv_blocks(
        *listed(some & ~full), *listed(full), BLOCK_SIZE=_BLOCK, mask_mod=allowed, seq_lengths=(length, keys)
    )


@cache
def compiled() -> Callable[..., torch.Tensor]:
    """FlexAttention, compiled once for the process."""
    from torch.nn.attention.flex_attention import flex_attention

    # Two graphs serve all lengths of rows. With `fullgraph` torch says so where it would compile too many; without, it would
    # go on uncompiled, with the whole of the scores.
    return torch.compile(flex_attention, fullgraph=True)
