"""The benchmark scripts run from end to end, tiny: their numbers mean nothing here, their checks and reports do."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow
FOLDER = Path(__file__).parents[2] / "benchmarks"


def run(script, *arguments):
    return subprocess.run([sys.executable, FOLDER / script, *arguments], capture_output=True, text=True, timeout=300)


def only_report(folder):
    (path,) = folder.iterdir()
    return path, path.read_text(encoding="utf-8")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_speed_with_codes_compared(tmp_path):
    done = run("bench_tokenizer.py", "--quick", "--batch", "2", "--reports", tmp_path)
    assert done.returncode == 0, done.stderr
    path, text = only_report(tmp_path)
    assert path.name.startswith("tokenizer-") and path.suffix == ".md"
    for title in ("Features to codes: images/s", "Whole encoding, small networks: images/s", "peak memory"):
        assert title in text
    assert text.count("| tiny, 128 |") == 3
    assert "Device:" in text and "torch" in text and "`python benchmarks/bench_tokenizer.py --quick" in text


def test_other_codes_stop_the_benchmark(tmp_path):
    """The comparison of codes sees a search that takes the second nearest."""
    script = (
        "import sys, runpy; from nextflow_tokenize.vision.codes import quantizer;"
        "search = quantizer.largest_products;"
        "quantizer.largest_products = lambda q, k, n: tuple(part[:, 1:] for part in search(q, k, n + 1));"
        f"sys.path.insert(0, {str(FOLDER)!r}); sys.argv = ['bench_tokenizer.py', '--quick', '--reports', {str(tmp_path)!r}];"
        f"runpy.run_path({str(FOLDER / 'bench_tokenizer.py')!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "codes differ" in done.stderr
    assert not list(tmp_path.iterdir())


def test_bytes_of_real_shards(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    noise = np.random.default_rng(0)
    for number, size in enumerate([(128, 128), (300, 200), (200, 300)]):
        Image.fromarray(noise.integers(0, 256, (*size, 3), dtype=np.uint8)).save(pictures / f"{number}.png")
    (pictures / "notes.txt").write_text("no picture")
    done = run("bench_bytes.py", "--quick", "--pictures", pictures, "--reports", tmp_path / "reports")
    assert done.returncode == 0, done.stderr
    _, text = only_report(tmp_path / "reports")
    header, _, row = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    )
    cells = dict(zip(header, row, strict=True))
    assert (cells["level"], cells["pictures"]) == ("128", "3")
    number = {name: float(cell.replace(",", "")) for name, cell in cells.items() if "%" not in cell and name != "ratio"}
    # uint16, twice; one header of 128 bytes each.
    assert number["bare, twice"] == pytest.approx(4 * number["codes"], abs=2)
    assert number["uint16 .npy"] == pytest.approx(2 * number["codes"] + 128, abs=2)
    assert number["int64 .npy"] == pytest.approx(8 * number["codes"] + 128, abs=4)
    assert number["shard set"] > number["tars"] > number["bare, twice"]


def test_a_level_without_pictures_is_said(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "small.png")
    done = run("bench_bytes.py", "--levels", "1024", "--pictures", tmp_path, "--reports", tmp_path / "reports")
    assert done.returncode == 1
    assert "no picture is large enough for level 1024" in done.stderr
