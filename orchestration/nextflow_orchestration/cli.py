"""`mnf`: one command, one verb a task. Each verb is a few lines over a function that a script could call too.

Nothing heavy is imported until a verb needs it, so `mnf --help` answers at once and works in a base install.

Exit status: 0 done, also where a training was told to stop and saved; 1 failed, or what was examined is not right; 2
refused, for a mistake in the request or for want of what it needs (`nextflow_data.common.errors` decides): trying again
would not help; 130 interrupted.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from nextflow_orchestration.verbs import checkpoint as checkpoint_cli
from nextflow_orchestration.verbs import convert as convert_cli
from nextflow_orchestration.verbs import tokenizer as tokenizer_cli
from nextflow_orchestration.verbs import train as training_cli
from nextflow_orchestration.verbs.common import (
    DEFAULT_ROOT,
    OfRecipe,
    RecipeArg,
    RootOption,
    SetOption,
    plain_errors,
)

app = typer.Typer(
    help="Web pages to verified shards of multi-scale image tokens, and a Megatron-Core trainer that learns from them.",
    epilog="Exit status: 0 done; 1 failed, or found wrong; 2 a mistake in the request; 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(tokenizer_cli.app, name="tokenizer")
app.add_typer(convert_cli.app, name="convert")
app.add_typer(checkpoint_cli.app, name="checkpoint")


@app.command()
def run(
    recipe: RecipeArg,
    set_: SetOption = None,
    first: Annotated[str | None, typer.Option("--from", help="stage to begin with; what lies before is committed")] = None,
    last: Annotated[str | None, typer.Option("--to", help="stage to end with: ingest … pack, train, report")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would run, read and be kept")] = False,
) -> None:
    """Everything, from source files to shards, a trained model, a generated image and a report; or a stretch of it.

    Skips what is already committed. A recipe without a `train` section ends with its shards and their report.
    """
    with plain_errors():
        from nextflow_orchestration.verbs.run import dry_run_recipe, run_recipe

        (dry_run_recipe if dry_run else run_recipe)(recipe, set_ or [], first, last)


app.command()(training_cli.train)
app.command()(training_cli.page)


@app.command()
def generate(
    prompt: Annotated[list[str], typer.Option(help="what to show or to continue, <image> for each --image; repeatable")],
    image: Annotated[list[Path] | None, typer.Option(help="image for the next <image> of the prompts; repeatable")] = None,
    out: Annotated[Path | None, typer.Option(help="PNG (or folder) to write; without it, text is continued")] = None,
    interleaved: Annotated[bool, typer.Option("--interleaved", help="text in which the model begins images")] = False,
    checkpoint: Annotated[Path | None, typer.Option(help="checkpoint folder (default: the run's last one)")] = None,
    root: RootOption = DEFAULT_ROOT,
    recipe: OfRecipe = None,
    n: Annotated[int, typer.Option(help="results a prompt, seeds one after the other", min=1)] = 1,
    batch: Annotated[int, typer.Option(help="results computed beside each other", min=1)] = 4,
    preview: Annotated[Path | None, typer.Option(help="folder or PNG for the image after each scale")] = None,
    level: Annotated[int | None, typer.Option(help="resolution level: 128, 256, 512 or 1024")] = None,
    prompt_level: Annotated[int | None, typer.Option(help="level of the prompts' images (default: --level)")] = None,
    aspect: Annotated[str | None, typer.Option(help="16:9 (width to height), or height over width")] = None,
    guidance: Annotated[float | None, typer.Option(help="classifier-free guidance at the last scale; 0: none")] = None,
    guidance_schedule: Annotated[str | None, typer.Option(help="rising or constant over the scales")] = None,
    temperature: Annotated[str | None, typer.Option(help="sampling temperature, by scale with commas: 1.2,1,0.9")] = None,
    top_k: Annotated[str | None, typer.Option(help="sample among this many codes or words; 0: all; by scale too")] = None,
    top_p: Annotated[str | None, typer.Option(help="sample within this probability; by scale too")] = None,
    seed: Annotated[int | None, typer.Option(help="seed of the sampling")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="tokens of text")] = None,
    max_images: Annotated[int | None, typer.Option(help="images of --interleaved text")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, float32 or bf16")] = None,
    text_tokenizer: Annotated[Path | None, typer.Option(help="tokenizer.json (default: the training's)")] = None,
    vision_tokenizer: Annotated[Path | None, typer.Option(help="tokenizer's folder (default: the training's)")] = None,
) -> None:
    """Images from prompts of text and images, scale by scale; text with images; or with no --out, more text.

    Options left out are those of the run's recipe.
    """
    with plain_errors():
        from nextflow_orchestration.generation import generate_from_run
        from nextflow_orchestration.verbs.where import where

        generate_from_run(
            where(root, recipe), checkpoint, prompt, out, images=image or [], interleaved=interleaved, n=n, batch=batch,
            files={"preview": preview, "text-tokenizer": text_tokenizer, "vision-tokenizer": vision_tokenizer},
            level=level, prompt_level=prompt_level, aspect=aspect, guidance=guidance, guidance_schedule=guidance_schedule,
            temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, max_tokens=max_tokens, max_images=max_images,
            precision=precision,
        )  # fmt: skip


@app.command()
def audit(
    shards: Annotated[str, typer.Argument(help="shard set: the folder, or s3:// address, of manifest.json and the tars")],
    report: Annotated[
        Path | None, typer.Option(help="HTML page to write (default: audit.html beside the set; here for one in a store)")
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="recipe whose `storage` says how the store is reached")] = None,
) -> None:
    """Verifies every hash, count, code and grid of a shard set; exits 1 when anything is wrong."""
    with plain_errors():
        from nextflow_orchestration.verbs.audit import audit_shards

        if not audit_shards(shards, report, recipe):
            raise typer.Exit(1)


@app.command()
def explain(
    query: Annotated[str, typer.Argument(help="a page's address, a document id, or shard:key")],
    root: RootOption = DEFAULT_ROOT,
    recipe: OfRecipe = None,
) -> None:
    """The whole story of a document: its record, each decision, and the pack that holds it or why none does.

    Exits 1 when nothing is called so.
    """
    with plain_errors():
        from nextflow_orchestration.explain.find import explain as tell
        from nextflow_orchestration.explain.story import print_story
        from nextflow_orchestration.verbs.where import where

        place = where(root, recipe)
        story = tell(place.root, query, place.recipe)
        print_story(story, Console())
        if not story.found:
            raise typer.Exit(1)


@app.command()
def schedule(
    recipe: RecipeArg,
    cron: Annotated[str, typer.Option(help='when to run, five fields: "0 3 * * *"')],
    set_: SetOption = None,
) -> None:
    """Serves the recipe's flow as a Prefect deployment with a schedule, until Ctrl-C."""
    with plain_errors():
        from nextflow_orchestration.verbs.schedule import serve

        serve(recipe, set_ or [], cron)


