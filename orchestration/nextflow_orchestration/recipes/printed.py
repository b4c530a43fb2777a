"""A recipe written out whole: every setting with its value and, as a comment above it, what it is.

The words are the attribute docstrings of the section classes, so they stand where the setting is declared and nowhere else.
What is written loads back as the same recipe.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from nextflow_data.common.section import Section

WIDTH = 100


def printed(recipe: Section, comments: bool = True) -> str:
    """The recipe as YAML; without `comments`, settings and values alone."""
    return "\n".join(_lines(recipe, recipe.model_dump(mode="json"), "", comments)) + "\n"


def _lines(section: Any, tree: Mapping[str, Any], indent: str, comments: bool) -> Iterator[str]:
    fields = type(section).model_fields if isinstance(section, Section) else {}
    for key, value in tree.items():
        inner = section.get(key) if isinstance(section, Mapping) else getattr(section, key, None)
        nested = isinstance(value, dict) and bool(value) and _has_sections(inner)
        if comments:
            if nested and not indent:
                yield ""
            words = [fields[key].description or ""] if key in fields else []
            if isinstance(inner, Section):
                words.insert(0, inspect.cleandoc(type(inner).__doc__ or ""))
            yield from _comment("\n\n".join(filter(None, words)), indent)
        if nested:
            yield f"{indent}{key}:"
            yield from _lines(inner, value, indent + "  ", comments)
        else:
            text = yaml.safe_dump({key: value}, sort_keys=False)
            yield textwrap.indent(text.rstrip("\n"), indent)


def _has_sections(value: Any) -> bool:
    return isinstance(value, Section) or (isinstance(value, Mapping) and any(map(_has_sections, value.values())))


def _comment(words: str, indent: str) -> Iterator[str]:
    for number, paragraph in enumerate(words.split("\n\n") if words else []):
        if number:
            yield f"{indent}#"
        yield textwrap.fill(
            " ".join(paragraph.split()),
            WIDTH,
            initial_indent=f"{indent}# ",
            subsequent_indent=f"{indent}# ",
            break_long_words=False,
            break_on_hyphens=False,
        )
