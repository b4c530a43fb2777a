"""Which remedy keeps the codebook alive? The same short joint training with each way of placing and moving codes.

Compared: TokenFlow's gradient codebook as published (random start), with a k-means start, with restarts of dead codes too;
SimVQ (arXiv 2411.02038), the literature's newer answer to collapse; running means from random codes, from k-means, and with
restarts, our default. Run: python benchmarks/bench_codebook.py
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from common import report, table
from nextflow_tokenize.config.vision import VisionTokenizerConfig
from nextflow_tokenize.vision.images.dataset import load_pool
from nextflow_tokenize.vision.images.image_index import encoded_images, index
from nextflow_tokenize.vision.model import VisionTokenizer, cpu_threads
from nextflow_tokenize.vision.scores.evaluate import EvalReport, evaluate_pictures
from nextflow_tokenize.vision.training.training_stage import train_one_stage
from pictures import write

VARIANTS: dict[str, dict[str, object]] = {
    "gradient, random start (TokenFlow)": {"codebook": "gradient", "kmeans_iterations": 0, "restart_below": 0.0},
    "gradient, k-means start": {"codebook": "gradient", "restart_below": 0.0},
    "gradient, k-means start, restarts": {"codebook": "gradient"},
    "SimVQ, random start": {"codebook": "simvq", "kmeans_iterations": 0},
    "SimVQ, k-means start": {"codebook": "simvq"},
    "running means, random start": {"kmeans_iterations": 0, "restart_below": 0.0},
    "running means, k-means start": {"restart_below": 0.0},
    "running means, random start, restarts": {"kmeans_iterations": 0},
    "running means, k-means start, restarts (default)": {},
}


def main() -> None:
    """The benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/bench-codebook"), help="folder for pictures and tokenizers")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--codes", type=int, default=4096)
    parser.add_argument("--linear", action=argparse.BooleanOptionalAction, default=True, help="the network's linear skip")
    parser.add_argument("--reports", type=Path, default=Path(__file__).parent / "reports")
    given = parser.parse_args()
    write(given.work / "pictures", given.work / "wheels")
    images = encoded_images(index([str(given.work / "pictures")], given.work / "images.parquet"))
    rows = []
    for name, changes in VARIANTS.items():
        training: dict[str, object] = {
            "steps": given.steps, "learning_rate": 5e-4, "batch_tokens": 256, "held_out": 0.18, "scale_drop": 0.0,
            "checkpoint_interval": 0,
        } | changes  # fmt: skip
        config = VisionTokenizerConfig.model_validate(
            {"levels": (256,), "codebook_size": given.codes, "linear_skip": given.linear, "training": training}
        )
        folder = given.work / "tokenizer"
        shutil.rmtree(folder, ignore_errors=True)
        done = train_one_stage(images, config, folder)
        pool = load_pool(images, config.levels, config.training.held_out, config.training.max_images, 0)
        with cpu_threads(1):
            tokenizer = VisionTokenizer.load(folder)
            seen, held = evaluate_pictures(tokenizer, pool.training), evaluate_pictures(tokenizer, pool.held_out)
        print(name, f"{seen.psnr:.2f} {held.psnr:.2f} {seen.usage:.3f} {seen.perplexity:.0f}", flush=True)
        rows.append([name, *cells(seen, held), f"{done.seconds:.0f} s"])
    header = ["codes", "PSNR training", "PSNR held out", "in use", "perplexity", "never chosen", "semantic cosine", "time"]
    remark = (
        f"{given.codes:,} codes, {given.steps} steps of one image at level 256. In use: the share of codes chosen at any "
        "scale of any training image after training."
    )
    shown = table("Ways of moving the codes", header, rows)
    print(report(f"codebook-{given.codes}", __doc__ or "", [shown], [remark], given.reports))


def cells(seen: EvalReport, held: EvalReport) -> list[str]:
    """A variant's numbers in words."""
    return [
        f"{seen.psnr:.2f} dB", f"{held.psnr:.2f} dB", f"{100 * seen.usage:.1f} %", f"{seen.perplexity:,.0f}",
        f"{seen.dead:,}", f"{held.semantic_cosine:.3f}",
    ]  # fmt: skip


if __name__ == "__main__":
    main()
