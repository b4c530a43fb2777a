"""`mnf tokenizer`: train, evaluate and look at vision tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from nextflow_orchestration.verbs.common import DEFAULT_ROOT, RecipeArg, RootOption, SetOption, plain_errors

app = typer.Typer(
    help="Train, evaluate, export and look at vision tokenizers.", no_args_is_help=True, rich_markup_mode="rich"
)

Device = Literal["auto", "cpu", "cuda"]
FolderArg = Annotated[Path, typer.Argument(help="tokenizer: the folder with config.json and weights.safetensors")]
LevelsOption = Annotated[list[int] | None, typer.Option("--level", help="resolution level: 128, 256, 512 or 1024")]


@app.command()
def train(
    recipe: RecipeArg,
    set_: SetOption = None,
    processes: Annotated[int, typer.Option(help="processes on this machine, one a GPU or core", min=1)] = 1,
    device: Annotated[Device, typer.Option(help="auto: a GPU where torch sees one")] = "auto",
) -> None:
    """Trains a tokenizer by its recipe, stage by stage; the same command goes on where it was stopped."""
    with plain_errors():
        from nextflow_orchestration.tokenizer.commands import train_tokenizer

        train_tokenizer(recipe, set_ or [], processes, device)


@app.command("eval")
def evaluate(
    tokenizer: FolderArg,
    images: Annotated[list[str], typer.Argument(help="folders, image files, .tar or .warc files")],
    level: LevelsOption = None,
    out: Annotated[Path | None, typer.Option(help="folder for evaluation.json, evaluation.md and sheet.png")] = None,
    lpips: Annotated[Path | None, typer.Option(help="folder with LPIPS's VGG16 and linear weights")] = None,
    inception: Annotated[Path | None, typer.Option(help="file with the FID Inception weights, for rFID")] = None,
    teacher: Annotated[Path | None, typer.Option(help="folder of the SigLIP teacher, for semantic agreement")] = None,
    most: Annotated[int, typer.Option(help="images at most, chosen by hash", min=1)] = 1000,
    device: Annotated[Device, typer.Option(help="auto: a GPU where torch sees one")] = "auto",
) -> None:
    """PSNR, SSIM, LPIPS, rFID, semantic agreement and codebook use, by level and ratio, with a contact sheet."""
    with plain_errors():
        from nextflow_orchestration.tokenizer.scores import evaluate_tokenizer

        evaluate_tokenizer(tokenizer, images, level, out, lpips, inception, teacher, most, device)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="a stage's folder, finished or at work, of `mnf tokenizer train`")],
    out: Annotated[Path, typer.Option(help="folder to write config.json and weights.safetensors to")],
) -> None:
    """A tokenizer from a training that is still at work (its newest checkpoint) or finished."""
    with plain_errors():
        from nextflow_orchestration.tokenizer.commands import export_tokenizer

        export_tokenizer(run, out)


@app.command("import")
def import_(
    checkpoint: Annotated[Path, typer.Argument(help="an official TokenFlow checkpoint (SigLIP variant, .pt)")],
    out: Annotated[Path, typer.Option(help="folder to write config.json and weights.safetensors to")],
) -> None:
    """A tokenizer from TokenFlow's published checkpoint, to encode and decode with."""
    with plain_errors():
        from nextflow_orchestration.tokenizer.commands import import_tokenizer

        import_tokenizer(checkpoint, out)


@app.command()
def roundtrip(
    image: Annotated[Path, typer.Argument(help="an image file")],
    tokenizer: Annotated[
        Path | None, typer.Option(help="tokenizer folder (default: the one that the run in --root used)")
    ] = None,
    root: RootOption = DEFAULT_ROOT,
    out: Annotated[Path | None, typer.Option(help="PNG to write (default: beside the image, IMAGE-roundtrip.png)")] = None,
    level: Annotated[int | None, typer.Option(help="resolution level (default: the highest trained)")] = None,
) -> None:
    """The image after 1, 2, 4, … and all scales, side by side as one PNG."""
    with plain_errors():
        from nextflow_orchestration.tokenizer.commands import roundtrip_image

        roundtrip_image(image, tokenizer, root, out, level)
