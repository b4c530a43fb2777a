"""A mistake in a recipe is one line that names the file, the line, the key and the way out."""

from pathlib import Path

import pytest
from nextflow_orchestration.recipes.errors import RecipeError
from nextflow_orchestration.recipes.run import Recipe, load, load_recipe
from nextflow_orchestration.recipes.training import TrainingRecipe
from nextflow_tokenize.config.vision_recipe import TokenizerRecipe


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    return path


def refuse(tmp_path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, text), list(overrides))
    return str(caught.value)


def test_a_misspelt_key_is_named_with_its_line_and_the_nearest_right_one(tmp_path: Path) -> None:
    message = refuse(tmp_path, "name: tiny\nroot: runs/tiny\ninput: sample\ntrain:\n  stepz: 3\n")
    assert "r.yaml:5:" in message and "train.stepz" in message and "'steps'" in message


def test_a_misspelt_section_is_named_too(tmp_path: Path) -> None:
    message = refuse(tmp_path, "name: tiny\nroot: runs/tiny\ninput: sample\ndedupp: {}\n")
    assert "r.yaml:4:" in message and "did you mean 'dedup'?" in message


def test_a_wrong_value_gives_its_line(tmp_path: Path) -> None:
    message = refuse(tmp_path, "name: tiny\nroot: runs/tiny\ninput: sample\ntrain:\n  steps: many\n")
    assert "r.yaml:5:" in message and "train.steps" in message and "many" in message


def test_a_missing_key_a_repeated_key_and_broken_yaml_are_refused(tmp_path: Path) -> None:
    assert "'name' is missing" in refuse(tmp_path, "root: a\ninput: sample\n")
    assert "r.yaml:4: 'name' is already set on line 1" in refuse(tmp_path, "name: a\nroot: a\ninput: sample\nname: b\n")
    assert "r.yaml:3: not YAML" in refuse(tmp_path, "name: a\nroot: [a\ninput: sample\n")
    with pytest.raises(RecipeError, match="no such recipe"):
        load_recipe(tmp_path / "none.yaml")


def test_overrides_are_validated_like_the_file(tmp_path: Path) -> None:
    text = "name: tiny\nroot: runs/tiny\ninput: sample\n"
    assert load_recipe(write(tmp_path, text), ["train.steps=70"]).train.steps == 70
    assert "--set: unknown key 'train.step'; did you mean 'steps'?" in refuse(tmp_path, text, "train.step=7")
    assert "section.key=value" in refuse(tmp_path, text, "train.steps")


def test_missing_input_files_are_named_before_any_work(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, f"name: tiny\nroot: a\ninput: [{tmp_path}/gone.warc.gz]\n"))
    with pytest.raises(RecipeError, match=r"gone\.warc\.gz"):
        recipe.check_inputs()


def test_weights_that_are_not_there_are_named_before_any_work(tmp_path: Path) -> None:
    text = "name: r\nroot: r\ninput: sample\nvision_tokenizer: {teacher: siglip, siglip: {}, teacher_path: nowhere}\n"
    with pytest.raises(RecipeError, match=r"teacher_path: nowhere is not a folder"):
        load_recipe(write(tmp_path, text)).check_inputs()


@pytest.mark.parametrize(
    ("generate", "message"),
    [
        ("{prompt: 'a <image>'}", "a run's own prompt has no images"),
        ("{level: 512}", "generate.level 512 has 16 scales, train.model.max_scales is 12"),
        ("{level: 256}", "does not fit train.model.max_length 800"),
    ],
)
def test_an_image_that_the_run_could_not_make_is_refused_before_any_work(
    generate: str, message: str, tmp_path: Path
) -> None:
    text = "name: tiny\nroot: runs/tiny\ninput: sample\npack: {max_length: 800}\n"
    text += f"train: {{model: {{max_scales: 12, max_length: 800}}}}\ngenerate: {generate}\n"
    assert message in refuse(tmp_path, text)


def test_a_level_that_the_vision_tokenizer_is_not_made_for_is_refused(tmp_path: Path) -> None:
    text = "name: tiny\nroot: r\ninput: sample\nvision_tokenizer: {levels: [128, 256]}\ngenerate: {level: 512}\n"
    text += "tokenize: {level: 256, lower_levels: [128]}\n"
    with pytest.raises(RecipeError, match=r"generate: .*levels \[128, 256\], not for 512"):
        load_recipe(write(tmp_path, text)).check_inputs()


def test_every_recipe_of_the_repository_is_valid() -> None:
    recipes = sorted((Path(__file__).parents[3] / "recipes").glob("*.yaml"))
    assert recipes
    for path in recipes:
        kinds = {"tokenizer": TokenizerRecipe, "nextflow": TrainingRecipe}
        load(kinds.get(path.name.partition("_")[0], Recipe), path)


def test_sources_are_entries_of_their_kind_and_input_is_short_for_one(tmp_path: Path) -> None:
    text = "name: tiny\nroot: a\nsources:\n  - {kind: warc, files: a.warc}\n  - {kind: jsonl, files: [b, c], licence: MIT}\n"
    recipe = load_recipe(write(tmp_path, text))
    assert [(entry.kind, entry.files) for entry in recipe.entries()] == [("warc", ("a.warc",)), ("jsonl", ("b", "c"))]
    assert recipe.entries()[1].identity() == {"task": None, "licence": "MIT"}
    with pytest.raises(RecipeError, match=r"input file not found: b; correct `sources`"):
        recipe.check_inputs()
    short = load_recipe(write(tmp_path, "name: tiny\nroot: a\ninput: a.warc\n"))
    assert short.entries() == recipe.entries()[:1]
    for one in (recipe, short):
        again = Recipe.model_validate(one.model_dump(mode="json"))
        assert again == one and again.entries() == one.entries()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("kind: jsonl\n    files: [a]\n    licens: MIT", "r.yaml:6: sources.0.licens: unknown key; did you mean 'licence'?"),
        ("kind: jsonl\n    files: [a]\n    task: edit", "r.yaml:6: sources.0.task: Input should be 'text', "),
        ("kind: jsonk\n    files: [a]", "r.yaml:4: sources.0.kind: there is no source 'jsonk'; did you mean 'jsonl'?"),
        ("kind: warc", "r.yaml:4: sources.0.files: "),
        ("[a.warc]", "r.yaml:4: sources.0: an entry is a mapping with kind and files; known kinds: jsonl, warc"),
    ],
)
def test_a_mistake_in_an_entry_is_told_with_its_line(entry: str, message: str, tmp_path: Path) -> None:
    assert message in refuse(tmp_path, f"name: tiny\nroot: a\nsources:\n  - {entry}\n")


def test_a_run_has_one_way_in(tmp_path: Path) -> None:
    assert "neither `input` nor `sources` is set" in refuse(tmp_path, "name: tiny\nroot: a\n")
    both = "name: tiny\nroot: a\ninput: sample\nsources: [{kind: warc, files: a}]\n"
    assert "both `input` and `sources` are set" in refuse(tmp_path, both)
