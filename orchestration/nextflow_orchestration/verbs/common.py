"""What every verb of `mnf` shares: its recipe arguments, and errors in one line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

console = Console(stderr=True, highlight=False)

RecipeArg = Annotated[Path, typer.Argument(help="recipe (YAML)")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="override a setting: --set train.steps=20", metavar="KEY=VALUE")
]
RootOption = Annotated[str, typer.Option("--root", help="folder, or s3:// address, of the run to look in")]
OfRecipe = Annotated[
    Path | None, typer.Option("--recipe", help="recipe of the run to look in: its root, and how its store is reached")
]
DEFAULT_ROOT = "runs/quickstart"


@contextmanager
def plain_errors() -> Iterator[None]:
    """An error is one line and exit code 1, or 2 for a mistake in the request; MNF_TRACEBACK=1 shows the rest."""
    try:
        yield
    except typer.Exit:
        raise
    except KeyboardInterrupt:
        console.print("[yellow]Interrupted.[/] What was finished is kept; the same command goes on from there.")
        raise typer.Exit(130) from None
    except ModuleNotFoundError as error:
        from nextflow_orchestration.doctor.requirements import extra_of, pip_install

        extra = extra_of(error.name or "")
        if extra is None:
            raise
        console.print("[red]error:[/]", end=" ")
        console.print(f"this needs {error.name}: {pip_install(extra)}", markup=False, soft_wrap=True)
        raise typer.Exit(2) from None
    except Exception as error:
        if os.environ.get("MNF_TRACEBACK"):
            raise
        from nextflow_orchestration.verbs.failures import describe

        text, code = describe(error)
        console.print("[red]error:[/]", end=" ")
        console.print(text, markup=False, soft_wrap=True)
        raise typer.Exit(code) from None
