"""`mnf run`: checks the recipe, brings up a Prefect server, runs the flow, says where everything is."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from nextflow_data.storage.config import StorageConfig
from rich.console import Console

from nextflow_orchestration.recipes.parts import Parts, parts
from nextflow_orchestration.recipes.places import shown
from nextflow_orchestration.recipes.run import Recipe, load_run
from nextflow_orchestration.runs.server import send_what_is_queued, server
from nextflow_orchestration.verbs.common import DEFAULT_ROOT

if TYPE_CHECKING:
    from nextflow_orchestration.flow.whole_run import RunOutcome

NEEDED = {
    "filter": ("datatrove",),
    "vision_tokenizer": ("torch",),
    "tokenize": ("torch",),
    "train": ("torch", "megatron"),
    "generate": ("torch", "megatron"),
}
"""Packages of the extras that parts of a run need, beside what every run does."""


def _missing_packages(which: Parts) -> list[str]:
    """Packages that a run of these parts needs and this environment lacks."""
    needed = ["prefect", "pyspark", *(name for part in which.run for name in NEEDED.get(part, ()))]
    return [name for name in dict.fromkeys(needed) if not _there(name)]


def _there(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ModuleNotFoundError, ValueError):  # an import system that hides it
        return False


def dry_run_recipe(recipe_path: Path, overrides: list[str], first: str | None, last: str | None) -> None:
    """Says what `run_recipe` would do. Raises RecipeError where that would refuse."""
    from nextflow_orchestration.flow.dry_run import dry_run
    from nextflow_orchestration.flow.looking import command

    recipe, which = load_run(recipe_path, overrides, first, last)
    recipe.check_inputs(which)
    console = Console(highlight=False, soft_wrap=True)
    for line in dry_run(recipe, which, command(recipe_path, overrides)):
        console.print(line, markup=False)
    missing = _missing_packages(which)
    if missing:
        console.print(f"To run it, this environment lacks {', '.join(missing)}.", markup=False)


def run_recipe(recipe_path: Path, overrides: list[str], first: str | None, last: str | None) -> None:
    """Runs a recipe's parts from `first` to `last`; None: all it has.

    RecipeError before anything starts; other errors once the stage at fault has been named.
    """
    recipe, which = load_run(recipe_path, overrides, first, last)
    recipe.check_inputs(which)
    for name in _missing_packages(which):  # now, not minutes into it
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    # OpenMP's threads spin while they wait, which beside other load on the same cores makes training crawl; never to spin
    # wastes what two threads gain. Measured on two cores: 1.36 times one thread's speed, 0.73 times beside a busy process.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    errors = Console(stderr=True, highlight=False)
    errors.print(f"[bold]{recipe.name}[/]: {recipe_path} → {shown(recipe.root)}")
    with server(recipe.working) as ui:
        errors.print(f"[dim]Prefect UI while this runs: {ui}   (afterwards: mnf ui{_again(recipe, recipe_path)})[/]")
        from nextflow_orchestration.flow.whole_run import nextflow

        try:
            outcome = nextflow(str(recipe_path), overrides, first, last)
        finally:
            send_what_is_queued()
    console = Console(highlight=False)
    console.print()
    for name, words in _left(outcome):
        console.print(f"[bold]{name:<12}[/]{words}", soft_wrap=True)
    console.print("\nTry next:", *_next(recipe, which, recipe_path, outcome), sep="\n  ", markup=False, soft_wrap=True)


def _left(outcome: RunOutcome) -> Iterator[tuple[str, str]]:
    """What the run left, by name."""
    if outcome.shards is None:
        yield outcome.last.name, shown(outcome.last.dir)
    else:
        yield "shards", shown(outcome.shards)
    if outcome.training is not None:
        yield "checkpoint", f"{shown(outcome.training / 'checkpoints')}  (step {outcome.step})"
    if outcome.image is not None:
        yield "image", shown(outcome.image)
    if outcome.report is not None:
        yield "report", shown(outcome.report)


def _next(recipe: Recipe, which: Parts, recipe_path: Path, outcome: RunOutcome) -> Iterator[str]:
    """Commands worth trying after it."""
    root = _again(recipe, recipe_path)
    if isinstance(outcome.report, Path):
        yield f"open {shown(outcome.report)} in a browser"
    if outcome.shards is not None:
        reached = f" --recipe {shlex.quote(str(recipe_path))}" if _set_up(recipe) else ""
        yield f"mnf audit {shlex.quote(shown(outcome.shards))}{reached}"
        yield f"mnf explain shard-000000:000000-000000{root}"
    if outcome.training is not None and recipe.train is not None:
        yield f'mnf generate --prompt "a coffee cup" --out cup.png{root}'
        yield f"mnf train {recipe_path} --set train.steps={recipe.train.steps * 2}"
    rest = _after(recipe, which)
    if rest is not None:
        yield f"mnf run {recipe_path} --from {rest}"
    yield f"mnf ui{root}"


def _again(recipe: Recipe, recipe_path: Path) -> str:
    """The option by which other verbs find the run; none where it is where they look. The recipe, where only that says how
    its store is reached or where its folder on this machine is."""
    if recipe.work is not None or _set_up(recipe):
        return f" --recipe {shlex.quote(str(recipe_path))}"
    return "" if shown(recipe.root) == DEFAULT_ROOT else f" --root {shlex.quote(shown(recipe.root))}"


def _set_up(recipe: Recipe) -> bool:
    """Whether the root is in a store that is reached by settings of the recipe."""
    return not isinstance(recipe.root, Path) and recipe.storage != StorageConfig()


def _after(recipe: Recipe, which: Parts) -> str | None:
    """The part that comes after the last one that ran."""
    own = parts(None, None, recipe.train is not None).run
    left = own[own.index(which.run[-1]) + 1 :] if which.run[-1] in own else ()
    return left[0] if left else None
