"""Attention where every query sees one contiguous range of keys, exactly and with no mask of the sequence's size.

A slot sees its document up to the end of its own block, a block being one scale of one image or one token (`pack_layout`).
So a pack's whole mask is two integers a slot. On a CPU they become a short plan of scaled-dot-product calls over slices:
one call for a large block, one causal call for a document's opening text, one call with a small mask for what lies between,
small scales taken together. The plan is made once a microbatch and shared by all layers and by recomputation. On a GPU the
same two integers become a FlexAttention block mask. The cost: planning runs on the host, so the ranges must be there too,
and a document of very many tiny blocks gets one call for every `CHUNK` queries or so.

The ranges travel in a PackedSeqParams subclass, because Megatron carries that to every layer, and through full activation
recomputation, where it drops a mask that is not a tensor. `qkv_format` "sbhd" keeps Megatron's own packed code paths out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from numpy.typing import NDArray
from torch.nn.functional import scaled_dot_product_attention

from megatron_nextflow.model.flex_attention import block_mask_of, compiled

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

CHUNK = 128
"""Queries a masked call aims at: enough to fill the kernel, few enough that masked-out products stay rare."""


@dataclass(frozen=True)
class Call:
    """One attention call: queries [first, last) see keys [start, stop); slots are absolute.

    `kind` "full": all of them; "causal": query i sees keys up to i, and first = start; "ends": query i sees keys before
    `ends`[i − first] (int64); "self": each query sees itself alone.
    """

    kind: Literal["full", "causal", "ends", "self"]
    first: int
    last: int
    start: int
    stop: int
    ends: torch.Tensor | None = None


def plan_calls(
    visible: NDArray[np.integer], offset: int = 0, chunk: int = CHUNK, length: int | None = None
) -> tuple[Call, ...]:
    """The calls that cover the queries of one row, in order of slots; `visible` [2, n] is (start, end) of each.

    `offset`: the absolute slot of the first query, where earlier keys are at hand too. `length`: number of keys, where there
    are more behind the last query. Raises ValueError where a query does not see itself, or sees beyond the keys.
    """
    start, end = (np.asarray(v, dtype=np.int64) for v in visible)
    count = len(start)
    if not count:
        return ()
    slot = np.arange(offset, offset + count)
    if not ((start >= 0) & (start <= slot) & (slot < end) & (end <= (length or offset + count))).all():
        raise ValueError("visible ranges must hold their own slot and end within the sequence")
    single = end == slot + 1
    lone = single & (start == slot) & (np.append(start[1:], -1) != start)
    edge = np.ones(count, dtype=bool)
    edge[1:] = (lone[1:] != lone[:-1]) | (~lone[1:] & (start[1:] != start[:-1]))
    edge[1:] |= ~lone[1:] & ((single[1:] != single[:-1]) | (~single[1:] & (end[1:] != end[:-1])))
    firsts = np.flatnonzero(edge)
    lasts = np.append(firsts[1:], count)
    calls: list[Call] = []
    waiting: list[int] = []  # [first, last) of small blocks not yet planned, relative to `offset`

    def flush() -> None:
        if waiting:
            calls.append(_call(start, end, single, offset, waiting[0], waiting[1]))
            waiting.clear()

    for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
        if waiting and start[waiting[0]] != start[first]:
            flush()
        if lone[first]:
            flush()
            calls.append(Call("self", offset + first, offset + last, offset + first, offset + last))
            continue
        opens = bool(single[first]) and start[first] == slot[first]
        if last - first >= chunk and (opens or not single[first]):
            flush()
            calls.append(_call(start, end, single, offset, first, last))
            continue
        while first < last:
            took = last if not single[first] else min(last, first + chunk - (waiting[1] - waiting[0] if waiting else 0))
            waiting[:] = [waiting[0] if waiting else first, took]
            first = took
            if waiting[1] - waiting[0] >= chunk:
                flush()
    flush()
    return tuple(calls)


def _call(
    start: NDArray[np.int64], end: NDArray[np.int64], single: NDArray[np.bool_], offset: int, first: int, last: int
) -> Call:
    low, high = int(start[first]), int(end[first:last].max())
    here = (offset + first, offset + last, low, high)
    if (end[first:last] == high).all():
        return Call("full", *here)
    if single[first:last].all() and low == offset + first:
        return Call("causal", *here)
    return Call("ends", *here, ends=torch.from_numpy(end[first:last].copy()))


class KeyValueStore(Protocol):
    """Keys and values of earlier slots (`cache.KeyValueCache`)."""

    def append(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep a layer's new keys and values [n, b, g, d]; give all of them so far, each row's from slot 0 on."""
        ...


