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
EXTRAS = {
    "pyspark": "data", "prefect": "data", "fastwarc": "data", "lxml": "data", "datatrove": "data", "tokenizers": "data",
    "py3langid": "data", "scipy": "data", "xxhash": "data", "PIL": "data", "torch": "train", "megatron": "train",
    "safetensors": "train", "tensorboard": "train", "skimage": "train", "transformers": "siglip",
    "transformer_engine": "gpu", "psutil": "data",
}  # fmt: skip
"""Which extra brings a package, for the error when it is missing."""


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
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        console.print(f"[red]error:[/] this needs {error.name}: pip install 'megatron-nextflow\\[{extra}]'")
        raise typer.Exit(2) from None
    except Exception as error:
        if os.environ.get("MNF_TRACEBACK"):
            raise
        from nextflow_orchestration.verbs.failures import describe

        text, code = describe(error)
        console.print("[red]error:[/]", end=" ")
        console.print(text, markup=False, soft_wrap=True)
        raise typer.Exit(code) from None
