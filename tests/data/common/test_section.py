"""What of a section decides bytes: settings that are not at their recorded defaults."""

import importlib
import json
import sys
from itertools import count

import pytest

_numbers = count()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Makes a package of one section from its fields and the record of its defaults."""

    def make(fields, recorded):
        name = f"a_package_{next(_numbers)}"
        folder = tmp_path / name
        folder.mkdir()
        body = "".join(f"    {field}\n" for field in fields)
        code = (
            "from nextflow_data.common.section import Section, operational\n\nclass Inner(Section):\n    depth: int = 1\n\n"
        )
        (folder / "__init__.py").write_text(f"{code}class Sizes(Section):\n{body}")
        (folder / "recorded_defaults.json").write_text(json.dumps(recorded))
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setitem(sys.modules, name, importlib.import_module(name))
        return sys.modules[name].Sizes

    return make


def test_a_setting_added_with_a_recorded_default_changes_no_fingerprint_and_another_value_does(package):
    before = package(["width: int = 4"], {"Sizes": {"width": 4}})
    after = package(["width: int = 4", "height: int = 2"], {"Sizes": {"width": 4, "height": 2}})
    assert before().identity() == after().identity() == {}
    assert before(width=5).identity() == after(width=5).identity() == {"width": 5}
    assert after(height=3).identity() == {"height": 3}


def test_a_changed_default_changes_the_fingerprint_and_the_old_value_keeps_it(package):
    after = package(["width: int = 8"], {"Sizes": {"width": 4}})
    assert after().identity() == {"width": 8} and after(width=4).identity() == {}


def test_a_default_that_nobody_recorded_is_always_said(package):
    assert package(["width: int = 4"], {}).model_validate({}).identity() == {"width": 4}


def test_operational_settings_and_sections_within(package):
    recorded = {"Sizes": {"inner": {}, "none": None}, "Inner": {"depth": 1}}
    sizes = package(["batch: int = operational(8)", "inner: Inner = Inner()", "none: Inner | None = None"], recorded)
    assert sizes(batch=3).identity() == {}
    assert sizes(inner={"depth": 2}).identity() == {"inner": {"depth": 2}}
    assert sizes(none={}).identity() == {"none": {}}
