"""Every setting that decides bytes has its default on record, so that adding the next one changes no fingerprint."""

import json

import pytest
from nextflow_data.section import RECORDED, Section, unrecorded


def sections() -> set[type[Section]]:
    """Every section of a recipe, and those of the parts that it looks up by name."""
    from nextflow_data.captioners.captioner import captioners
    from nextflow_data.rules.rule import rules
    from nextflow_data.sources.base import SOURCES
    from nextflow_orchestration.recipes.run import Recipe

    found: set[type[Section]] = set()
    waiting = [Recipe, *(rules.get(name).Config for name in rules.names())]
    waiting += [captioners.get(name).Config for name in captioners.names()]
    waiting += [SOURCES.get(name).Config for name in SOURCES.names()]
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
    assert not missing, f"add to {package}/{RECORDED}: {json.dumps(missing, indent=1, ensure_ascii=False)}"
