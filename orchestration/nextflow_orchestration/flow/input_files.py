"""The run's input files: those the recipe names, and the sample, made when it is asked for and not there yet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nextflow_orchestration.recipes.run import SAMPLE, Recipe


def source_files(recipe: Recipe, progress: Callable[[int, int | None, str], None]) -> tuple[list[Path], str]:
    """The files, and a word about them. Raises what `sample_warc.build` raises when the packages cannot be had."""
    sample = _sample(recipe)
    if SAMPLE in recipe.input and not sample.is_file():
        from nextflow_orchestration.sample.warc import build

        build(sample, recipe.root / "input" / "wheels", lambda note: progress(0, None, note))
    files = _files(recipe)
    size = sum(path.stat().st_size for path in files)
    return files, f"{', '.join(str(path) for path in files)} ({size / 1e6:.1f} MB)"


def present_files(recipe: Recipe) -> list[Path] | None:
    """The files, where all are there; None where the sample has not been made."""
    return None if SAMPLE in recipe.input and not _sample(recipe).is_file() else _files(recipe)


def _sample(recipe: Recipe) -> Path:
    return recipe.root / "input" / "sample.warc.gz"


def _files(recipe: Recipe) -> list[Path]:
    return [_sample(recipe) if name == SAMPLE else Path(name) for name in recipe.input]
