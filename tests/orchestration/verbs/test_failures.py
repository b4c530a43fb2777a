"""How `mnf` ends: 2 and one line for a mistake in the request, 1 for what failed or is damaged."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest
from nextflow_data.common.errors import RequestError, exit_status
from nextflow_orchestration.cli import app
from nextflow_orchestration.verbs.failures import describe
from typer.testing import CliRunner, Result

REFUSALS = """
from nextflow_data.common.errors import RequestError
from nextflow_data.common.sockets import UnknownPart
from nextflow_pipelines.spark.java import JavaNotFound
from nextflow_pipelines.spark.gpus import GpuError
from nextflow_orchestration.recipes.errors import RecipeError
from nextflow_orchestration.runs.lineage import NoRun
from nextflow_orchestration.training.outcome import TrainingRefused
from megatron_nextflow.config.generate import GenerationError
from megatron_nextflow.launching.launch_record import AlreadyRunning
for kind in (UnknownPart, JavaNotFound, GpuError, RecipeError, NoRun, TrainingRefused, GenerationError, AlreadyRunning):
    assert issubclass(kind, RequestError), kind
import sys
assert "torch" not in sys.modules and "pyspark" not in sys.modules
"""


def mnf(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "300"})


def test_refusals_are_told_by_class_and_nothing_heavy_is_loaded_for_it() -> None:
    done = subprocess.run([sys.executable, "-c", REFUSALS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("error", "line", "status"),
    [
        (RequestError("say it otherwise"), "say it otherwise", 2),
        (FileNotFoundError(errno.ENOENT, "No such file", "gone"), "not found: gone", 2),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "here"), "a folder, where a file is wanted: here", 2),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "file/x"), "not a folder: file/x", 2),
        (PermissionError(errno.EACCES, "Permission denied", "shut"), "not permitted: shut", 2),
        (
            IsADirectoryError(errno.EISDIR, "Is a directory", ".made.writing", None, "made"),
            "a folder, where a file is wanted: made",
            2,
        ),
        (FileExistsError("out exists: name another folder"), "out exists: name another folder", 2),
        (OSError(errno.ENOSPC, "No space left on device", "/d"), "the disk is full (/d)", 1),
        (OSError(errno.EIO, "Input/output error"), "OSError: [Errno 5]", 1),
        (RuntimeError("unforeseen"), "RuntimeError: unforeseen (MNF_TRACEBACK=1 shows where)", 1),
    ],
)
def test_what_is_said_of_an_error(error: Exception, line: str, status: int) -> None:
    said, ends = describe(error)
    assert said.startswith(line) and "\n" not in said
    assert ends == exit_status(error) == status


def test_bad_paths_end_in_one_line_and_2(tmp_path: Path) -> None:
    odd = tmp_path / "a b#c ü'[x]"
    odd.mkdir()
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    (tmp_path / "nul").write_bytes(b"name: a\0b\n")
    (tmp_path / "deep").write_text("[" * 5000)
    given = [odd, "", *(tmp_path / name for name in ("missing", "empty", "binary", "nul", "deep"))]
    verbs = [
        ("recipe", "{}"),
        ("audit", "{}"),
        ("explain", "x", "--root", "{}"),
        ("page", "{}"),
        ("checkpoint", "list", "{}"),
    ]
    before = sorted(tmp_path.rglob("*"))
    for verb in verbs:
        for path in given:
            said = mnf(*(path if word == "{}" else word for word in verb))
            assert said.exit_code == 2 and said.output.count("\n") == 1, (verb, path, said.output)
            assert said.output.startswith("error: ")
    assert sorted(tmp_path.rglob("*")) == before


def test_audit_writes_nothing_beside_what_is_no_shard_set(tmp_path: Path, small_run) -> None:  # type: ignore[no-untyped-def]
    stage = next(small_run.root.glob("pack-*"))
    before = sorted(small_run.root.rglob("*"))
    said = mnf("audit", stage)  # has a manifest, a stage's
    assert said.exit_code == 2 and f"did you mean {stage}/shards?" in said.output
    assert sorted(small_run.root.rglob("*")) == before
    torn = tmp_path / "torn"
    torn.mkdir()
    (torn / "manifest.json").write_text("{")
    (torn / "shard-000000.tar").write_bytes(b"")
    assert mnf("audit", torn).exit_code == 1 and (tmp_path / "audit.html").is_file()
