"""A mistake in a recipe is one line that names the file, the line, the key and the way out."""

from pathlib import Path

import pytest
from nextflow_orchestration.recipes.errors import RecipeError
from nextflow_orchestration.recipes.kinds import RUN_ONLY
from nextflow_orchestration.recipes.printed import printed
from nextflow_orchestration.recipes.run import Recipe, load, load_recipe, load_run
from nextflow_orchestration.recipes.training import TrainingRecipe, load_either
from nextflow_pipelines.registry import STAGES
from nextflow_tokenize.config.pack import CostModel
from nextflow_tokenize.config.vision_recipe import TokenizerRecipe

RECIPES = Path(__file__).parents[3] / "recipes"


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
    train = load_recipe(write(tmp_path, text), ["train.steps=70"]).train
    assert train is not None and train.steps == 70
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
    text = "name: tiny\nroot: r\ninput: sample\nvision_tokenizer: {levels: [128, 256]}\ngenerate: {level: 512}\ntrain: {}\n"
    text += "tokenize: {level: 256, lower_levels: [128]}\n"
    with pytest.raises(RecipeError, match=r"generate: .*levels \[128, 256\], not for 512"):
        load_recipe(write(tmp_path, text)).check_inputs()


BROKEN = """\
name: r
root: r
input: sample
train:
  steps: 5
  optimizer: {warmup_steps: 10}
  model: {hidden_size: 64, layers: 2, max_length: 64}
generate: {level: 7}
report: {packs: none}
"""


def test_settings_of_parts_that_do_not_run_are_not_held_against_it(tmp_path: Path) -> None:
    path = write(tmp_path, BROKEN)
    said = refuse(tmp_path, BROKEN)
    assert "r.yaml:4: train: optimizer.warmup_steps 10" in said and ":8: generate.level" in said and ":9: report" in said
    recipe, which = load_run(path, last="pack")
    assert which.run == tuple(STAGES) and recipe.train is None
    assert (recipe.pack.cost.hidden_size, recipe.pack.cost.layers) == (64, 2)  # read all the same: packs follow the model
    assert load_run(path, last="caption")[0].root == Path("r").absolute()
    with pytest.raises(RecipeError, match=r"^[^\n]*warmup_steps[^\n]*$"):
        load_run(path, last="train")
    for wrong in ("train.stepz=3", "generate.levle=3", "train.model.heads=many", "train=3"):
        with pytest.raises(RecipeError, match=f"^--set: .*{wrong.partition('=')[0]}"):
            load_run(path, [wrong], last="pack")
    assert load_run(path, ["train.model.heads=3"], last="caption")[0].train is None


def test_a_recipe_without_training_ends_with_its_shards(tmp_path: Path) -> None:
    path = write(tmp_path, "name: r\nroot: r\ninput: sample\ngenerate: {level: 7}\n")
    recipe, which = load_run(path)
    assert which.run == (*STAGES, "report") and recipe.train is None
    assert recipe.pack.cost == CostModel()  # stands alone
    with pytest.raises(RecipeError, match="--from train: the recipe has no `train` section"):
        load_run(path, first="train")


@pytest.mark.parametrize(
    ("first", "last", "said"),
    [
        (None, "packs", "--to packs: there is no such stage; did you mean pack\\? known: ingest, filter, .*, pack, train"),
        ("reporting", None, "--from reporting: .* did you mean report"),
        ("pack", "filter", "--from pack --to filter: filter comes before pack"),
    ],
)
def test_stages_that_there_are_not_are_named(first: str, last: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=said):
        load_run(write(tmp_path, "name: r\nroot: r\ninput: sample\ntrain: {}\n"), None, first, last)


MODEL = "name: r\nroot: r\ninput: sample\ntrain: {model: {hidden_size: 128, layers: 2, ffn_size: 384}}\n"


