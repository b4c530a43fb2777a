"""The recipe of one training stage: what `mnf train` takes where the shards are there already.

A whole run's recipe (`recipes.run.Recipe`) may have a `train` section too; which of the two a file is, is told by its keys,
so that there is nothing to declare. The cost: a whole run's recipe that has lost all sections but `train` is taken for one
of these.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nextflow_data.common.section import Section
from nextflow_data.storage.config import StorageConfig
from pydantic import Field, model_validator

from megatron_nextflow.config.train import TrainConfig
from nextflow_orchestration.recipes.kinds import kind_of, require_kind
from nextflow_orchestration.recipes.run import Recipe, load_parts, validated
from nextflow_orchestration.recipes.written import read


class TrainingRecipe(Section):
    """One stage of training: alignment, pre-training, continued training, fine-tuning."""

    name: str = Field(min_length=1)
    """Also the training's folder and the Slurm job's name, unless these are set."""
    notes: str = ""
    """What the stage is for, and where its settings come from."""
    train: TrainConfig
    """`output` left out is runs/NAME."""

    @model_validator(mode="before")
    @classmethod
    def _output(cls, tree: Any) -> Any:
        if not isinstance(tree, dict) or not isinstance(tree.get("name"), str) or not isinstance(tree.get("train"), dict):
            return tree
        return tree | {"train": {"output": Path("runs") / tree["name"]} | tree["train"]}


def load_either(path: Path, overrides: list[str] | None = None) -> Recipe | TrainingRecipe:
    """A whole run's recipe or a training recipe. Raises RecipeError as `recipes.run.load_recipe` does."""
    written = read(path, overrides)
    require_kind(written, "run", "training")
    return load_parts(written)[0] if kind_of(written) == "run" else validated(TrainingRecipe, written)


def storage_of(recipe: Recipe | TrainingRecipe) -> StorageConfig:
    """How a recipe of either kind reaches stores."""
    return recipe.storage if isinstance(recipe, Recipe) else recipe.train.storage
