"""`mnf checkpoint`: what a training has saved, and whether it is whole."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from nextflow_data.storage.store_path import AnyPath, StorePath
from rich.console import Console
from rich.table import Table

from nextflow_orchestration.verbs.common import plain_errors

app = typer.Typer(help="What a training has saved, and whether it is whole.", no_args_is_help=True, rich_markup_mode="rich")


_Recipe = Annotated[Path | None, typer.Option("--recipe", help="recipe whose storage says how a store is reached")]


def _place(name: str, recipe: Path | None) -> AnyPath:
    from nextflow_data.storage.files import any_path

    from nextflow_orchestration.recipes.training import load_either, storage_of

    return any_path(name, None if recipe is None else storage_of(load_either(recipe)))


@app.command("list")
def list_(
    run: Annotated[
        str, typer.Argument(help="folder of a training, the one that has checkpoints/, or a place that one copies to")
    ],
    recipe: _Recipe = None,
) -> None:
    """The checkpoints of a training, with the one that it would go on from."""
    with plain_errors():
        from nextflow_data.storage.files import state_of

        from megatron_nextflow.checkpoint.copies import copies, is_copy
        from megatron_nextflow.checkpoint.format import CheckpointManifest, read_manifest
        from megatron_nextflow.config.model import layout_words
        from megatron_nextflow.runtime.training_folder import MANIFEST, folder, folder_name, last_step, steps

        place = _place(run, recipe)
        if isinstance(place, Path) and not is_copy(place):
            own = [folder(place) / folder_name(step) for step in steps(place)]
            found: list[tuple[str, AnyPath, CheckpointManifest]] = [(p.name, p / MANIFEST, read_manifest(p)) for p in own]
            in_force = folder_name(last_step(place))
        else:
            found = [(one.path.name, one.path, one.manifest()[0]) for one in copies(place)]
            in_force = found[-1][0] if found else ""
        if not found:
            raise FileNotFoundError(f"{place} holds no whole checkpoint and no copy of one")
        table = Table("checkpoint", "packs", "left out", "bytes", "parallel", "saved", "")
        table.columns[0].no_wrap = True
        for name, path, manifest in found:
            state, saved = manifest.state, state_of(path).modified_ns / 1e9
            table.add_row(
                name,
                f"{state.consumed:,}",
                f"{len(state.skipped)}",
                f"{sum(entry.size for entry in manifest.files.values()):,}",
                layout_words(state.parallel, state.processes),
                f"{datetime.fromtimestamp(saved):%Y-%m-%d %H:%M}",
                "in force" if name == in_force else "",
            )
        Console(highlight=False).print(table)


@app.command()
def verify(
    path: Annotated[
        str, typer.Argument(help="a step-* folder, a copy's manifest, or a training or place of copies for the newest")
    ],
    recipe: _Recipe = None,
) -> None:
    """Reads every file of a checkpoint and compares it with its manifest; exit code 1 where one is damaged. A copy is
    fetched for it into this machine's cache."""
    with plain_errors():
        from megatron_nextflow.checkpoint.copies import is_copy, local_checkpoint
        from megatron_nextflow.checkpoint.verify import read_metadata, shapes, verify_folder
        from megatron_nextflow.runtime.training_folder import MANIFEST, latest

        place = _place(path, recipe)
        if not isinstance(place, Path) or is_copy(place):
            found: Path | None = local_checkpoint(place, place.config if isinstance(place, StorePath) else None)
        else:
            found = place if (place / MANIFEST).is_file() else latest(place)
        if found is None:
            raise FileNotFoundError(f"{place} is no checkpoint and holds none")
        manifest = verify_folder(found)
        size = sum(entry.size for entry in manifest.files.values())
        tensors = len(shapes(read_metadata(found)))
        named = place if is_copy(place) else found
        Console(highlight=False).print(
            f"{named}: whole; {len(manifest.files)} files, {size:,} bytes, {tensors} tensors of step {manifest.state.step}",
            soft_wrap=True,
        )
