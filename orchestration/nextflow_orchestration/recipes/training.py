"""The recipe of one training stage: what `mnf train` takes where the shards are there already.

A whole run's recipe (`recipe.Recipe`) has a `train` section too; which of the two a file is, is told by its keys, so that
there is nothing to declare. The cost: a whole run's recipe that has lost all sections but `train` is taken for one of these.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from nextflow_data.section import Section
from pydantic import Field, model_validator

from megatron_nextflow.config.train import TrainConfig
from nextflow_orchestration.recipes.run import Recipe, load, load_recipe


class TrainingRecipe(Section):
    """One stage of training: alignment, pre-training, continued training, fine-tuning."""

    name: str = Field(min_length=1)
    notes: str = Field(default="", description="what the stage is for, and where its settings come from")
    train: TrainConfig = Field(description="`train.output` left out is runs/NAME")

    @model_validator(mode="before")
    @classmethod
    def _output(cls, tree: Any) -> Any:
        if not isinstance(tree, dict) or not isinstance(tree.get("name"), str) or not isinstance(tree.get("train"), dict):
            return tree
        return tree | {"train": {"output": Path("runs") / tree["name"]} | tree["train"]}


def load_either(path: Path, overrides: list[str] | None = None) -> Recipe | TrainingRecipe:
    """A whole run's recipe or a training recipe. Raises RecipeError as `recipe.load_recipe` does."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError):
        tree = None  # `load` says what is wrong
    keys = set(tree) if isinstance(tree, dict) else set()
    if keys & (set(Recipe.model_fields) - set(TrainingRecipe.model_fields)):
        return load_recipe(path, overrides)
    return load(TrainingRecipe, path, overrides)
