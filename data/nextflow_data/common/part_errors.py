"""Mistakes in the settings of parts whose classes are looked up by name, told by pydantic as all others: with their place.

A section that looks its parts up validates them itself; what is found there must reach the reader of the recipe with the
whole path of its key, or its line could not be named.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

Loc = tuple[str | int, ...]


def mistake(loc: Loc, message: str, given: object) -> InitErrorDetails:
    """A mistake in our own words."""
    return InitErrorDetails(type=PydanticCustomError("part", "{words}", {"words": message}), loc=loc, input=given)


def unknown_key(loc: Loc, given: object) -> InitErrorDetails:
    """What pydantic says of a key that is none."""
    return InitErrorDetails(type="extra_forbidden", loc=loc, input=given)


def nested(loc: Loc, error: ValidationError) -> Iterator[InitErrorDetails]:
    """The mistakes that validating a part has found, as those of the section it stands in, at `loc`."""
    for line in error.errors():
        where = (*loc, *line["loc"])
        if line["type"] in ("value_error", "assertion_error", "part"):
            yield mistake(where, line["msg"].removeprefix("Value error, "), line["input"])
        elif "ctx" in line:
            yield InitErrorDetails(type=line["type"], loc=where, input=line["input"], ctx=line["ctx"])
        else:
            yield InitErrorDetails(type=line["type"], loc=where, input=line["input"])
