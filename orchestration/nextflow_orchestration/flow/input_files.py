"""The run's input files: those the recipe names, and the sample, made when it is asked for and not there yet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nextflow_data.sources.base import SourceConfig

from nextflow_orchestration.recipes.run import SAMPLE, Recipe


def source_files(recipe: Recipe, progress: Callable[[int, int | None, str], None]) -> tuple[list[SourceConfig], str]:
    """The entries with files that are there, and a word about them. Raises what `sample.warc.build` raises when the
    packages cannot be had."""
    sample = _sample(recipe)
    if _wants_sample(recipe) and not sample.is_file():
        from nextflow_orchestration.sample.warc import build

        build(sample, recipe.root / "input" / "wheels", lambda note: progress(0, None, note))
    entries = _entries(recipe)
    named = [name for entry in entries for name in entry.files]
    size = sum(Path(name).stat().st_size for name in named)
    return entries, f"{', '.join(named)} ({size / 1e6:.1f} MB)"


def present_files(recipe: Recipe) -> list[SourceConfig] | None:
    """The entries, where all files are there; None where the sample has not been made."""
    return None if _wants_sample(recipe) and not _sample(recipe).is_file() else _entries(recipe)


def _wants_sample(recipe: Recipe) -> bool:
    return SAMPLE in (recipe.input or ())


def _sample(recipe: Recipe) -> Path:
    return recipe.root / "input" / "sample.warc.gz"


def _entries(recipe: Recipe) -> list[SourceConfig]:
    if not _wants_sample(recipe):
        return recipe.entries()
    files = tuple(str(_sample(recipe)) if name == SAMPLE else name for name in recipe.input or ())
    return [entry.model_copy(update={"files": files}) for entry in recipe.entries()]
