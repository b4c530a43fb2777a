"""An entry of the recipe's `sources`: which files, of which kind, and the settings that this kind has.

The settings of a kind are a section of its own, found by `kind` when the recipe is read; so a mistake in one is told with
its line, and a kind of another package has the same rights as ours.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny, ValidationError
from pydantic_core import InitErrorDetails

from nextflow_data.common.part_errors import mistake
from nextflow_data.sources.base import SOURCES, SourceConfig


def source_config(value: Any) -> SourceConfig:
    """The entry in `value` as a section of its kind. Raises ValidationError, each mistake with its key."""
    if isinstance(value, SourceConfig):
        return value
    if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
        raise ValueError(f"an entry is a mapping with kind and files; known kinds: {', '.join(SOURCES.names())}")
    try:
        section = SOURCES.get(value["kind"]).Config
    except ValueError as error:
        raise _mistakes([mistake(("kind",), str(error), value["kind"])]) from None
    try:
        return section.model_validate(value)
    except ValidationError as error:
        raise _mistakes([_plainer(finding, section) for finding in error.errors()]) from None


AnySource = Annotated[SerializeAsAny[SourceConfig], BeforeValidator(source_config)]
"""A field's type: an entry of whatever kind."""


def _plainer(finding: Any, section: type[SourceConfig]) -> InitErrorDetails:
    """pydantic's finding; of an unknown key also which is near, since only here the entry's section is known."""
    message = finding["msg"]
    if finding["type"] == "extra_forbidden":
        near = get_close_matches(str(finding["loc"][-1]), list(section.model_fields), n=1, cutoff=0.5)
        known = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(section.model_fields)}"
        message = f"unknown key; {known}"
    return mistake(finding["loc"], message, finding["input"])


def _mistakes(found: list[InitErrorDetails]) -> ValidationError:
    return ValidationError.from_exception_data("source", found)