@dataclass
class BlockRangeParams(PackedSeqParams):
    """What every layer of one microbatch shares: each row's calls on a CPU, the block mask on a GPU; `store` when cached."""

    qkv_format: str = "sbhd"
    calls: tuple[tuple[Call, ...], ...] = ()
    offsets: tuple[int, ...] = ()
    store: KeyValueStore | None = None
    block_mask: BlockMask | None = None

    @classmethod
    def of(
        cls,
        visible: torch.Tensor,
        device: torch.device | str = "cpu",
        spans: Sequence[tuple[int, int]] | None = None,
        length: int | None = None,
    ) -> BlockRangeParams:
        """From the visible ranges [2, b, s] of a batch, for attention that will run on `device`.

        The s queries are the stretches `spans` [first, last) of rows of `length` keys; without them, whole rows.
        """
        length = length or visible.size(-1)
        if torch.device(device).type == "cuda":
            return cls(block_mask=block_mask_of(visible.to(device), length))
        ranges = visible.cpu().numpy()
        calls: list[tuple[Call, ...]] = []
        for row in range(ranges.shape[1]):
            parts: list[Call] = []
            at = 0
            for first, last in spans or ((0, length),):
                parts += plan_calls(ranges[:, row, at : at + last - first], first, length=length)
                at += last - first
            calls.append(tuple(parts))
        return cls(calls=tuple(calls), offsets=(0,) * len(calls))

    @classmethod
    def cached(
        cls, visible: Sequence[NDArray[np.integer]], offsets: Sequence[int], store: KeyValueStore
    ) -> BlockRangeParams:
        """For new slots behind cached ones: row r's ranges [2, n_r] are absolute and its first query is slot `offsets[r]`.

        Rows with fewer new slots than the longest are padded behind; what comes out there means nothing.
        """
        calls = tuple(plan_calls(ranges, offset) for ranges, offset in zip(visible, offsets, strict=True))
        return cls(calls=calls, offsets=tuple(offsets), store=store)


def run_calls(
    calls: Sequence[Call], query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None = None
) -> torch.Tensor:
    """Attention of one row: query [n, h, d], key and value [m, g, d] with h a multiple of g; gives [n, h, d].

    The calls cover the queries from the first on; queries behind the last planned one give zeros.
    """
    heads, groups = query.size(1), key.size(1)
    sizes = [call.last - call.first for call in calls]
    *queries, rest = query.split([*sizes, query.size(0) - sum(sizes)])
    parts: list[torch.Tensor] = []
    for call, q in zip(calls, queries, strict=True):
        k, v = key[call.start : call.stop], value[call.start : call.stop]
        if call.kind == "self":
            parts.append(v.repeat_interleave(heads // groups, dim=1))
            continue
        mask = None
        if call.ends is not None:
            mask = torch.arange(call.start, call.stop, device=q.device) < call.ends.to(q.device).unsqueeze(1)
        attended = scaled_dot_product_attention(
            q.transpose(0, 1).unsqueeze(0),
            k.transpose(0, 1).unsqueeze(0),
            v.transpose(0, 1).unsqueeze(0),
            attn_mask=mask,
            is_causal=call.kind == "causal",
            scale=scale,
            enable_gqa=groups != heads,
        )
        parts.append(attended.squeeze(0).transpose(0, 1))
    if rest.size(0):
        parts.append(torch.zeros_like(rest))
    return torch.cat(parts)


def in_slot_order(part: torch.Tensor, group: torch.distributed.ProcessGroup) -> torch.Tensor:
    """All slots [s·n, …] from each context-parallel process's two stretches [s, …]; gradients are summed on the way back."""
    gathered = gather_from_sequence_parallel_region(part.contiguous(), group=group)
    stretches = gathered.chunk(2 * group.size())
    return torch.cat([*stretches[::2], *stretches[::-2]])


class BlockRangeAttention(MegatronModule):
    """Megatron's `core_attention` for block ranges: names the class in `SelfAttentionSubmodules.core_attention`.

    Under context parallelism each process has the queries of its stretches and gathers everyone's keys and values: with
    grouped queries these are few, and a block may see any slot of its document. Without dropout. Raises ValueError at once
    for what it cannot do: attention dropout, query-key layer scaling. The GPU path (FlexAttention, compiled) is tested for
    its block mask only; it has not been run on a GPU.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: Any = None,
    ) -> None:
        super().__init__(config=config)
        if config.attention_dropout if attention_dropout is None else attention_dropout:
            raise ValueError("block-range attention has no dropout: set attention_dropout to 0")
        if config.apply_query_key_layer_scaling:
            raise ValueError("block-range attention does not scale by layer: set apply_query_key_layer_scaling to false")
        self.layer_number = layer_number
        self.softmax_scale = softmax_scale
        self.context = pg_collection.cp if config.context_parallel_size > 1 else None

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> torch.Tensor:
        """query [s, b, h, d], key and value [s, b, g, d] → [s, b, h·d]. Masks but `packed_seq_params` are not looked at."""
        params = packed_seq_params
        if not isinstance(params, BlockRangeParams):
            raise TypeError("block-range attention needs packed_seq_params=BlockRangeParams")
        if self.context is not None:
            key, value = in_slot_order(key, self.context), in_slot_order(value, self.context)
        if params.block_mask is not None:
            q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
            out = compiled()(
                q, k, v, block_mask=params.block_mask, scale=self.softmax_scale, enable_gqa=q.size(1) != k.size(1)
            ).permute(2, 0, 1, 3)
        else:
            if params.store is not None:
                key, value = params.store.append(self.layer_number, key, value)
            rows = [
                run_calls(calls, query[:, row], key[:, row], value[:, row], self.softmax_scale)
                for row, calls in enumerate(params.calls)
            ]
            out = torch.stack(rows, dim=1)
        return out.reshape(out.size(0), out.size(1), -1)
