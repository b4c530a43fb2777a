"""A recipe's base and what `--set` lays over it: what comes of them, and where a mistake is said to stand."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from nextflow_orchestration.recipes.errors import RecipeError
from nextflow_orchestration.recipes.override import BLANKS, setting
from nextflow_orchestration.recipes.run import load_recipe
from nextflow_orchestration.recipes.written import read


def files(folder: Path, **texts: str) -> Path:
    """Recipes of these names; the last one's path."""
    for name, text in texts.items():
        path = folder / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return path


def refuse(path: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, list(overrides))
    return str(caught.value)


def test_a_recipe_is_laid_over_its_base_and_that_over_its_own(tmp_path: Path) -> None:
    path = files(
        tmp_path,
        first="name: a\nroot: r\ninput: sample\nspark: {files: 2, partitions: 5}\ntokenize: {lower_levels: [128]}\n",
        second="base: first.yaml\nname: b\nspark: {files: 3}\ntokenize: {level: 512, lower_levels: []}\nfilter: {c4:}\n",
        third="base: second.yaml\nspark: {ui: true}\n",
    )
    assert read(path).tree == {
        "name": "b", "root": "r", "input": "sample", "spark": {"files": 3, "partitions": 5, "ui": True},
        "tokenize": {"level": 512, "lower_levels": []}, "filter": {"c4": None},
    }  # fmt: skip
    assert load_recipe(path, ["spark.files=7"]).spark.files == 7


def test_a_base_lies_beside_the_recipe_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep").mkdir()
    files(tmp_path, base="name: a\nroot: r\ninput: sample\n")
    path = files(tmp_path / "deep", top="base: ../base.yaml\nname: b\n")
    monkeypatch.chdir("/")
    assert load_recipe(path).name == "b"


def test_a_mistake_stands_in_the_file_in_which_it_was_written(tmp_path: Path) -> None:
    path = files(
        tmp_path,
        below="name: a\nroot: r\ninput: sample\nspark:\n  filez: 3\ndedup: {rows: many}\n",
        top="base: below.yaml\ndedup:\n  rows: few\n  bandz: 3\n",
    )
    said = refuse(path).splitlines()
    assert [line.partition(": ")[0].removeprefix(f"{tmp_path}/") for line in said] == [
        "below.yaml:5", "top.yaml:3", "top.yaml:4",
    ]  # fmt: skip
    assert "--set: dedup.rows" in refuse(path, "dedup.rows=none")


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ({"a": "base: a.yaml\n"}, r"a\.yaml:1: .*a\.yaml is based on .*a\.yaml.*a circle"),
        ({"a": "name: a\nbase: gone.yaml\n"}, r"a\.yaml:2: base: there is no recipe .*gone\.yaml"),
        ({"a": "base: [x]\n"}, r"a\.yaml:1: base is the path of another recipe"),
    ],
)
def test_a_base_that_cannot_be_is_refused(texts: dict[str, str], said: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=said):
        read(files(tmp_path, **texts))


def test_a_circle_names_both_files(tmp_path: Path) -> None:
    said = refuse(files(tmp_path, a="base: b.yaml\n", b="x: 1\nbase: a.yaml\n"))
    assert said.startswith(f"{tmp_path}/a.yaml:1: ") and "b.yaml" in said and "a circle" in said and "\n" not in said


def test_set_takes_the_place_of_what_the_file_says_of_a_section(tmp_path: Path) -> None:
    path = files(tmp_path, a="name: a\nroot: r\ninput: sample\ntrain: null\nspark:\n  files: none\n")
    assert load_recipe(path, ["spark={files: 2}", "train.steps=30"]).train.steps == 30  # type: ignore[union-attr]
    assert refuse(path, "spark={filez: 2}").startswith("--set: unknown key 'spark.filez'")


@given(st.text())
@example("/some/run #1")
@example("a: b")
@example("*x")
@example("&x")
@example("!x")
@example("@x")
@example("`x")
@example("%x")
@example("16:9")
@example("2026-01-01")
@example("0x_")
def test_a_text_on_the_command_line_is_never_cut_or_made_into_something_else(text: str) -> None:
    """Either as typed, or a number, truth value, null, list, mapping or quoted text that YAML reads in all of it."""
    try:
        value = setting(text)
    except ValueError:
        assert text.strip(BLANKS)[0] in "[{"
        return
    if value == text.strip(BLANKS):
        return
    assert value == yaml.safe_load(text) or value != value  # a NaN
    assert isinstance(value, int | float | list | dict | None) or text.strip(BLANKS)[0] in "'\""


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=5,
    )
)
def test_what_yaml_writes_in_one_line_comes_back(value: object) -> None:
    line = yaml.safe_dump([value], default_flow_style=True, width=10**9)
    assert setting(line) == [value]


def test_a_comment_in_a_list_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match="'#b' would be read as a comment; put quotes around it"):
        setting("[a] #b")
    assert setting("'[a] #b'") == "[a] #b" and setting('"12"') == "12" and setting("'tis") == "'tis"
