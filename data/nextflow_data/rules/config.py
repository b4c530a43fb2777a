"""The recipe's section `filter`: which rules judge a document, in which order, and each one's own section by its name.

    filter:
      rules: [length, language, repetition, quality, c4, fineweb, image, document]
      quality: {min_doc_words: 50}
      fineweb: null                  # not run

Which sections there can be is known from the rules that are installed, so this module needs no list of them. What it costs:
the sections are looked up by name and not by attribute.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ConfigDict, ValidationError, model_validator

from nextflow_data.common.part_errors import mistake, nested, unknown_key
from nextflow_data.common.section import Section
from nextflow_data.rules.rule import Rule, rules

ORDER = ("length", "language", "repetition", "quality", "c4", "fineweb", "image", "document")


class FilterConfig(Section):
    """Which rules judge a document, and their thresholds. A rule whose section is null is not run."""

    model_config = ConfigDict(extra="allow")

    rules: tuple[str, ...] = ORDER
    """Rules by name, in the order in which they judge: text rules first, then image rules, then document rules, each kind in
    this order. The default is FineWeb's order, cheapest first. A rule of another package is named here to be run."""

    @model_validator(mode="before")
    @classmethod
    def _sections(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        names, wrong = value.get("rules", ORDER), []
        named = [name for name in names if isinstance(name, str)] if isinstance(names, list | tuple) else []
        for place, name in enumerate(named):
            if name not in rules:
                wrong.append(mistake(("rules", place), rules.unknown(name), name))
            elif name in named[:place]:
                wrong.append(mistake(("rules", place), f"{name} is named twice; a rule judges once", name))
        sections: dict[str, Any] = {}
        for name in {**dict.fromkeys(named), **value}:
            if name == "rules" or name not in rules:
                continue
            if name not in named and value[name] is not None:
                advice = f"{name} has settings and is not in filter.rules: add it there, or leave its section out"
                wrong.append(mistake((name,), advice, value[name]))
                continue
            try:
                sections[name] = _section(rules.get(name), value.get(name, {}))
            except ValidationError as error:
                wrong += nested((name,), error)
            except ValueError as error:
                wrong.append(mistake((name,), str(error), name))
        wrong += [unknown_key((key,), value[key]) for key in value if key != "rules" and key not in rules]
        if wrong:
            raise ValidationError.from_exception_data(cls.__name__, wrong)
        return {**({"rules": names} if "rules" in value else {}), **sections}

    def chosen(self) -> Iterator[tuple[type[Rule[Any]], Section]]:
        """The rules that are run, with their settings, in order."""
        for name in self.rules:
            section = self.section(name)
            if section is not None:
                yield rules.get(name), section

    def section(self, name: str) -> Section | None:
        """A rule's settings; None where it is not run."""
        found: Section | None = (self.__pydantic_extra__ or {}).get(name)
        return found

    def identity(self) -> dict[str, Any]:
        """The rules that are run, in order, each with its version and what of its settings is not as recorded."""
        return {"rules": [[rule.name, rule.version, section.identity()] for rule, section in self.chosen()]}

    @classmethod
    def parts(cls) -> dict[str, type[Section] | None]:
        """`Section.parts`, with every rule that is installed."""
        return {**super().parts(), **{name: rules.get(name).Config for name in rules.names()}}


def _section(rule: type[Rule[Any]], value: Any) -> Section | None:
    return None if value is None else rule.Config.model_validate(value)
