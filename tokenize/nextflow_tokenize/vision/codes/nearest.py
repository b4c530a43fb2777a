"""The k largest products of each row with all codes: the hot path of quantisation, and the only place that has to be fast.

On a CPU rows × codes is done in tiles of one shape that stay in cache, and a tile is searched before the next is made, so
memory holds no matrix of rows × codes. Three things make it fast. The product is a 1×1 convolution, which torch gives to
oneDNN: on an AMD EPYC twice the speed of its matrix product, which is MKL's. A tile is searched by blocks of codes, because
a maximum is vectorised and its place is not: the k best blocks by their maxima hold the k best codes. And tiles come from
memory that the process keeps (`_keep_freed_memory`). One shape for all products also means that a row's codes never depend
on what shares its batch: a BLAS takes other kernels for other counts of rows, whose last bits differ.

The cost: a call's rows are padded to a multiple of ROWS, small codebooks and single images gain nothing or lose a little,
and there is a page of code where a GPU needs three lines (`_by_rows`). benchmarks/bench_tokenizer.py measures it.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

ROWS = 64
"""Rows of a tile: those of a call are padded to a multiple of it."""
TILE = 8192
"""Codes of a tile: with ROWS, 2 MiB of products in float32."""
BLOCK = 64
"""Codes of a block, of which only the maximum is looked at first; divides TILE."""
IMAGES = 16
"""A tile's codes are shown to the convolution as this many images: of fewer, on one thread, torch would not ask oneDNN."""
GPU_ELEMENTS = 1 << 26
"""Most products held at once on a GPU (256 MiB in float32)."""


def largest_products(query: Tensor, keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest products of each row of `query` [N, C] with the rows of `keys` [V, C], both float32.

    Returns values [N, k], descending, and places in `keys` int64 [N, k]; on a CPU the lowest place comes first of equals.
    Raises ValueError for k outside 1..V.
    """
    if not 1 <= k <= len(keys):
        raise ValueError(f"{len(keys)} codes have no {k} nearest: k must be 1..{len(keys)}")
    return _by_tiles(query, keys, k) if query.device.type == "cpu" else _by_rows(query, keys, k)


def _by_rows(query: Tensor, keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As many rows at a time, against all codes, as GPU_ELEMENTS allow; plain operators that torch.compile can take."""
    found = []
    for part in query.split(max(ROWS, GPU_ELEMENTS // len(keys))):
        products = part @ keys.t()
        found.append(products.max(dim=1, keepdim=True) if k == 1 else products.topk(k, dim=1))
    return torch.cat([values for values, _ in found]), torch.cat([places for _, places in found])


def _by_tiles(query: Tensor, keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Tile by tile, keeping of each the k blocks with the largest maxima; what they hold is ranked at the end."""
    _keep_freed_memory()
    short = -len(keys) % BLOCK
    keys = F.pad(keys, (0, 0, 0, short)) if short else keys
    values, places = [], []
    for part in query.split(ROWS):
        rows = torch.arange(len(part))
        part = F.pad(part, (0, 0, 0, ROWS - len(part)))
        kept, numbers = [], []
        for first in range(0, len(keys), TILE):
            products = _products(keys[first : first + TILE], part)[:, : len(rows)]
            if short and first + TILE >= len(keys):
                products[-short:] = -torch.inf
            blocks = products.unflatten(0, (-1, BLOCK))
            best = _largest(blocks.amax(dim=1), k).sort(dim=0).values
            kept.append(blocks[best, :, rows])
            numbers.append(best + first // BLOCK)
        candidates = torch.cat(kept).transpose(0, 1).flatten(1)
        at = _largest(candidates.t(), k).t()
        values.append(candidates.gather(1, at))
        places.append(torch.cat(numbers).t().gather(1, at // BLOCK) * BLOCK + at % BLOCK)
    return torch.cat(values), torch.cat(places)


def _products(keys: Tensor, rows: Tensor) -> Tensor:
    """[T, C] and [R, C] to [T, R]; T a multiple of IMAGES."""
    images = keys.view(IMAGES, -1, 1, keys.shape[1]).permute(0, 3, 1, 2)
    return F.conv2d(images, rows[:, :, None, None]).permute(0, 2, 3, 1).reshape(len(keys), -1)


def _largest(values: Tensor, k: int) -> Tensor:
    """Places [k, R], largest first and lowest of equals, of the k (or all n) largest of each column of `values` [n, R]."""
    if k == 1:
        return values.argmax(dim=0, keepdim=True)
    # topk takes any of equals, so places become part of the value: float32 as an integer of the same order, then the place.
    bits = (values.t() + 0.0).view(torch.int32)  # + 0.0: there are two zeros
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long() << 32
    return (ordered - torch.arange(len(values))).topk(min(k, len(values)), dim=1).indices.t()


@cache
def _keep_freed_memory() -> None:
    """Lets the C library keep what is freed, so that a tile is not mapped anew, page by page, each time.

    glibc maps blocks above a threshold and unmaps them when freed; freeing one untouched block raises it to that block's
    size (mallopt(3), M_MMAP_THRESHOLD). Without this a tile takes two to four times as long.
    """
    torch.empty(16 << 20, dtype=torch.uint8)
