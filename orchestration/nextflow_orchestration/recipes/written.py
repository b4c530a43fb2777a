"""A recipe as it is written: a file, the recipe it is based on (`base:`), and what `--set` lays over both.

`base: other.yaml` names a recipe by its place beside the one that names it. The keys of the file are laid over the base's:
mappings are merged, anything else replaces what was there, and null takes a whole section away. A base may have a base.
What comes of it is one tree, in which each key remembers the file and line it was written in; nothing of the layers is
stored with a run, only the result. The cost: a recipe with a base cannot be read alone; `mnf recipe` prints it whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nextflow_orchestration.recipes.errors import Keys, RecipeError
from nextflow_orchestration.recipes.override import setting

BASE = "base"
SET = "--set"
_PASSWORD = re.compile(r"://[^/@\s:]*:[^/@\s]+@")


@dataclass(frozen=True)
class Written:
    """`tree` as YAML's plain values; `places` where each of its keys was written; `source`, the file that was asked for."""

    tree: dict[str, Any]
    places: dict[Keys, str]
    source: str


def read(path: Path, overrides: list[str] | None = None) -> Written:
    """Reads a recipe's file, its bases and the overrides. Raises RecipeError with the file and line of a mistake."""
    written = _with_bases(path, ())
    for assignment in overrides or []:
        _override(written, assignment)
    held = [_nearest(written, keys) for keys in _with_passwords(written.tree, ())]
    if held:
        what = "an address with a password in it would be stored with the run; give credentials by the environment"
        raise RecipeError("\n".join(f"{place}: {what}" for place in held))
    return written


def _with_passwords(value: Any, at: Keys) -> Iterator[Keys]:
    """Where texts stand that hold `scheme://user:password@host`."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _with_passwords(inner, (*at, key))
    elif isinstance(value, str) and _PASSWORD.search(value):
        yield at


def _nearest(written: Written, keys: Keys) -> str:
    """`file:line: key` of a setting."""
    found = (written.places.get(keys[:length]) for length in range(len(keys), 0, -1))
    return f"{next(filter(None, found), written.source)}: {'.'.join(map(str, keys))}"


def _with_bases(path: Path, above: tuple[Path, ...]) -> Written:
    """The file over its base; `above` are the files that led here, each naming the next."""
    top = _file(path)
    if BASE not in top.tree:
        return top
    name, where = top.tree.pop(BASE), top.places.pop((BASE,))
    if not isinstance(name, str) or not name:
        raise RecipeError(f"{where}: {BASE} is the path of another recipe, from this file's folder, not {name!r}")
    base = path.parent / name
    chain = (*above, path)
    if any(base.resolve() == one.resolve() for one in chain):
        raise RecipeError(f"{where}: {path} is based on {base}, and {base} on {path}: a circle; take one `{BASE}` out")
    if not base.is_file():
        raise RecipeError(f"{where}: {BASE}: there is no recipe {base}; the path counts from this file's folder")
    below = _with_bases(base, chain)
    return Written(_laid_over(below.tree, top.tree, below.places, ()), below.places | top.places, top.source)


def _laid_over(below: dict[str, Any], top: dict[str, Any], places: dict[Keys, str], at: Keys) -> dict[str, Any]:
    """`top` over `below`; from `places`, those of `below`, goes what was replaced."""
    merged = dict(below)
    for key, value in top.items():
        before = merged.get(key)
        if isinstance(before, dict) and isinstance(value, dict):
            merged[key] = _laid_over(before, value, places, (*at, key))
        else:
            _forget(places, (*at, key))
            merged[key] = value
    return merged


def _forget(places: dict[Keys, str], at: Keys) -> None:
    for keys in [keys for keys in places if keys[: len(at)] == at]:
        del places[keys]


def _file(path: Path) -> Written:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        tree = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise RecipeError(f"{path}:{mark.line + 1 if mark else 1}: not YAML: {error.problem}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise RecipeError(f"{path}: not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}:1: a recipe is a mapping of sections")
    repeated = list(_repeated(node, path))
    if repeated:
        raise RecipeError("\n".join(repeated))
    return Written(tree, {keys: f"{path}:{line}" for keys, line in _lines(node)}, str(path))


def _lines(node: yaml.Node | None, path: Keys = ()) -> Iterator[tuple[Keys, int]]:
    """Each key's path in a YAML tree and its line (from 1)."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, str(key.value))
            yield here, key.start_mark.line + 1
            yield from _lines(value, here)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            yield (*path, i), value.start_mark.line + 1
            yield from _lines(value, (*path, i))


def _repeated(node: yaml.Node | None, path: Path) -> Iterator[str]:
    """A message for each key that a mapping names twice: YAML would silently take the last."""
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in seen:
                yield f"{path}:{line}: '{key.value}' is already set on line {seen[key.value]}; keep one of them"
            seen[key.value] = line
            yield from _repeated(value, path)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _repeated(value, path)


def _override(written: Written, assignment: str) -> None:
    """Applies one `--set`."""
    dotted, sign, text = assignment.partition("=")
    keys = tuple(key.strip() for key in dotted.split("."))
    if not sign or not all(keys):
        raise RecipeError(f"{SET} {assignment}: write it as section.key=value")
    if keys == (BASE,):
        raise RecipeError(f"{SET} {assignment}: a recipe's base is named in its file")
    tree = written.tree
    for key in keys[:-1]:
        if tree.get(key) is None:
            tree[key] = {}
        tree = tree[key]
        if not isinstance(tree, dict):
            raise RecipeError(f"{SET} {assignment}: '{key}' is a value, not a section")
    try:
        tree[keys[-1]] = setting(text)
    except ValueError as error:
        raise RecipeError(f"{SET} {assignment}: {error}") from None
    _forget(written.places, keys)
    for length in range(1, len(keys) + 1):  # a section that only this brings stands nowhere else
        written.places.setdefault(keys[:length], SET)
