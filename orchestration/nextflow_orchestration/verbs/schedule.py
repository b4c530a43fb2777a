"""`mnf schedule`: the recipe's flow as a Prefect deployment that a cron line starts.

The deployment is served from this process (Prefect's runner starts each run as a child), which needs no worker pool. The
cost: the schedule lives as long as the process, so keep it under systemd or the like; missed runs are not made up for.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from nextflow_orchestration.recipes.errors import RecipeError
from nextflow_orchestration.recipes.run import load_recipe
from nextflow_orchestration.runs.server import server


def serve(recipe_path: Path, overrides: list[str], cron: str) -> None:
    """Serves until interrupted. Raises RecipeError for a bad recipe or cron line before anything starts."""
    recipe = load_recipe(recipe_path, overrides)
    recipe.check_inputs()
    console = Console(stderr=True, highlight=False)
    with server(recipe.working) as ui:
        from prefect.client.schemas.schedules import CronSchedule
        from pydantic import ValidationError

        from nextflow_orchestration.flow.whole_run import nextflow

        try:
            CronSchedule(cron=cron)
        except ValidationError as error:
            raise RecipeError(f'--cron "{cron}": {error.errors()[0]["msg"]}; five fields, as in "0 3 * * *"') from None
        console.print(f'Serving "{recipe.name}" at "{cron}" (UTC unless Prefect is told otherwise); Prefect UI: {ui}')
        console.print("Ctrl-C stops the schedule, not what is committed.")
        nextflow.serve(
            name=recipe.name,
            cron=cron,
            parameters={"recipe_path": str(recipe_path.absolute()), "overrides": overrides},
            limit=1,
            print_starting_message=False,
        )