@app.command()
def ui(
    root: RootOption = DEFAULT_ROOT,
    recipe: OfRecipe = None,
    work: Annotated[Path | None, typer.Option(help="the run's folder on this machine, where it set one")] = None,
    port: Annotated[int, typer.Option(help="port of the Prefect server")] = 4200,
) -> None:
    """Keeps a Prefect server up for the runs beside ROOT, past and present; open the address it prints."""
    with plain_errors():
        from nextflow_orchestration.runs.server import serve_standing
        from nextflow_orchestration.verbs.where import where

        raise typer.Exit(serve_standing(work or where(root, recipe).work, port))


@app.command()
def doctor(
    recipe: Annotated[Path | None, typer.Argument(help="a recipe of any kind, to check what it asks for too")] = None,
    set_: SetOption = None,
    root: Annotated[
        str, typer.Option("--root", help="folder or s3:// address that runs would write to (default: the recipe's)")
    ] = DEFAULT_ROOT,
    s3: Annotated[
        str | None, typer.Option(help="s3://bucket/prefix to try, beside the recipe's; AWS_ENDPOINT_URL names the server")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="for machines")] = False,
) -> None:
    """What works on this machine, and what to do about the rest; exits 1 where something that is needed does not work."""
    with plain_errors():
        from nextflow_orchestration.verbs.doctor import doctor as look

        if not look(recipe, set_ or [], root, s3, as_json):
            raise typer.Exit(1)


@app.command()
def recipe(
    recipe: RecipeArg,
    set_: SetOption = None,
    plain: Annotated[bool, typer.Option("--plain", help="settings and values alone")] = False,
) -> None:
    """Checks a recipe and prints it resolved: every setting, with its value and what it is."""
    with plain_errors():
        from nextflow_orchestration.recipes.printed import printed
        from nextflow_orchestration.recipes.training import load_either

        typer.echo(printed(load_either(recipe, set_ or []), comments=not plain), nl=False)


def main() -> None:
    """Entry point of `mnf`."""
    sys.exit(app(standalone_mode=True))


if __name__ == "__main__":
    main()
