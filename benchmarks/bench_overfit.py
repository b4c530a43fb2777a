"""Does the small recipe learn? 64 real photographs and screenshots at level 256, within ten minutes on two cores.

Claims: training images at 24 dB or more, held-out ones at 20 dB or more, 60 % or more of the codebook in use; the dual
branch agrees better with its semantic teacher than a single branch, at a cost in pixels that is reported; decoding drawn
codes loses little against nearest ones, and far less than the naive variant. Run: python benchmarks/bench_overfit.py
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

from common import report, table
from nextflow_orchestration.recipes.run import load
from nextflow_tokenize.config.vision import SelfCorrectionConfig, VisionTrainingConfig
from nextflow_tokenize.config.vision_recipe import TokenizerRecipe
from nextflow_tokenize.vision.images.dataset import Pool, load_pool
from nextflow_tokenize.vision.images.image_index import encoded_images, index
from nextflow_tokenize.vision.model import VisionTokenizer, cpu_threads
from nextflow_tokenize.vision.scores.evaluate import EvalReport, evaluate_pictures
from nextflow_tokenize.vision.scores.sheets import pixels_for, schedule_for, sheet_of
from nextflow_tokenize.vision.training.whole_training import train_by_recipe
from pictures import write
from self_correction import measure

RECIPE = Path(__file__).parent.parent / "recipes" / "tokenizer_small.yaml"
BARS = {"training": 24.0, "held out": 20.0, "usage": 0.6, "seconds": 600.0}


def trained(recipe: TokenizerRecipe) -> float:
    """Trains; returns the wall seconds of all stages."""
    started = time.monotonic()
    for outcome in train_by_recipe(recipe, say=lambda text: print(text, flush=True), device="cpu"):
        print(outcome.name, outcome.report, flush=True)
    return time.monotonic() - started


def single(recipe: TokenizerRecipe, output: Path) -> TokenizerRecipe:
    """The same recipe with one branch and without the decoder stage: pixel codes, and a semantic decoder that reads them."""
    tree: dict[str, Any] = recipe.model_dump(mode="json")
    tree["vision_tokenizer"]["branches"] = "pixel"
    tree["stages"] = tree["stages"][:2]
    return TokenizerRecipe.model_validate(tree | {"output": str(output)})


def pool_of(recipe: TokenizerRecipe, settings: VisionTrainingConfig) -> Pool:
    """The images that a recipe trains on and those it holds out."""
    images = encoded_images(index(recipe.images, recipe.output / "images.parquet"))
    return load_pool(images, recipe.resolved()[0].levels, settings.held_out, settings.max_images, settings.seed)


def scores(folder: Path, pool: Pool) -> tuple[EvalReport, EvalReport]:
    """Of training and held-out images."""
    tokenizer = VisionTokenizer.load(folder)
    return evaluate_pictures(tokenizer, pool.training), evaluate_pictures(tokenizer, pool.held_out)


def main() -> None:
    """The benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/bench-overfit"), help="folder for pictures and tokenizers")
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="override a setting of the recipe")
    parser.add_argument("--reports", type=Path, default=Path(__file__).parent / "reports")
    given = parser.parse_args()
    print(write(given.work / "pictures", given.work / "wheels"), "pictures")
    shutil.rmtree(given.work / "dual", ignore_errors=True)
    shutil.rmtree(given.work / "single", ignore_errors=True)
    fixed = [f"images={given.work / 'pictures'}", f"output={given.work / 'dual'}", "vision_tokenizer.training.held_out=0.18"]
    recipe = load(TokenizerRecipe, RECIPE, [*fixed, *given.overrides])
    one_branch = single(recipe, given.work / "single")
    pool = pool_of(recipe, recipe.resolved()[0].training)
    print(len(pool.training), "to train on,", len(pool.held_out), "held out")

    seconds = trained(recipe)
    trained(one_branch)
    with cpu_threads(1):
        seen, held = scores(given.work / "dual" / "tokenizer", pool)
        dual = scores(given.work / "dual" / f"2-{recipe.stages[1].name}" / "tokenizer", pool)
        alone = scores(given.work / "single" / "tokenizer", pool)
        tokenizer = VisionTokenizer.load(given.work / "dual" / "tokenizer")
        images = []
        for picture in (*pool.training, *pool.held_out):
            schedule = schedule_for(tokenizer, picture.size)
            assert schedule is not None
            images.append((pixels_for(tokenizer, picture.image, schedule), schedule))
        losses = {f"k = {k}": measure(tokenizer, images, SelfCorrectionConfig(top_k=k)) for k in (5, 10, 50)}
        sheet = sheet_of(tokenizer, [*pool.training[:6], *pool.held_out[:6]], cell=144)

    met = {
        "training": seen.psnr >= BARS["training"],
        "held out": held.psnr >= BARS["held out"],
        "usage": seen.usage >= BARS["usage"],
        "seconds": seconds <= BARS["seconds"],
    }
    sections = [
        table(
            "Learning",
            ["measure", "bar", "measured", ""],
            [
                ["PSNR of the 64 training images", "≥ 24 dB", f"{seen.psnr:.2f} dB", verdict(met["training"])],
                [f"PSNR of {len(held.images)} held-out images", "≥ 20 dB", f"{held.psnr:.2f} dB", verdict(met["held out"])],
                ["codes in use on the training images", "≥ 60 %", f"{100 * seen.usage:.1f} %", verdict(met["usage"])],
                ["wall time, all stages, one process", "≤ 600 s", f"{seconds:.0f} s", verdict(met["seconds"])],
                ["SSIM, training / held out", "", f"{seen.ssim:.3f} / {held.ssim:.3f}", ""],
                ["codebook perplexity, training", "", f"{seen.perplexity:,.0f} of {tokenizer.config.codebook_size:,}", ""],
            ],
        ),
        table(
            "Dual branch against single branch, before the decoder stage, same images, steps and codebook size",
            ["", "PSNR training", "PSNR held out", "semantic cosine training", "semantic cosine held out"],
            [
                [name, f"{a.psnr:.2f} dB", f"{b.psnr:.2f} dB", f"{a.semantic_cosine:.3f}", f"{b.semantic_cosine:.3f}"]
                for name, (a, b) in {"dual": dual, "single": alone}.items()
            ],
        ),
        table(
            "Self-correction, 100 % of images and 60 % of tokens: decoded PSNR over all images",
            ["neighbours", "codes changed", "nearest", "drawn, residual follows", "lost", "naive", "lost"],
            [
                [
                    name, f"{100 * loss.changed:.0f} %", f"{loss.nearest:.2f} dB", f"{loss.drawn:.2f} dB",
                    f"{loss.nearest - loss.drawn:.2f} dB", f"{loss.naive:.2f} dB",
                    f"{loss.nearest - loss.naive:.2f} dB",
                ]
                for name, loss in losses.items()
            ],
        ),
    ]  # fmt: skip
    remarks = [
        "The semantic teacher is the classical descriptor, the single branch's semantic decoder a probe on its pixel codes; "
        f"the pixel cost of the dual branch is {alone[1].psnr - dual[1].psnr:.2f} dB held out and "
        f"{alone[0].psnr - dual[0].psnr:.2f} dB on the training images.",
        "Sheet: the first six rows are training images, the others held-out ones.",
    ]
    path = report("overfit", __doc__ or "", sections, remarks, given.reports)
    sheet.convert("RGB").save(path.with_suffix(".jpg"), quality=85)
    print(path)
    if not all(met.values()):
        raise SystemExit(f"not met: {', '.join(name for name, fine in met.items() if not fine)}")


def verdict(fine: bool) -> str:
    """In a word."""
    return "met" if fine else "**missed**"


if __name__ == "__main__":
    main()
