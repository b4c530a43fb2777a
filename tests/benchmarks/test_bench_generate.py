"""The generation benchmark from end to end on its tiny shape: its seconds mean nothing here, its sums and report do."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "bench_generate.py"


@pytest.mark.slow
def test_the_tiny_shape(tmp_path):
    command = [sys.executable, SCRIPT, "--small", "--level", "128", "--rounds", "1", "--reports", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.iterdir()
    text = path.read_text(encoding="utf-8")
    assert path.name.startswith("generate-small-") and "open: no GPU" in text and "row of the 7B shape" in text
    scales = [line.split("|") for line in text.splitlines() if line.count("|") == 6 and "%" in line]
    assert [int(cells[3]) for cells in scales] == [1, 4, 9, 16, 25, 36, 49, 64]
    assert sum(float(cells[5].strip(" %")) for cells in scales) == pytest.approx(100, abs=0.5)
    assert "122,208 h² + 256,215,912 h | 884,736 h² + 1,207,959,552 h" in text and "| 5.96 |" in text
