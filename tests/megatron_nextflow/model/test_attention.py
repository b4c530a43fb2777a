"""Block-range attention against dense masked attention in float64, forward and gradients, and its plan of calls."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.tensor_parallel import checkpoint
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_nextflow.model.attention import BlockRangeAttention, BlockRangeParams, plan_calls
from megatron_nextflow.model.flex_attention import block_mask_of

Ranges = list[tuple[int, int]]


@st.composite
def ranges_of_packs(draw: st.DrawFn, longest: int = 40) -> Ranges:
    """Ranges of a pack: documents of blocks, a block one token or some, then padding; any block sizes in any order."""
    found: Ranges = []
    for _ in range(draw(st.integers(0, 4))):
        start = len(found)
        for size in draw(st.lists(st.one_of(st.just(1), st.integers(1, longest)), min_size=1, max_size=8)):
            end = len(found) + size
            found += [(start, end)] * size
    for _ in range(draw(st.integers(0 if found else 1, 5))):
        found.append((len(found), len(found) + 1))
    return found


def visible_of(rows: list[Ranges]) -> torch.Tensor:
    """[2, b, s], shorter rows padded with slots that see themselves."""
    length = max(len(row) for row in rows)
    padded = [row + [(i, i + 1) for i in range(len(row), length)] for row in rows]
    return torch.tensor(padded, dtype=torch.int32).permute(2, 0, 1).contiguous()


def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Softmax attention with the whole mask, written out: q [s, b, h, d], k and v [s, b, g, d]."""
    s, b, h, d = q.shape
    k, v = (x.repeat_interleave(h // x.shape[2], dim=2) for x in (k, v))
    scores = torch.einsum("ibhd,jbhd->bhij", q, k) / math.sqrt(d)
    j = torch.arange(s)
    mask = (j >= visible[0].unsqueeze(-1)) & (j < visible[1].unsqueeze(-1))
    weights = scores.masked_fill(~mask.unsqueeze(1), -torch.inf).softmax(-1)
    return torch.einsum("bhij,jbhd->ibhd", weights, v).reshape(s, b, h * d)


def attention(heads: int = 4, groups: int = 2, **settings_: object) -> BlockRangeAttention:
    config = TransformerConfig(
        num_layers=1, hidden_size=8 * heads, num_attention_heads=heads, num_query_groups=groups,
        **{"attention_dropout": 0.0, "apply_query_key_layer_scaling": False, **settings_},
    )  # fmt: skip
    return BlockRangeAttention(config, 1, AttnMaskType.causal, "self")


def inputs(visible: torch.Tensor, heads: int, groups: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(visible.shape[2])
    shape = (visible.shape[2], visible.shape[1])
    numbers = (heads, groups, groups)
    return [torch.randn(*shape, n, 8, dtype=torch.float64, generator=generator, requires_grad=True) for n in numbers]


@settings(max_examples=60, deadline=None)
@given(st.lists(ranges_of_packs(), min_size=1, max_size=2), st.sampled_from([(4, 2), (2, 2), (3, 1)]))
def test_equals_dense_masked_attention_forward_and_backward(rows: list[Ranges], heads: tuple[int, int]) -> None:
    visible = visible_of(rows)
    qkv = inputs(visible, *heads)
    wanted = dense(*qkv, visible)
    found = attention(*heads)(*qkv, packed_seq_params=BlockRangeParams.of(visible))
    torch.testing.assert_close(found, wanted, atol=1e-10, rtol=1e-10)
    upstream = torch.randn(wanted.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gradients = [torch.autograd.grad(x, qkv, upstream, materialize_grads=True) for x in (found, wanted)]
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=1e-9)


def test_equals_dense_attention_where_every_kind_of_call_occurs() -> None:
    """Long text, a large block, small blocks together, text after an image, one lone token, padding."""
    blocks = [[1] * 300 + [4, 9, 16, 200] + [1] * 150 + [40, 60, 128, 1, 1], [1], [7], [1] * 20]
    row: Ranges = []
    for document in blocks:
        start = len(row)
        for size in document:
            row += [(start, len(row) + size)] * size
    visible = visible_of([row + [(i, i + 1) for i in range(len(row), len(row) + 9)]])
    kinds = [call.kind for call in plan_calls(visible[:, 0].numpy())]
    assert {"full", "causal", "ends", "self"} == set(kinds)
    qkv = inputs(visible, 4, 2)
    found = attention()(*qkv, packed_seq_params=BlockRangeParams.of(visible))
    torch.testing.assert_close(found, dense(*qkv, visible), atol=1e-10, rtol=1e-10)


@settings(max_examples=100, deadline=None)
@given(ranges_of_packs(), st.integers(1, 50))
def test_the_plan_covers_each_query_once_with_its_own_range(ranges: Ranges, chunk: int) -> None:
    covered = []
    for call in plan_calls(np.array(ranges).T, chunk=chunk):
        for slot in range(call.first, call.last):
            stop = {"full": call.stop, "causal": slot + 1, "self": slot + 1}.get(call.kind)
            if call.ends is not None:
                stop = int(call.ends[slot - call.first])
            covered.append((slot if call.kind == "self" else call.start, stop))
    assert covered == ranges


def test_small_blocks_share_a_call_and_padding_costs_one() -> None:
    sizes = [1] * 60 + [4, 9, 16, 25]
    row: Ranges = []
    for size in sizes:
        row += [(0, len(row) + size)] * size
    row += [(i, i + 1) for i in range(len(row), len(row) + 500)]
    calls = plan_calls(np.array(row).T)
    assert [(c.kind, c.last - c.first) for c in calls] == [("ends", 114), ("self", 500)]


def test_cached_queries_continue_where_the_keys_end() -> None:
    visible = np.array([[2, 2, 2], [13, 13, 14]])
    calls = plan_calls(visible, offset=11)
    assert [(c.first, c.last, c.start, c.stop) for c in calls] == [(11, 14, 2, 14)]
    assert calls[0].ends is not None and calls[0].ends.tolist() == [13, 13, 14]
    assert plan_calls(np.zeros((2, 0), int), offset=5) == ()


@pytest.mark.parametrize("ranges", [[(0, 1), (0, 1)], [(0, 3), (0, 3)], [(1, 2), (0, 2)], [(-1, 1)]])
def test_ranges_that_miss_their_own_slot_or_leave_the_sequence_are_refused(ranges: Ranges) -> None:
    with pytest.raises(ValueError, match="own slot"):
        plan_calls(np.array(ranges).T)


def test_gradients_survive_activation_recomputation() -> None:
    row: Ranges = [(0, 1), (0, 2), *[(0, 6)] * 4, (0, 7), (7, 8)]
    visible = visible_of([row])
    params, module = BlockRangeParams.of(visible), attention()
    direct, again = inputs(visible, 4, 2), inputs(visible, 4, 2)
    module(*direct, packed_seq_params=params).square().sum().backward()
    recomputed = checkpoint(lambda q, k, v: module(q, k, v, packed_seq_params=params), False, *again)
    recomputed.square().sum().backward()
    for one, other in zip(direct, again, strict=True):
        assert one.grad is not None and torch.equal(one.grad, other.grad)


@settings(max_examples=30, deadline=None)
@given(st.lists(ranges_of_packs(200), min_size=1, max_size=2))
def test_the_gpu_block_mask_names_every_block_that_is_seen_and_calls_whole_only_whole_ones(rows: list[Ranges]) -> None:
    visible = visible_of(rows)
    mask = block_mask_of(visible)
    length = visible.shape[2]
    blocks = max(2, -(-length // 128))
    j = torch.arange(blocks * 128)
    for row in range(len(rows)):
        seen = torch.zeros(blocks * 128, blocks * 128, dtype=torch.bool)
        seen[:length] = (j >= visible[0, row, :, None]) & (j < visible[1, row, :, None])
        tiles = seen.view(blocks, 128, blocks, 128).transpose(1, 2)
        for q in range(blocks):
            partial = set(mask.kv_indices[row, 0, q, : mask.kv_num_blocks[row, 0, q]].tolist())
            whole = set(mask.full_kv_indices[row, 0, q, : mask.full_kv_num_blocks[row, 0, q]].tolist())
            assert not partial & whole
            real = max(0, length - q * 128)
            assert real or not partial | whole
            assert all(tiles[q, k][:real].all() for k in whole)
            assert {k for k in range(blocks) if tiles[q, k].any()} <= partial | whole
        queries = torch.arange(length)[:, None]
        zero = torch.zeros((), dtype=torch.int64)
        assert torch.equal(mask.mask_mod(zero + row, zero, queries, j[:length]), seen[:length, :length])


_LENGTHS = """
import torch
from torch.nn.attention.flex_attention import flex_attention
from megatron_nextflow.model.flex_attention import block_mask_of

compiled = torch.compile(flex_attention, backend="eager", fullgraph=True, recompile_limit=2)
for length in (512, 272, 1040, 48, 192, 256, 656, 400, 128, 2048, 640, 1008):
    visible = torch.stack([torch.zeros(length), torch.arange(1, length + 1)]).int()[:, None]
    q, k, v = (torch.randn(1, heads, length, 16) for heads in (4, 2, 2))
    with torch.no_grad():
        found = compiled(q, k, v, block_mask=block_mask_of(visible), enable_gqa=True)
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(found, wanted)
"""


@pytest.mark.slow
def test_rows_of_many_lengths_share_few_graphs() -> None:
    """torch compiles one graph for the first length and one for all others; at a third it raises."""
    environment = {name: value for name, value in os.environ.items() if name != "TORCH_COMPILE_DISABLE"}
    done = subprocess.run([sys.executable, "-c", _LENGTHS], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


@settings(max_examples=40, deadline=None)
@given(ranges_of_packs(60), st.integers(1, 4))
def test_stretches_of_a_row_see_what_the_whole_row_sees(row: Ranges, size: int) -> None:
    """As under context parallelism: each process's two stretches of queries, with everyone's keys."""
    visible = visible_of([row + [(i, i + 1) for i in range(len(row), -(-len(row) // (2 * size)) * 2 * size)]])
    length = visible.shape[2]
    q, k, v = inputs(visible, 2, 1)
    wanted = dense(q, k, v, visible)
    stretch = length // (2 * size)
    for rank in range(size):
        spans = [(n * stretch, (n + 1) * stretch) for n in (rank, 2 * size - 1 - rank)]
        slots = torch.cat([torch.arange(*span) for span in spans])
        params = BlockRangeParams.of(visible[..., slots], "cpu", spans, length)
        found = attention(2, 1)(q[slots], k, v, packed_seq_params=params)
        torch.testing.assert_close(found, wanted[slots], atol=1e-10, rtol=1e-10)
        mask = block_mask_of(visible[..., slots], length)
        queries, keys = torch.arange(len(slots))[:, None], torch.arange(length)
        zero = torch.zeros((), dtype=torch.int64)
        seen = (keys >= visible[0, 0, slots, None]) & (keys < visible[1, 0, slots, None])
        assert torch.equal(mask.mask_mod(zero, zero, queries, keys), seen)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"attention_dropout": 0.1}, "attention_dropout"), ({"apply_query_key_layer_scaling": True}, "layer_scaling")],
)
def test_what_it_cannot_do_is_refused_when_built(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attention(**change)  # type: ignore[arg-type]


def test_without_ranges_it_does_not_guess() -> None:
    visible = visible_of([[(0, 1)]])
    with pytest.raises(TypeError, match="BlockRangeParams"):
        attention()(*inputs(visible, 4, 2))
