"""What is held against a recipe's input files before any work: those that are not there, or that may not be read.

Of a disk every file is looked at. Of a store one a folder is asked for, in threads: a bucket that does not exist, a prefix
that may not be read or a store that does not answer is told at once, and ten thousand files cost no ten thousand requests.
What is missing besides is found when ingest binds its files, before it reads any. A folder or pattern is listed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from nextflow_data.common.errors import RequestError
from nextflow_data.common.range_opener import DEFAULT_KIND
from nextflow_data.sources.base import SourceConfig
from nextflow_data.storage.conditional import supports_conditional_writes
from nextflow_data.storage.config import StorageConfig
from nextflow_data.storage.files import any_path, state_of
from nextflow_data.storage.store_path import StorePath
from nextflow_pipelines.inputs import input_files, is_listed

from nextflow_orchestration.recipes.errors import Keys


class Places:
    """Where the settings of a recipe were written. Two recipes do not differ by it."""

    def __init__(self, written: Mapping[Keys, str] | None = None) -> None:
        self._written = written or {}

    def __call__(self, keys: Keys) -> str:
        """ "file:line: " of a setting, or of the section that it is in; empty where that is not known."""
        found = (self._written.get(keys[:length]) for length in range(len(keys), 0, -1))
        return next((f"{place}: " for place in found if place), "")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Places)

    __hash__ = None  # type: ignore[assignment]


def input_problems(files: Iterable[tuple[Keys, str]], config: StorageConfig, at: Places) -> Iterator[str]:
    """A line for each input file that cannot be had. `files`: where in the recipe each is named, and its name."""
    folders: dict[str, tuple[Keys, StorePath]] = {}
    for keys, name in files:
        try:
            path = any_path(name, config)
            if is_listed(name):
                input_files([SourceConfig(kind=DEFAULT_KIND, files=(name,))], config)
                continue
        except FileNotFoundError:
            yield f"{at(keys)}no input file is there by the name {name}; correct `{keys[0]}` in the recipe"
            continue
        except (RequestError, OSError) as error:
            yield f"{at(keys)}{error}"
            continue
        if isinstance(path, StorePath):
            folders.setdefault(path.address.rpartition("/")[0], (keys, path))
        elif not path.is_file():
            yield f"{at(keys)}input file not found: {name}; correct `{keys[0]}` in the recipe"
    with ThreadPoolExecutor(config.s3.concurrency) as pool:
        for (keys, _), problem in zip(folders.values(), pool.map(_problem, folders.values()), strict=True):
            if problem:
                yield f"{at(keys)}{problem}"


def _problem(file: tuple[Keys, StorePath]) -> str | None:
    keys, path = file
    try:
        state_of(path)
    except FileNotFoundError as error:
        return f"input file not found: {error}; correct `{keys[0]}` in the recipe"
    except OSError as error:
        return str(error)
    return None


def root_problem(root: StorePath) -> str | None:
    """Why a run cannot be committed to a store, in words; None where it can. Writes a probe and removes it."""
    try:
        if root.config.lock is None and not supports_conditional_writes(root / "probe"):
            return (
                f"{root}: this store takes no notice of If-None-Match, so two runs could both commit; use a store that has "
                "conditional writes, or set storage.lock to a folder on a disk that all drivers share"
            )
    except OSError as error:
        return str(error)
    return None
