"""What a stranger installs, for each Python that this machine has: the base, then [data], each used for real.

Nothing of the working tree is on the path: what runs is the built wheel.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parents[2]
SHARDS = HERE / "tests" / "tokenize" / "fixtures" / "shards"
pytestmark = pytest.mark.slow

_TO_CAPTION = """
import sys
from pathlib import Path
from nextflow_orchestration.recipes.run import load_recipe
from nextflow_pipelines.registry import STAGES, run_stage
from nextflow_pipelines.spark.context import RunContext
recipe = load_recipe(Path(sys.argv[1]), [])
context, results = RunContext(recipe.root, recipe.spark), {}
for name in list(STAGES)[: list(STAGES).index("caption") + 1]:
    results[name] = run_stage(name, context, recipe.sections(), results, recipe.entries())
print(results["caption"].counts["rows"]["documents"])
"""


def _works(python: str | Path, version: str) -> bool:
    asked = subprocess.run(
        [python, "-c", "import sys, venv; print('%d.%d' % sys.version_info[:2])"], capture_output=True, text=True
    )
    return asked.returncode == 0 and asked.stdout.strip() == version


def _python(version: str) -> str | None:
    """An interpreter of that version: on the path, or one of pyenv's."""
    found = [
        shutil.which(f"python{version}"),
        *sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python")),
    ]
    return next((str(one) for one in found if one is not None and _works(one, version)), None)


@pytest.fixture(scope="module", params=["3.11", "3.12", "3.13"])
def environment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The bin folder of a new environment with the base installed."""
    python = _python(request.param)
    if python is None:
        pytest.skip(f"no Python {request.param} on this machine")
    folder = tmp_path_factory.mktemp("install") / "venv"
    subprocess.run([python, "-m", "venv", folder], check=True)
    _install(folder / "bin", str(HERE))
    yield folder / "bin"
    shutil.rmtree(folder)


def _install(binaries: Path, what: str) -> None:
    command = [binaries / "python", "-m", "pip", "install", "--quiet", "--constraint", HERE / "constraints.txt", what]
    done = subprocess.run(command, cwd=binaries, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def _mnf(binaries: Path, *arguments: str | Path) -> str:
    values = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([binaries / "mnf", *arguments], cwd=binaries, env=values, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_base_then_the_data_side(environment: Path, small_warc: Path, tmp_path: Path) -> None:
    """The base helps, reads a recipe and audits a shipped set; with [data], documents come out of a WARC."""
    assert "audit" in _mnf(environment, "--help")
    assert "spark:" in _mnf(environment, "recipe", HERE / "recipes" / "quickstart.yaml")
    assert "nothing is wrong" in _mnf(environment, "audit", SHARDS, "--report", tmp_path / "audit.html")
    assert (tmp_path / "audit.html").stat().st_size > 10_000
    values = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | {"COLUMNS": "600"}
    seen = subprocess.run([environment / "mnf", "doctor"], cwd=tmp_path, env=values, capture_output=True, text=True)
    assert seen.returncode == 1 and "pip install 'megatron-nextflow[data]'" in seen.stdout, seen.stderr

    _install(environment, f"{HERE}[data]")
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"name: mine\nroot: {tmp_path / 'run'}\ninput: [{small_warc}]\nspark: {{files: 2, partitions: 2}}\n")
    assert "name: mine" in _mnf(environment, "recipe", recipe)
    command = [environment / "python", "-c", _TO_CAPTION, recipe]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "10"