def test_the_cost_of_packs_is_that_of_the_model_that_is_trained(tmp_path: Path) -> None:
    """The quickstart's numbers as they were once written by hand: 4,096 text ids, 2 for an image's ends, 4,096 codes."""
    by_hand = {"hidden_size": 128, "ffn_hidden_size": 384, "layers": 2, "heads": 4, "query_groups": 2, "vocabulary": 8194}
    assert load_recipe(RECIPES / "quickstart.yaml").pack.cost == CostModel(**by_hand)
    assert load_recipe(write(tmp_path, MODEL + f"pack: {{cost: {by_hand}}}\n")).pack.cost == CostModel(**by_hand)
    padded = load_recipe(write(tmp_path, MODEL), ["pack.cost.vocabulary=8320", "pack.cost.passes=4"]).pack.cost
    assert padded == CostModel(**{**by_hand, "vocabulary": 8320, "passes": 4})
    said = refuse(tmp_path, MODEL + "pack:\n  cost: {layers: 28, hidden_size: 128, vocabulary: 9000, gated: false}\n")
    assert said.startswith(f"{tmp_path}/r.yaml:6: pack.cost is not of the model")
    with pytest.raises(RecipeError, match=r"--set: pack\.cost: hidden_size 128 is not a multiple of heads 28"):
        load_recipe(write(tmp_path, MODEL), ["train=null", "pack.cost.hidden_size=128"])
    assert "layers 28 is train.model.layers 2; vocabulary 9000 is 8194" in said and "gated" in said and "hidden" not in said


def test_the_vocabulary_is_that_of_the_tokenizers_that_are_given(tmp_path: Path) -> None:
    text = tmp_path / "tokenizer.json"
    text.write_text('{"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 6}]}')
    (tmp_path / "vision").mkdir()
    sizes = '{"codebook_size": 48, "semantic_dim": 3, "pixel_dim": 5, "levels": [128], "teacher": "classical"}'
    (tmp_path / "vision" / "config.json").write_text(f'{{"format": 2, "model": {sizes}}}')
    given = [f"text_tokenizer.path={text}", f"vision_tokenizer.path={tmp_path}/vision"]
    assert load_recipe(write(tmp_path, MODEL), given).pack.cost.vocabulary == 7 + 2 + 48
    given.append("train.model.text_vocabulary=100")
    assert load_recipe(write(tmp_path, MODEL), given).pack.cost.vocabulary == 100 + 2 + 48


def test_a_texts_end_is_the_recipes_or_that_of_its_text_tokenizer(tmp_path: Path) -> None:
    path = write(tmp_path, MODEL)
    assert load_recipe(path, ["text_tokenizer.end_of_text=<end>"]).generate.end_of_text == "<end>"
    both = ["text_tokenizer.end_of_text=<end>", "generate.end_of_text=<|im_end|>"]
    assert load_recipe(path, both).generate.end_of_text == "<|im_end|>"


@pytest.mark.parametrize("comments", [True, False])
def test_what_is_printed_loads_back_as_the_same_recipe(comments: bool, tmp_path: Path) -> None:
    for path in sorted(RECIPES.glob("*.yaml")):
        if path.stem.startswith("tokenizer"):
            continue
        recipe = load_either(path)
        text = printed(recipe, comments)
        assert load_either(write(tmp_path, text)) == recipe
        assert ("# " in text) == comments
    assert ("  # Optimizer steps in all" in text) == comments


def test_every_recipe_of_the_repository_is_valid() -> None:
    recipes = sorted(RECIPES.glob("*.yaml"))
    assert recipes
    for path in recipes:
        kinds = {"tokenizer": TokenizerRecipe, "nextflow": TrainingRecipe}
        load(kinds.get(path.name.partition("_")[0], Recipe), path)


def test_sources_are_entries_of_their_kind_and_input_is_short_for_one(tmp_path: Path) -> None:
    text = "name: tiny\nroot: a\nsources:\n  - {kind: warc, files: a.warc}\n  - {kind: jsonl, files: [b, c], licence: MIT}\n"
    recipe = load_recipe(write(tmp_path, text))
    assert [(entry.kind, entry.files) for entry in recipe.entries()] == [("warc", ("a.warc",)), ("jsonl", ("b", "c"))]
    assert recipe.entries()[1].identity() == {"licence": "MIT"}
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


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: t\noutput: o\nimages: [x]\n", "a vision tokenizer's recipe: mnf tokenizer train"),
        ("name: t\ntrain: {steps: 4}\n", "a training's recipe, on shards that are there: mnf train"),
    ],
)
def test_a_recipe_of_another_kind_is_told_where_it_belongs(tmp_path: Path, text: str, words: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert str(caught.value) == f"{path}: this is {words} {path}"


def test_the_keys_of_a_run_alone_are_those_that_no_other_recipe_has() -> None:
    others = {*TrainingRecipe.model_fields, *TokenizerRecipe.model_fields}
    assert set(Recipe.model_fields) - others == RUN_ONLY
