"""What is decided about checkpoints without a training: what is kept, what is not whole, what is not safe to read."""

from __future__ import annotations

import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_nextflow.checkpoint.format import CheckpointFile
from megatron_nextflow.checkpoint.retention import superfluous
from megatron_nextflow.checkpoint.verify import read_metadata, tensor_problem
from megatron_nextflow.runtime.training_folder import CheckpointError


@pytest.mark.parametrize(
    ("found", "newest", "keep", "every", "removed"),
    [
        ([2, 4, 6], 6, 2, None, [2]),
        ([2, 4, 6], 6, 5, None, []),
        ([10, 20, 30, 40, 45], 45, 1, 20, [10, 30]),
        ([0, 1, 2], 2, 1, 5, [0, 1]),
        ([4, 5, 6], 5, 1, None, [4]),  # 6 is of a training that was set back to 4
    ],
)
def test_what_is_superfluous(found: list[int], newest: int, keep: int, every: int | None, removed: list[int]) -> None:
    assert superfluous(found, newest, keep, every) == removed


@dataclass(frozen=True)
class _Index:
    fqn: str
    offset: tuple[int, ...]


def test_problems_of_tensors_are_seen() -> None:
    def described(size: tuple[int, ...], *parts: tuple[tuple[int, ...], tuple[int, ...], int]) -> Any:
        chunks = [SimpleNamespace(offsets=offsets, sizes=sizes) for offsets, sizes, _ in parts]
        places = {_Index("a", offsets): SimpleNamespace(relative_path="f", offset=at, length=10) for offsets, _, at in parts}
        return SimpleNamespace(state_dict_metadata={"a": SimpleNamespace(size=size, chunks=chunks)}, storage_data=places)

    files = {"megatron/f": CheckpointFile(size=20, sha256="")}
    whole = described((4, 3), ((0, 0), (2, 3), 0), ((2, 0), (2, 3), 10))
    assert tensor_problem(whole, files) is None and tensor_problem(whole, files, {"a": (4, 3)}) is None
    assert tensor_problem(described((4, 3), ((0, 0), (2, 3), 0)), files) == "a is there in part only"
    assert tensor_problem(described((2, 3), ((0, 0), (2, 3), 11)), files) == "a at (0, 0) lies in no file of it"
    assert tensor_problem(whole, {}) == "a at (0, 0) lies in no file of it"
    assert tensor_problem(whole, files, {"a": (4, 4)}) == "a has shape (4, 3), the model's is (4, 4)"
    assert tensor_problem(whole, files, {"a": (4, 3), "b": (1,)}) == "b has shape None, the model's is (1,)"
    assert tensor_problem(whole, files, {}) == "a has shape (4, 3), the model's is None"


class _Evil:
    """Unpickling it would run a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_would_run_code_is_refused_unread(
    protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "megatron").mkdir()
    (tmp_path / "megatron" / ".metadata").write_bytes(pickle.dumps(_Evil(), protocol=protocol))
    with pytest.raises(CheckpointError, match=r"not a description of tensors: it names \w+\.system"):
        read_metadata(tmp_path)
    assert not (tmp_path / "pwned").exists()
