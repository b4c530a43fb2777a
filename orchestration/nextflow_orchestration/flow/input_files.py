"""The run's input files: those the recipe names, and the sample, made when it is asked for and not there yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from nextflow_data.common.whole_files import file_sha256
from nextflow_data.sources.base import SourceConfig
from nextflow_data.storage.files import any_path, upload
from nextflow_data.storage.store_path import AnyPath
from nextflow_pipelines.inputs import is_listed

from nextflow_orchestration.recipes.places import shown
from nextflow_orchestration.recipes.run import SAMPLE, Recipe

INPUT = "input"
MOST = 5
"""Files that are named of many."""


def source_files(recipe: Recipe, progress: Callable[[int, int | None, str], None]) -> tuple[list[SourceConfig], str]:
    """The entries with files that are there, and a word about them. Raises what `sample.warc.build` raises when the
    packages cannot be had."""
    if _wants_sample(recipe) and not _sample(recipe).is_file():
        _make_sample(recipe, lambda note: progress(0, None, note))
    entries = _entries(recipe)
    return entries, described(recipe, entries)


def described(recipe: Recipe, entries: Sequence[SourceConfig]) -> str:
    """The files in a word: the first few by name; of a disk with their size."""
    named = [name for entry in entries for name in entry.files]
    words = [name if is_listed(name) else shown(any_path(name, recipe.storage)) for name in named[:MOST]]
    more = f" and {len(named) - MOST:,} more" if len(named) > MOST else ""
    size = local_bytes(recipe, entries)
    return f"{', '.join(words)}{more}" + (f" ({size / 1e6:.1f} MB)" if size is not None else "")


def local_bytes(recipe: Recipe, entries: Sequence[SourceConfig]) -> int | None:
    """Bytes of all files; None where that is not told by this machine alone: of a store, of a folder or pattern."""
    named = [name for entry in entries for name in entry.files]
    paths = [any_path(name, recipe.storage) for name in named if not is_listed(name)]
    local = [path for path in paths if isinstance(path, Path)]
    return sum(path.stat().st_size for path in local) if len(local) == len(named) else None


def present_files(recipe: Recipe) -> list[SourceConfig] | None:
    """The entries, where all files are there; None where the sample has not been made."""
    return None if _wants_sample(recipe) and not _sample(recipe).is_file() else _entries(recipe)


def _wants_sample(recipe: Recipe) -> bool:
    return SAMPLE in (recipe.input or ())


def _sample(recipe: Recipe) -> AnyPath:
    return recipe.root / INPUT / "sample.warc.gz"


def _make_sample(recipe: Recipe, say: Callable[[str], None]) -> None:
    """Makes the sample on this machine, and puts it into the root, from where workers read it."""
    from nextflow_orchestration.sample.warc import build

    sample, made = _sample(recipe), recipe.working / INPUT / "sample.warc.gz"
    made.parent.mkdir(parents=True, exist_ok=True)
    build(made, made.parent / "wheels", say)
    if made != sample:
        upload(made, sample, file_sha256(made))


def _entries(recipe: Recipe) -> list[SourceConfig]:
    if not _wants_sample(recipe):
        return recipe.entries()
    files = tuple(str(_sample(recipe)) if name == SAMPLE else name for name in recipe.input or ())
    return [entry.model_copy(update={"files": files}) for entry in recipe.entries()]
