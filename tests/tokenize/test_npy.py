"""The .npy members: numpy reads what we write, and we read nothing else."""

import io
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from nextflow_tokenize.npy import NpyError, code_dtype, from_npy, to_npy

typed = st.sampled_from(["<i4", "|u1", "<u2", "<u4"]).flatmap(lambda name: arrays(np.dtype(name), st.integers(0, 300)))


@given(typed)
def test_numpy_reads_it_as_it_was(array: np.ndarray) -> None:
    data = to_npy(array)
    read = np.load(io.BytesIO(data), allow_pickle=False)
    assert read.dtype == array.dtype
    assert data[6:8] == b"\x01\x00"
    np.testing.assert_array_equal(read, array)
    np.testing.assert_array_equal(from_npy(data, array.dtype), array)


@given(typed, st.data())
def test_a_changed_header_is_refused(array: np.ndarray, data: st.DataObject) -> None:
    raw = bytearray(to_npy(array))
    raw[data.draw(st.integers(0, 127))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(NpyError, match="header differs at byte"):
        from_npy(bytes(raw), array.dtype)


@pytest.mark.parametrize("cut", [0, 5, 127, 129])
def test_a_cut_file_is_refused(cut: int) -> None:
    with pytest.raises(NpyError):
        from_npy(to_npy(np.arange(9, dtype="<i4"))[:cut], np.dtype("<i4"))


def test_other_types_shapes_and_pickles_are_refused() -> None:
    def saved(array: np.ndarray) -> bytes:
        out = io.BytesIO()
        np.save(out, array, allow_pickle=True)
        return out.getvalue()

    for array in (np.zeros(8, ">i4"), np.zeros(4, "<i8"), np.zeros((2, 4), "<i4"), np.array([{}, []], dtype=object)):
        with pytest.raises(NpyError):
            from_npy(saved(array), np.dtype("<i4"))
    with pytest.raises(NpyError):
        from_npy(pickle.dumps(np.zeros(64, "<i4")), np.dtype("<i4"))
    for array in (np.zeros(4, "<i8"), np.zeros((2, 2), "<i4")):
        with pytest.raises(ValueError, match="a shard holds one-dimensional arrays"):
            to_npy(array)


@pytest.mark.parametrize(
    ("size", "name"), [(1, "u1"), (256, "u1"), (257, "u2"), (65536, "u2"), (65537, "u4"), (1 << 32, "u4")]
)
def test_codes_take_the_smallest_type_that_holds_them(size: int, name: str) -> None:
    assert code_dtype(size) == np.dtype(name)
    assert np.iinfo(code_dtype(size)).max >= size - 1


def test_a_codebook_beyond_32_bits_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit 32 bits"):
        code_dtype((1 << 32) + 1)
