"""One sentence for each mistake in a recipe: where it stands, what is wrong, what was probably meant."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from nextflow_data.common.errors import RequestError
from nextflow_data.common.section import Section

Keys = tuple[str | int, ...]
"""A setting's place in the tree: names of sections, numbers in lists."""


class RecipeError(RequestError):
    """The recipe cannot be run; the message has one line a mistake, each with file and line where it has one."""


class Misfit(ValueError):
    """Settings of two sections that do not go together; `at` is the one to look at first."""

    def __init__(self, message: str, *at: str) -> None:
        super().__init__(message)
        self.at: Keys = at


def _section_at(section: type[Section], path: Keys) -> type[Section] | None:
    """The section class that a key path leads into."""
    found: type[Section] | None = section
    for part in path:
        if found is None or isinstance(part, int):
            continue
        found = found.parts().get(part)
    return found


def explain(findings: Iterable[Any], model: type[Section], places: Mapping[Keys, str], source: str) -> str:
    """pydantic's findings as `file:line: section.key: what is wrong; what to do`, one a line.

    `places` says of each key that was written where it was, `source` where all others would be.
    """
    messages = []
    for finding in findings:
        loc = tuple(finding["loc"])
        misfit = finding.get("ctx", {}).get("error")
        at = (*loc, *misfit.at) if isinstance(misfit, Misfit) else loc
        known = next((at[:n] for n in range(len(at), 0, -1) if at[:n] in places), None)
        dotted = ".".join(str(part) for part in loc)
        messages.append(f"{places[known] if known else source}: {_message(finding, loc, dotted, model)}")
    return "\n".join(messages)


def _message(finding: Any, loc: Keys, dotted: str, model: type[Section]) -> str:
    if finding["type"] == "extra_forbidden":
        section = _section_at(model, loc[:-1])
        known = list(section.parts()) if section else []
        near = get_close_matches(str(loc[-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key '{dotted}'; {hint}"
    if finding["type"] == "missing":
        return f"'{dotted}' is missing; set it"
    text = finding["msg"].removeprefix("Value error, ")
    given = finding["input"]
    return f"{dotted}: {text}" + ("" if isinstance(given, Mapping) else f" (got {given!r:.80})") if dotted else text
