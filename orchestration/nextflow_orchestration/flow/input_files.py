"""The run's input files: those the recipe names, and the sample, made when it is asked for and not there yet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nextflow_orchestration.recipes.run import SAMPLE, Recipe


def source_files(recipe: Recipe, progress: Callable[[int, int | None, str], None]) -> tuple[list[Path], str]:
    """The files, and a word about them. Raises what `sample_warc.build` raises when the packages cannot be had."""
    files = []
    for name in recipe.input:
        if name != SAMPLE:
            files.append(Path(name))
            continue
        from nextflow_orchestration.sample.warc import build

        path = recipe.root / "input" / "sample.warc.gz"
        if not path.is_file():
            build(path, recipe.root / "input" / "wheels", lambda note: progress(0, None, note))
        files.append(path)
    size = sum(path.stat().st_size for path in files)
    return files, f"{', '.join(str(path) for path in files)} ({size / 1e6:.1f} MB)"
