"""Reading and writing the one kind of .npy that a shard holds: version 1.0, one dimension, C order, little-endian.

The reader does not interpret a header: it rebuilds the only header that an array of this type and size can have and compares
bytes. Nothing is evaluated, no object array can pass, and any damage to the 128 header bytes is seen. numpy.lib.format with
`allow_pickle=False` would be as safe, and parses each header as Python: 36 µs of processor time an array of 1,024 ids, 2.4
here (numpy 2.4), and a pack has three, so that `ShardSet.read` of a pack of 2,000 slots would take 390 µs and not 245. The
cost: these lines; and an .npy written by other software, though valid, is refused where its padding differs; `numpy.load`
reads ours.
Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

HEADER_BYTES = 128
"""Length of the header: our dictionary always fits the first multiple of 64 that leaves room for a 21-digit shape."""

TEXT_DTYPE = np.dtype("<i4")
_DESCRIPTIONS = ("<i4", "|u1", "<u2", "<u4")


class NpyError(ValueError):
    """An .npy member that is not what its place in the shard demands."""


def code_dtype(codebook_size: int) -> np.dtype[np.unsignedinteger]:
    """The smallest unsigned type that holds every code of a codebook: uint8 to 256 entries, uint16 to 65,536, uint32."""
    for name, bits in (("|u1", 8), ("<u2", 16), ("<u4", 32)):
        if codebook_size <= 1 << bits:
            return np.dtype(name)
    raise ValueError(f"a codebook of {codebook_size} entries does not fit 32 bits")


def _header(dtype: np.dtype, count: int) -> bytes:
    text = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': ({count},), }}".encode()
    body = text.ljust(HEADER_BYTES - 11) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body


def to_npy(array: NDArray) -> bytes:
    """The bytes of a one-dimensional array.

    Raises ValueError for a type or a number of dimensions that shards do not hold.
    """
    if array.dtype.str not in _DESCRIPTIONS or array.ndim != 1:
        raise ValueError(
            f"a shard holds one-dimensional arrays of {', '.join(_DESCRIPTIONS)}, not {array.ndim}-d {array.dtype.str}"
        )
    return _header(array.dtype, len(array)) + np.ascontiguousarray(array).tobytes()


def from_npy(data: bytes, dtype: np.dtype) -> NDArray:
    """A writable array of `dtype` from an .npy member. Raises NpyError saying what differs."""
    count, rest = divmod(len(data) - HEADER_BYTES, dtype.itemsize)
    if count < 0 or rest:
        raise NpyError(f"{len(data)} bytes are no header of {HEADER_BYTES} bytes and a whole number of {dtype.str} values")
    expected = _header(dtype, count)
    if data[:HEADER_BYTES] != expected:
        at = next(i for i, (a, b) in enumerate(zip(data, expected, strict=False)) if a != b)
        raise NpyError(f"the .npy header differs at byte {at} from that of {count} values of {dtype.str}")
    return np.frombuffer(data, dtype=dtype, offset=HEADER_BYTES).copy()
