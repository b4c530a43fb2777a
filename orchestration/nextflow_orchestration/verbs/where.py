"""Where a verb looks for a run: in the root that was named, or where a recipe says that it lies."""

from __future__ import annotations

from pathlib import Path

from nextflow_data.storage.files import any_path

from nextflow_orchestration.recipes.errors import RecipeError
from nextflow_orchestration.recipes.places import work_of
from nextflow_orchestration.recipes.run import load_recipe
from nextflow_orchestration.runs.records import RunPlace


def where(root: str, recipe: Path | None) -> RunPlace:
    """The run of `recipe`, else that in `root`. Raises RecipeError."""
    if recipe is not None:
        loaded = load_recipe(recipe)
        return RunPlace(loaded.root, loaded.working, loaded.name, loaded.model_dump(mode="json"))
    try:
        place = any_path(root)
    except ValueError as error:
        raise RecipeError(f"--root: {error}") from None
    return RunPlace(place, work_of(place))
