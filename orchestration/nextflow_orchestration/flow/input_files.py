"""The run's input files: those the recipe names, and the sample, made when it is asked for and not there yet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nextflow_data.sources.base import SourceConfig

from nextflow_orchestration.recipes.run import SAMPLE, Recipe


def source_files(recipe: Recipe, progress: Callable[[int, int | None, str], None]) -> tuple[list[SourceConfig], str]:
    """The entries with files that are there, and a word about them. Raises what `sample.warc.build` raises when the
    packages cannot be had."""
    entries = recipe.entries()
    if recipe.input and SAMPLE in recipe.input:
        path = recipe.root / "input" / "sample.warc.gz"
        if not path.is_file():
            from nextflow_orchestration.sample.warc import build

            build(path, recipe.root / "input" / "wheels", lambda note: progress(0, None, note))
        files = tuple(str(path) if name == SAMPLE else name for name in recipe.input)
        entries = [entry.model_copy(update={"files": files}) for entry in entries]
    named = [name for entry in entries for name in entry.files]
    size = sum(Path(name).stat().st_size for name in named)
    return entries, f"{', '.join(named)} ({size / 1e6:.1f} MB)"
