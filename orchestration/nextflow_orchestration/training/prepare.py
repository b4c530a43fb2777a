"""A recipe of either kind made ready to train with.

A whole run's recipe trains on the shards of its last run, or on a set named beside it; a training recipe names its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nextflow_data.storage.files import any_path

from megatron_nextflow.config.train import TrainConfig
from megatron_nextflow.launching.launcher import with_absolute_paths
from nextflow_orchestration.recipes.errors import RecipeError
from nextflow_orchestration.recipes.run import Recipe
from nextflow_orchestration.recipes.training import TrainingRecipe, load_either
from nextflow_orchestration.runs.lineage import NoRun, chain
from nextflow_orchestration.training.copies import copy_of
from nextflow_orchestration.training.folders import on_disk, training_folder, with_paths


@dataclass(frozen=True)
class Prepared:
    """A recipe made ready: its configuration with absolute paths, and the folder beside which Prefect keeps its records."""

    name: str
    config: TrainConfig
    home: Path


def prepare(recipe_path: Path, overrides: list[str], shards: str | None, out: Path | None) -> Prepared:
    """The configuration that a recipe of either kind trains with. Raises RecipeError, NoRun.

    `shards` replaces the set that the recipe trains on, `out` the folder that it trains into.
    """
    recipe = load_either(recipe_path, overrides)
    if isinstance(recipe, TrainingRecipe):
        config = _of_training_recipe(recipe.train, shards, out)
        return Prepared(recipe.name, config, config.output)
    return Prepared(recipe.name, _of_run(recipe, recipe_path, shards, out), recipe.working)


def _of_training_recipe(config: TrainConfig, shards: str | None, out: Path | None) -> TrainConfig:
    data = config.data if shards is None else config.data.model_copy(update={"shards": shards})
    return with_absolute_paths(config.model_copy(update={"data": data, "output": out or config.output}), Path.cwd())


def _of_run(recipe: Recipe, recipe_path: Path, shards: str | None, out: Path | None) -> TrainConfig:
    train = _train_section(recipe, recipe_path)
    if shards is None:
        commits = chain(recipe.root, recipe=recipe.name)
        if "pack" not in commits:
            raise NoRun(f"{recipe.root} holds no shards yet: run `mnf run {recipe_path}` first, or name a set with --shards")
        folder = commits["pack"].folder / "shards"
        tokenizer = on_disk(commits["vision_tokenizer"].folder, "tokenizer", recipe.working)
        text_tokenizer: Path | None = on_disk(commits["text_tokenizer"].folder, "tokenizer.json", recipe.working)
    else:
        given = train.data.vision_tokenizer
        if given is None:
            raise RecipeError("--shards needs train.data.vision_tokenizer: the folder of the tokenizer that made them")
        folder, tokenizer, text_tokenizer = any_path(shards, recipe.storage), given, train.data.text_tokenizer
    output = out or training_folder(recipe.working, train, folder)
    copy = copy_of(output, recipe.root) if out is None else None
    return with_absolute_paths(
        with_paths(train, folder, tokenizer, text_tokenizer, output, copy, recipe.storage), Path.cwd()
    )


def _train_section(recipe: Recipe, recipe_path: Path) -> TrainConfig:
    if recipe.train is None:
        raise RecipeError(
            f"{recipe_path} has no `train` section, so it ends with its shards: add one (`train: {{}}` takes the defaults), "
            "or train with a recipe of its own and --shards"
        )
    return recipe.train


def foreseen(recipe: Recipe | TrainingRecipe, recipe_path: Path) -> TrainConfig:
    """The configuration of a training; for a run that has no shards yet, with the sizes that its tokenizers will have."""
    if isinstance(recipe, TrainingRecipe):
        return _of_training_recipe(recipe.train, None, None)
    try:
        return _of_run(recipe, recipe_path, None, None)
    except NoRun:
        vision, train = recipe.vision_tokenizer, _train_section(recipe, recipe_path)
        sizes = {"codebook_size": vision.codebook_size, "codebook_dim": vision.semantic_dim + vision.pixel_dim}
        text = {"text_vocabulary": train.model.text_vocabulary or recipe.text_tokenizer.vocab_size}
        return train.model_copy(
            update={"data": train.data.model_copy(update=sizes), "model": train.model.model_copy(update=text)}
        )
