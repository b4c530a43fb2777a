"""`mnf doctor`: what works on this machine and what to do about the rest, as a table or as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import shorten

from nextflow_data.storage.files import any_path
from nextflow_tokenize.config.vision_recipe import TokenizerRecipe
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from nextflow_orchestration.doctor.check import Case, State, checks_of
from nextflow_orchestration.doctor.examine import Examined, examine
from nextflow_orchestration.recipes.kinds import kind_of
from nextflow_orchestration.recipes.places import work_of
from nextflow_orchestration.recipes.run import Recipe, validated
from nextflow_orchestration.recipes.training import TrainingRecipe, load_either
from nextflow_orchestration.recipes.written import read

MARKS = {State.OK: "[green]✓[/]", State.UNNEEDED: "[dim]–[/]", State.BAD: "[red]✗[/]"}


def doctor(recipe_path: Path | None, overrides: list[str], root: str, s3: str | None, as_json: bool) -> bool:
    """Whether all works that is needed. Raises RecipeError for a recipe that cannot be read."""
    recipe = None if recipe_path is None else _load(recipe_path, overrides)
    place = any_path(root)
    if recipe is None and not isinstance(place, Path):
        s3 = s3 or str(place)
    case = Case(work_of(place) if recipe is None else _root(recipe), s3, recipe)
    checks = checks_of(case)
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn())
    found: list[Examined] = []
    # Drawn by hand: a thread that draws must not be there when processes are forked.
    errors = Console(stderr=True)
    with Progress(*columns, console=errors, transient=True, auto_refresh=False, disable=not errors.is_terminal) as bar:
        task = bar.add_task("looking", total=len(checks))
        bar.refresh()
        for result in examine(case, checks):
            found.append(result)
            bar.update(task, advance=1, refresh=True)
    found.sort(key=lambda result: checks.index(result.check))
    fit = not any(result.counts and result.finding.state is State.BAD for result in found)
    if as_json:
        print(json.dumps({"ok": fit, "checks": [result.record() for result in found]}, indent=1, ensure_ascii=False))
    else:
        _show(found, fit)
    return fit


def _load(path: Path, overrides: list[str]) -> Recipe | TrainingRecipe | TokenizerRecipe:
    written = read(path, overrides)
    return validated(TokenizerRecipe, written) if kind_of(written) == "tokenizer" else load_either(path, overrides)


def _root(recipe: Recipe | TrainingRecipe | TokenizerRecipe) -> Path:
    if isinstance(recipe, Recipe):
        return recipe.working
    return recipe.output if isinstance(recipe, TokenizerRecipe) else recipe.train.output


def _show(found: list[Examined], fit: bool) -> None:
    from rich.markup import escape

    console = Console(highlight=False)
    table = Table(box=None, padding=(0, 1), show_header=False)
    for name in ("area", "mark", "check"):
        table.add_column(name, no_wrap=True)
    table.add_column("found", overflow="fold")
    area = ""
    for result in found:
        finding = result.finding
        # A list of versions is for --json.
        words = shorten(finding.found, 120, placeholder=" …") if finding.state is State.OK else finding.found
        what = escape(words) + (f" [yellow]→ {escape(finding.advice)}[/]" if finding.advice else "")
        head = "" if result.check.area == area else f"[bold]{result.check.area}[/]"
        area = result.check.area
        table.add_row(head, MARKS[finding.state], result.check.name, what)
    console.print(table)
    wrong = [result for result in found if result.finding.state is State.BAD]
    need = sum(result.counts for result in wrong)
    if fit:
        rest = f"; {len(wrong)} that a run on the CPU does without" if wrong else ""
        console.print(f"[green]all that is needed works[/]{rest}")
    else:
        console.print(f"[red]{need} of {len(found)} checks found what must be mended[/]")
