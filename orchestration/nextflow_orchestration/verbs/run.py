"""`mnf run`: checks the recipe, brings up a Prefect server, runs the flow, says where everything is."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from nextflow_orchestration.recipes.run import load_recipe
from nextflow_orchestration.runs.server import send_what_is_queued, server

NEEDED = ("prefect", "pyspark", "datatrove", "torch", "megatron")


def _require_packages() -> None:
    """ModuleNotFoundError for the first package a run needs and this environment lacks: now, not minutes into it."""
    for name in NEEDED:
        if find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def run_recipe(recipe_path: Path, overrides: list[str]) -> None:
    """Runs a recipe whole. RecipeError before anything starts; other errors once the stage at fault has been named."""
    recipe = load_recipe(recipe_path, overrides)
    recipe.check_inputs()
    _require_packages()
    # OpenMP's threads spin while they wait, which beside other load on the same cores makes training crawl; never to spin
    # wastes what two threads gain. Measured on two cores: 1.36 times one thread's speed, 0.73 times beside a busy process.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    console = Console(highlight=False)
    errors = Console(stderr=True, highlight=False)
    errors.print(f"[bold]{recipe.name}[/]: {recipe_path} → {recipe.root}")
    with server(recipe.root) as ui:
        errors.print(f"[dim]Prefect UI while this runs: {ui}   (afterwards: mnf ui --root {recipe.root})[/]")
        from nextflow_orchestration.flow.whole_run import nextflow

        try:
            outcome = nextflow(str(recipe_path), overrides)
        finally:
            send_what_is_queued()
    console.print()
    console.print(f"[bold]shards[/]      {outcome.shards}", soft_wrap=True)
    console.print(f"[bold]checkpoint[/]  {outcome.training / 'checkpoints'}  (step {outcome.step})", soft_wrap=True)
    console.print(f"[bold]image[/]       {outcome.image}", soft_wrap=True)
    console.print(f"[bold]report[/]      {outcome.report}", soft_wrap=True)
    root = f" --root {recipe.root}" if str(recipe.root) != "runs/quickstart" else ""
    console.print(
        "\nTry next:\n"
        f"  open {outcome.report} in a browser\n"
        f"  mnf audit {outcome.shards}\n"
        f"  mnf explain shard-000000:000000-000000{root}\n"
        f'  mnf generate --prompt "a coffee cup" --out cup.png{root}\n'
        f"  mnf train {recipe_path} --set train.steps={recipe.train.steps * 2}\n"
        f"  mnf ui{root}",
        markup=False,
        soft_wrap=True,
    )
