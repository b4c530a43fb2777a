"""What the parallel layout knows of its own dimensions."""

from __future__ import annotations

from megatron_nextflow.config.model import ParallelConfig, layout_words


def test_sizes_words_and_processes() -> None:
    parallel = ParallelConfig(tp=2, pp=2, vpp=3, cp=4, sequence_parallel=True)
    assert parallel.sizes() == {"tp": 2, "pp": 2, "vpp": 3, "cp": 4}
    assert (parallel.model_parallel, parallel.chunks, parallel.copies(48)) == (16, 6, 3)
    assert parallel.words(48) == "tp 2 × pp 2 × vpp 3 × cp 4 × dp 3"
    assert ParallelConfig().words(1) == "1 process" and ParallelConfig().words(2) == "dp 2"
    # The part of a row on each of 4 · 2 processes is a multiple of 16 slots, in two equal stretches.
    assert parallel.row_multiple(16) == 128 and ParallelConfig(cp=2).row_multiple(1) == 4


def test_a_record_of_other_dimensions_is_still_told() -> None:
    assert layout_words({"tp": 2, "ep": 4}, 16) == "tp 2 × ep 4 × dp 2"
    assert layout_words({}, 1) == "1 process"
