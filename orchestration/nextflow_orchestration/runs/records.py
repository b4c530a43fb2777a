"""What runs leave in their root beside their stages: which folders the last one made or found, and whose they were.

    run.json                the last run to finish: its recipe's name, and the folders of pack, train and generate
    recipes/NAME-….json     the same of each recipe's last run; only its name from its first start to its first end

Stages are kept apart by their fingerprints, so recipes may share a root; only what is called the same for all (run.json,
recipe.json, report.html) is the last one's, and whoever asks for a recipe's own run is answered from its record. A file a
recipe, so that two that end together do not write over each other. The cost: two recipes of one name are one here.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nextflow_data.storage.files import put, put_if_absent
from nextflow_data.storage.store_path import AnyPath

RUN = "run.json"
"""In a run's root; the file of that name in a training's folder says who trains there (`launching.launch_record`)."""
SETTINGS = "recipe.json"
"""The last run's recipe, resolved."""
RECIPES = "recipes"
_NAME = "recipe"


@dataclass(frozen=True)
class RunPlace:
    """Where a run is looked for: its root, its folder on this machine, and where a recipe was named its name and settings
    (a resolved recipe as plain values)."""

    root: AnyPath
    work: Path
    recipe: str | None = None
    settings: Mapping[str, Any] | None = None


def _record(root: AnyPath, recipe: str) -> AnyPath:
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:8]
    return root / RECIPES / f"{re.sub(r'[^A-Za-z0-9._-]', '-', recipe)[:60]}-{digest}.json"


def begin_run(root: AnyPath, recipe: str) -> list[str]:
    """Writes down that a recipe runs in `root`; returns the names of the others that do, or have done so."""
    put_if_absent(_record(root, recipe), (json.dumps({_NAME: recipe}) + "\n").encode())
    return [name for name in recipes_of(root) if name != recipe]


def recipes_of(root: AnyPath) -> list[str]:
    """Names of the recipes that have run in `root`, in order."""
    found = {_read(path).get(_NAME) for path in (root / RECIPES).glob("*.json")} | {last_recipe(root)}
    return sorted(name for name in found if isinstance(name, str))


def last_recipe(root: AnyPath) -> str | None:
    """The name of the recipe of the last run to finish; None where none has, or none said so."""
    name = _read(root / RUN).get(_NAME, _read(root / SETTINGS).get("name"))
    return name if isinstance(name, str) else None


def whose_run(root: AnyPath, recipe: str | None) -> str:
    """Whose run is told of, where a root has those of several recipes."""
    known = recipes_of(root)
    name = recipe or last_recipe(root)
    if len(known) < 2 or name is None:
        return ""
    others = ", ".join(repr(other) for other in known if other != name)
    return f"Of the run of {name!r}; {root} also has that of {others}: --recipe names another's recipe."


def remember_run(root: AnyPath, recipe: str, **folders: AnyPath) -> None:
    """Writes which folders the run that has just finished made or found, by their names in `root` or its working folder."""
    content = json.dumps({_NAME: recipe} | {name: folder.name for name, folder in folders.items()}, indent=1, sort_keys=True)
    for path in (_record(root, recipe), root / RUN):
        put(path, content + "\n")


def last_run(root: AnyPath, recipe: str | None = None) -> dict[str, AnyPath]:
    """The folders of the last run to finish under `root`, or of the last one of `recipe`: those that are still there. Empty
    where none has."""
    folders = {name: root / folder for name, folder in _folders(root, recipe).items()}
    return {name: folder for name, folder in folders.items() if folder.is_dir()}


def last_training(run: RunPlace) -> Path | None:
    """The folder on this machine of the last run's training; on another machine it need not be there, if a copy is in the
    root. None where there is neither."""
    name = _folders(run.root, run.recipe).get("train")
    if name is None or not ((run.work / name).is_dir() or (run.root / name).is_dir()):
        return None
    return run.work / name


def _folders(root: AnyPath, recipe: str | None) -> dict[str, str]:
    names = _read(root / RUN)
    if recipe is not None and names.get(_NAME, recipe) != recipe:
        names = _read(_record(root, recipe))
    return {name: folder for name, folder in names.items() if name != _NAME and isinstance(folder, str)}


def _read(path: AnyPath) -> dict[str, Any]:
    """A file's mapping; empty where there is none, or it is damaged."""
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
