"""The search for nearest codes against a full matrix and a stable sort, on whole numbers: exact, and full of ties."""

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nextflow_tokenize.vision.codes import nearest
from nextflow_tokenize.vision.codes.nearest import largest_products
from torch.utils._python_dispatch import TorchDispatchMode


def whole_numbers(rows, width, seed, limit=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-limit, limit + 1, (rows, width), generator=generator).float()


def by_sorting(query, keys, k):
    found = (query @ keys.t()).sort(dim=1, descending=True, stable=True)
    return found.values[:, :k], found.indices[:, :k]


@settings(max_examples=60, deadline=None)
@given(
    codes=st.integers(1, 400),
    count=st.integers(1, 150),
    width=st.integers(1, 6),
    k=st.integers(1, 12),
    rows=st.sampled_from([16, 64, 128]),
    block=st.sampled_from([16, 32, 64]),
    blocks=st.integers(1, 4),
    seed=st.integers(0, 2**31),
)
def test_any_tiling_finds_what_a_stable_sort_finds(codes, count, width, k, rows, block, blocks, seed):
    query, keys, k = whole_numbers(count, width, seed), whole_numbers(codes, width, seed + 1), min(k, codes)
    with mock.patch.multiple(nearest, ROWS=rows, BLOCK=block, TILE=block * blocks):
        values, places = largest_products(query, keys, k)
    expected = by_sorting(query, keys, k)
    assert torch.equal(values, expected[0])
    assert torch.equal(places, expected[1])


@pytest.mark.parametrize("k", [1, 10])
def test_of_equal_codes_the_lowest_places_come_first(k):
    query = whole_numbers(70, 4, 0)
    keys = whole_numbers(1, 4, 1).expand(20_000, -1).contiguous()
    assert torch.equal(largest_products(query, keys, k)[1], torch.arange(k).expand(70, -1))


def test_places_far_apart_and_at_both_ends():
    keys = torch.zeros(20_001, 2)
    keys[[0, 8191, 8192, 20_000]] = torch.tensor([[4.0, 0.0], [3.0, 0.0], [5.0, 0.0], [6.0, 0.0]])
    values, places = largest_products(torch.tensor([[1.0, 1.0]]), keys, 6)
    assert values.tolist() == [[6, 5, 4, 3, 0, 0]]
    assert places.tolist() == [[20_000, 8192, 0, 8191, 1, 2]]


def test_both_zeros_are_equal():
    keys = torch.tensor([[-1.0], [0.0], [-0.0], [0.0]])
    assert largest_products(torch.tensor([[1.0]]), keys, 3)[1].tolist() == [[1, 2, 3]]


def test_a_row_does_not_depend_on_the_others():
    generator = torch.Generator().manual_seed(0)
    query, keys = torch.randn(200, 40, generator=generator), torch.randn(9000, 40, generator=generator)
    values, places = largest_products(query, keys, 3)
    for chosen in ([0], [199], [70, 3, 130]):
        alone = largest_products(query[chosen], keys, 3)
        assert torch.equal(alone[0], values[chosen])
        assert torch.equal(alone[1], places[chosen])


def test_rows_that_are_not_numbers_still_get_codes():
    values, places = largest_products(torch.full((3, 4), torch.nan), whole_numbers(100, 4, 0), 5)
    assert values.isnan().all()
    assert 0 <= int(places.min()) <= int(places.max()) < 100


@pytest.mark.parametrize("k", [0, 8])
def test_a_number_of_neighbours_that_cannot_be_is_refused(k):
    with pytest.raises(ValueError, match=r"k must be 1\.\.7"):
        largest_products(torch.zeros(2, 3), torch.zeros(7, 3), k)


class Largest(TorchDispatchMode):
    """Entries of the largest tensor that any operator returns."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.entries = max(self.entries, tensor.numel())
        return out


@pytest.mark.parametrize("k", [1, 10])
def test_memory_is_bounded_by_a_tile(k):
    query, keys = torch.randn(4096, 8), torch.randn(20_000, 8)
    with Largest() as seen:
        largest_products(query, keys, k)
    # Not the 82 million products of all rows with all codes.
    assert seen.entries == nearest.ROWS * nearest.TILE


# --- the other path, for GPUs ---


def test_the_plain_search_finds_the_same():
    query, keys = whole_numbers(300, 5, 0), whole_numbers(1000, 5, 1)
    for k in (1, 6):
        with mock.patch.object(nearest, "GPU_ELEMENTS", 100_000):
            values, places = nearest._by_rows(query, keys, k)
        assert torch.equal(values, by_sorting(query, keys, k)[0])
        assert torch.equal((query @ keys.t()).gather(1, places), values)


def test_the_plain_search_compiles_in_one_graph():
    query, keys = whole_numbers(100, 5, 0), whole_numbers(200, 5, 1)
    compiled = torch.compile(nearest._by_rows, fullgraph=True, backend="eager")
    for k in (1, 4):
        assert torch.equal(compiled(query, keys, k)[0], by_sorting(query, keys, k)[0])
