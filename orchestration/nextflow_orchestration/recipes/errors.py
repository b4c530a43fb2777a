"""One sentence for each mistake in a recipe: where it stands, what is wrong, what was probably meant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any, get_args

import yaml
from nextflow_data.errors import RequestError
from pydantic import BaseModel, ValidationError


class RecipeError(RequestError):
    """The recipe cannot be run; the message has one line a mistake, each with file and line where it has one."""


def key_lines(node: yaml.Node | None, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], int]]:
    """Each key's path in a YAML tree and its line (from 1)."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, str(key.value))
            yield here, key.start_mark.line + 1
            yield from key_lines(value, here)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            yield (*path, i), value.start_mark.line + 1
            yield from key_lines(value, (*path, i))


def duplicate_keys(node: yaml.Node | None, source: str) -> Iterator[str]:
    """A message for each key that a mapping names twice: YAML would silently take the last."""
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in seen:
                yield f"{source}:{line}: '{key.value}' is already set on line {seen[key.value]}; keep one of them"
            seen[key.value] = line
            yield from duplicate_keys(value, source)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from duplicate_keys(value, source)


def _model_at(model: type[BaseModel], path: tuple[str | int, ...]) -> type[BaseModel] | None:
    """The section class that a key path leads into, through Optional and list annotations."""
    found: type[BaseModel] | None = model
    for part in path:
        if found is None:
            return None
        if isinstance(part, int):
            continue
        field = found.model_fields.get(part)
        found = None
        pending = [field.annotation] if field else []
        while pending:
            candidate = pending.pop()
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                found = candidate
                break
            pending.extend(get_args(candidate))
    return found


def explain(
    error: ValidationError, model: type[BaseModel], lines: Mapping[tuple[str | int, ...], int | None], source: str
) -> str:
    """pydantic's findings as `file:line: section.key: what is wrong; what to do`, one a line.

    `lines` has None for what the command line set.
    """
    messages = []
    for finding in error.errors():
        loc = tuple(finding["loc"])
        known = next((loc[:n] for n in range(len(loc), 0, -1) if loc[:n] in lines), None)
        line = lines[known] if known else 0
        where = "--set" if line is None else f"{source}:{line}" if line else source
        dotted = ".".join(str(part) for part in loc)
        messages.append(f"{where}: {_message(finding, loc, dotted, model)}")
    return "\n".join(messages)


def _message(finding: Any, loc: tuple[str | int, ...], dotted: str, model: type[BaseModel]) -> str:
    if finding["type"] == "extra_forbidden":
        section = _model_at(model, loc[:-1])
        known = list(section.model_fields) if section else []
        near = get_close_matches(str(loc[-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key '{dotted}'; {hint}"
    if finding["type"] == "missing":
        return f"'{dotted}' is missing; set it"
    text = finding["msg"].removeprefix("Value error, ")
    given = finding["input"]
    return f"{dotted}: {text}" + ("" if isinstance(given, Mapping) else f" (got {given!r:.80})") if dotted else text
