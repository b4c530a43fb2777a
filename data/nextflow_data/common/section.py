"""`Section`, the base of every section of the one configuration tree, and what of a section decides bytes.

A misspelt key must stop a run before any work, so every section forbids unknown keys; sections are frozen, so what a stage
was fingerprinted with is what it ran with.

`identity` is what a fingerprint holds of a section: every setting that is not at its *recorded* default, without those that
are `operational` (they decide how fast, or how it looks, never what is written). Recorded defaults lie in
`recorded_defaults.json` of the package that a section's class belongs to, and once there a default is never changed. So a
setting added later, with a default that does what was done before, changes no fingerprint; a default that is changed in code
does, because it is no longer the recorded one; and one that nobody recorded is always in the fingerprint, which is safe. The
cost: one line in that file for each new setting, which a test asks for (but of a part's class that has no record at all:
the settings of one are all in its fingerprint, until the first that is added later is recorded).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, Field

RECORDED = "recorded_defaults.json"


class Section(BaseModel):
    """A part of the recipe: immutable, unknown keys refused. A field's docstring says what it is, also to `mnf recipe`."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), use_attribute_docstrings=True, validate_default=False
    )

    def identity(self) -> dict[str, Any]:
        """What of this section decides bytes, as JSON values: the settings that are not at their recorded defaults."""
        recorded = _recorded(type(self).__module__.partition(".")[0]).get(type(self).__name__, {})
        found = {name: _plain(value) for name, value in self.deciding().items()}
        return {name: value for name, value in found.items() if name not in recorded or recorded[name] != value}

    @classmethod
    def parts(cls) -> dict[str, type[Section] | None]:
        """Every key that may be set here, with the class of the section it leads into, if it leads into one."""
        fields = cls.model_fields.items()
        return {name: next(_sections_in(field.annotation), None) for name, field in fields}

    def deciding(self) -> dict[str, Any]:
        """The settings that decide bytes, by name: all but the operational ones."""
        return {name: getattr(self, name) for name in type(self).model_fields if name not in operational_fields(type(self))}


def _sections_in(annotation: Any) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for argument in get_args(annotation):
        yield from _sections_in(argument)


def operational(default: Any, **constraints: Any) -> Any:
    """A field that decides how fast something is done, never what is written: in no fingerprint."""
    return Field(default=default, json_schema_extra={"operational": True}, **constraints)


def operational_fields(section: type[Section]) -> frozenset[str]:
    """Names of a section's operational settings."""
    fields = section.model_fields.items()
    extras = {name: field.json_schema_extra for name, field in fields}
    return frozenset(name for name, extra in extras.items() if isinstance(extra, dict) and extra.get("operational"))


def unrecorded(section: type[Section]) -> dict[str, Any]:
    """Defaults of a section that no file records yet, as they are to be written there; for the test that asks for them."""
    recorded = _recorded(section.__module__.partition(".")[0]).get(section.__name__, {})
    hidden = operational_fields(section)
    return {
        name: _plain(field.get_default(call_default_factory=True))
        for name, field in section.model_fields.items()
        if name not in recorded and name not in hidden and not field.is_required()
    }


def _plain(value: Any) -> Any:
    """JSON values; a section is what of it is not at its recorded defaults."""
    if isinstance(value, Section):
        return value.identity()
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, set | frozenset):
        return sorted(_plain(entry) for entry in value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


@cache
def _recorded(package: str) -> dict[str, dict[str, Any]]:
    try:
        file = files(package) / RECORDED
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except (ModuleNotFoundError, TypeError):  # a class of a module on its own, without a package to hold the file
        return {}
