"""`mnf convert`: Qwen2.5-VL's language model from Hugging Face's files to a checkpoint, and back."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from nextflow_orchestration.verbs.common import plain_errors

app = typer.Typer(
    help="Qwen2.5-VL's language model from Hugging Face's files to a checkpoint, and back.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

Precision = Literal["bf16", "float32"]


def _start() -> None:
    """Set up the device, before Megatron; it and torch warn about much that is by design here."""
    from megatron_nextflow.runtime.device import setup

    warnings.simplefilter("ignore")
    setup("cpu")


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(metavar="HF_DIR", help="folder of config.json and safetensors weights")],
    vision_tokenizer: Annotated[Path, typer.Option(help="folder of the vision tokenizer that the shards are made with")],
    text_tokenizer: Annotated[Path, typer.Option(help="tokenizer.json that the shards are made with")],
    out: Annotated[Path, typer.Option(help="folder to write: a run with one checkpoint, of step 0")],
    max_length: Annotated[int | None, typer.Option(help="most slots of a pack (default: the recipes' own)", min=8)] = None,
    dtype: Annotated[Precision | None, typer.Option(help="bf16 or float32 (default: as the weights are)")] = None,
) -> None:
    """A checkpoint to train on from, or generate with, out of Qwen2.5-VL weights; the vision encoder is left out."""
    with plain_errors():
        import yaml

        _start()
        from megatron_nextflow.conversion.from_hf import import_hf

        with _bar("importing") as bar:
            done = import_hf(
                source, vision_tokenizer, text_tokenizer, out, max_length=max_length, precision=dtype, progress=bar
            )
        state, console = done.state, Console(highlight=False)
        new = "NextFlow's own tensors as they were exported" if done.kept else "connector, scales and their rows are new"
        head = "; the head is a copy of the embedding, which it was tied to" if done.tied else ""
        left_out = f"{done.vision} tensors of the vision encoder left out ({done.vision_parameters:,} parameters)"
        console.print(
            f"{out}: {done.tensors} tensors, {done.parameters:,} parameters, {done.precision}; {left_out}\n"
            f"{state.text_vocabulary:,} text rows, {done.text_ids:,} of them in the text tokenizer's use, ⟨boi⟩, ⟨eoi⟩ and "
            f"{state.codebook_size:,} codes; {new}{head}\n"
            "to train on, in the recipe:",
            soft_wrap=True,
        )
        model = state.model.model_dump(mode="json", exclude_defaults=True)
        text = yaml.safe_dump({"train": {"init_from": str(out), "model": model}}, sort_keys=False, default_flow_style=None)
        console.print(text, end="", markup=False, soft_wrap=True)


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="a step's folder, or a run's for its latest checkpoint")],
    out: Annotated[Path, typer.Option(help="folder to write config.json and safetensors weights to")],
) -> None:
    """Files that transformers loads as a Qwen2.5-VL text model; what only NextFlow has lies in nextflow.safetensors."""
    with plain_errors():
        _start()
        from megatron_nextflow.conversion.to_hf import export_hf

        with _bar("exporting") as bar:
            done = export_hf(checkpoint, out, bar)
        tied = ", the head tied to the embedding" if done.tied else ""
        what = f"step {done.state.step}, {done.tensors} tensors, {done.parameters:,} parameters in {done.files} files{tied}"
        Console(highlight=False).print(f"{out}: {what}", soft_wrap=True)
