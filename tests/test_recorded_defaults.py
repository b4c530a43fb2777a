"""Every setting that decides bytes has its default on record, so that adding the next one changes no fingerprint.

The settings of a part that is looked up by name (a rule, say) need no record at first: they are all in its fingerprint. Once
one is recorded, all are.
"""

import json

import pytest
from nextflow_data.common.section import RECORDED, Section, operational_fields, unrecorded


def parts() -> list[type[Section]]:
    """The sections of the parts that a recipe looks up by name."""
    from nextflow_data.captioners.captioner import captioners
    from nextflow_data.rules.rule import rules
    from nextflow_data.sources.base import SOURCES

    sockets = (rules, captioners, SOURCES)
    return [socket.get(name).Config for socket in sockets for name in socket.names()]


def is_recorded(section: type[Section]) -> bool:
    """Whether any of its defaults is on record."""
    left = set(unrecorded(section))
    own = {name for name, field in section.model_fields.items() if not field.is_required()}
    return bool(own - left - operational_fields(section))


def sections() -> set[type[Section]]:
    """Every section of a recipe, and those of the parts that it looks up by name."""
    from nextflow_orchestration.recipes.run import Recipe

    found: set[type[Section]] = set()
    waiting = [Recipe, *parts()]
    while waiting:
        section = waiting.pop()
        if section not in found:
            found.add(section)
            waiting += [part for part in section.parts().values() if part is not None]
    return found


@pytest.mark.parametrize("package", ["nextflow_data", "nextflow_tokenize", "megatron_nextflow"])
def test_every_default_is_recorded(package: str) -> None:
    own = {s.__name__: s for s in sections() if s.__module__.partition(".")[0] == package}
    assert len(own) > 3
    missing = {name: fields for name, section in sorted(own.items()) if (fields := unrecorded(section))}
    missing = {name: fields for name, fields in missing.items() if own[name] not in parts() or is_recorded(own[name])}
    assert not missing, f"add to {package}/{RECORDED}: {json.dumps(missing, indent=1, ensure_ascii=False)}"
