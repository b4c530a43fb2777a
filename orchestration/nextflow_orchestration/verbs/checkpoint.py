"""`mnf checkpoint`: what a training has saved, and whether it is whole."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from nextflow_orchestration.verbs.common import plain_errors

app = typer.Typer(help="What a training has saved, and whether it is whole.", no_args_is_help=True, rich_markup_mode="rich")


@app.command("list")
def list_(run: Annotated[Path, typer.Argument(help="folder of a training: the one that has checkpoints/")]) -> None:
    """The checkpoints of a training, with the one that it would go on from."""
    with plain_errors():
        from megatron_nextflow.checkpoint.format import read_manifest
        from megatron_nextflow.config.model import layout_words
        from megatron_nextflow.runtime.training_folder import MANIFEST, folder, folder_name, last_step, steps

        found = steps(run)
        if not found:
            raise FileNotFoundError(f"{folder(run)} holds no whole checkpoint")
        in_force = last_step(run)
        table = Table("checkpoint", "packs", "left out", "bytes", "parallel", "saved", "")
        table.columns[0].no_wrap = True
        for step in found:
            path = folder(run) / folder_name(step)
            manifest = read_manifest(path)
            state = manifest.state
            table.add_row(
                path.name,
                f"{state.consumed:,}",
                f"{len(state.skipped)}",
                f"{sum(entry.size for entry in manifest.files.values()):,}",
                layout_words(state.parallel, state.processes),
                f"{datetime.fromtimestamp((path / MANIFEST).stat().st_mtime):%Y-%m-%d %H:%M}",
                "in force" if step == in_force else "",
            )
        Console(highlight=False).print(table)


@app.command()
def verify(
    path: Annotated[Path, typer.Argument(help="a step-* folder, or the folder of a training for the one in force")],
) -> None:
    """Reads every file of a checkpoint and compares it with its manifest; exit code 1 where one is damaged."""
    with plain_errors():
        from megatron_nextflow.checkpoint.verify import read_metadata, shapes, verify_folder
        from megatron_nextflow.runtime.training_folder import MANIFEST, latest

        found = path if (path / MANIFEST).is_file() else latest(path)
        if found is None:
            raise FileNotFoundError(f"{path} is no checkpoint and holds none")
        manifest = verify_folder(found)
        size = sum(entry.size for entry in manifest.files.values())
        tensors = len(shapes(read_metadata(found)))
        Console(highlight=False).print(
            f"{found}: whole; {len(manifest.files)} files, {size:,} bytes, {tensors} tensors of step {manifest.state.step}",
            soft_wrap=True,
        )
