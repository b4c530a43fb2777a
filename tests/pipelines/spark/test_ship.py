"""The archive of our packages: the same bytes each time, and enough to import from alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from nextflow_data.rules.rule import rules
from nextflow_pipelines.spark.ship import write_archive

PROGRAM = r"""
import pathlib, sys
names = ("nextflow_data", "nextflow_tokenize", "nextflow_pipelines")
sys.path[:] = [sys.argv[1], *(p for p in sys.path if not any(pathlib.Path(p, name).is_dir() for name in names))]
from nextflow_data.config import IngestConfig
from nextflow_data.rules.rule import rules
print(IngestConfig.__module__, IngestConfig().identity(), rules.names(), sep="\n")
print(all(sys.modules[name].__file__.startswith(sys.argv[1]) for name in sys.modules if name.startswith("nextflow_")))
"""


def test_the_archive_is_the_same_bytes_and_is_imported_from(tmp_path: Path) -> None:
    one, two = tmp_path / "one.zip", tmp_path / "two.zip"
    write_archive(one)
    write_archive(two)
    assert one.read_bytes() == two.read_bytes()
    done = subprocess.run([sys.executable, "-c", PROGRAM, one], capture_output=True, text=True, check=False)
    # Parts are found in its folders, and recorded defaults in its files: at them nothing is in the identity.
    assert done.stdout.split("\n")[:4] == ["nextflow_data.config", "{}", str(rules.names()), "True"], done.stderr
