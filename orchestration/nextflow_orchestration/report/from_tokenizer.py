"""The report's part on the vision tokenizer, from what its stage committed: scores, and held-out images made again.

Scores are those the stage measured (`tokenizer/evaluation.json`); only the pictures shown are encoded and decoded here.
"""

from __future__ import annotations

import json
from typing import Any

from nextflow_tokenize.schedule import grids, schedule_of

from nextflow_orchestration.lineage import Commit
from nextflow_orchestration.report.from_training import read_rows
from nextflow_orchestration.report.model import Curve, Fact, Pair, ScaleUse, Tokenizer
from nextflow_orchestration.report.pictures import Gallery, data_uri, psnr

MOST_PAIRS = 16
CURVES = {"psnr": "PSNR (dB)"}
"""Metrics of the tokenizer's training that are drawn."""


def tokenizer(commit: Commit, images: dict[str, Any], gallery: Gallery) -> Tokenizer | None:
    """Facts, pairs and usage; None where no tokenizer was trained."""
    facts, parameters = commit.manifest["facts"], commit.manifest["parameters"].get("vision_tokenizer", {})
    if not facts.get("tokenizer"):
        return None
    evaluation = json.loads((commit.folder / "tokenizer" / "evaluation.json").read_text(encoding="utf-8"))
    rows = read_rows(commit.folder / "tokenizer" / "metrics.jsonl")
    curves = []
    for key, name in CURVES.items():
        points = tuple((row["step"], row[key]) for row in rows if "step" in row and key in row)
        curves += [Curve(name, points)] if len(points) > 1 else []
    codebook = parameters.get("codebook_size", 0)
    held_out = bool(facts.get("held_out_images"))
    note = (
        ""
        if held_out
        else "There were too few images to keep some from training: these scores are of images it was trained on."
    )
    return Tokenizer(
        facts=_facts(facts, parameters, evaluation, held_out),
        codebook=codebook,
        pairs=tuple(_pairs(evaluation, images, gallery)),
        usage=tuple(_usage(evaluation)),
        curves=tuple(curves),
        note=note,
    )


def _facts(
    facts: dict[str, Any], parameters: dict[str, Any], evaluation: dict[str, Any], held_out: bool
) -> tuple[Fact, ...]:
    found = [
        Fact("Identity (sha256)", facts["tokenizer"]),
        Fact(
            "Codebook",
            f"{parameters.get('codebook_size', 0):,} entries, each a semantic code of {parameters.get('semantic_dim')} "
            f"and a pixel code of {parameters.get('pixel_dim')} numbers under one index",
        ),
        Fact(
            "Semantic teacher",
            f"{parameters.get('teacher')}: a fixed descriptor of gradients and colour, not a learned model",
        ),
        Fact("Trained on", f"{facts.get('training_images', 0):,} images, {facts.get('steps', 0):,} steps"),
        Fact(
            "Held-out PSNR" if held_out else "PSNR",
            f"{evaluation['psnr']:.2f} dB over {len(evaluation['images'])} images",
        ),
        Fact("Codebook used on these", f"{100 * evaluation['usage']:.1f} %"),
    ]
    if facts.get("psnr_training") is not None and held_out:
        found.insert(5, Fact("PSNR on training images", f"{facts['psnr_training']:.2f} dB"))
    return tuple(found)


def _usage(evaluation: dict[str, Any]) -> list[ScaleUse]:
    sides = grids((64, 64), max(1, len(evaluation["scales"])))
    return [
        ScaleUse(use["scale"], sides[use["scale"] - 1], use["distinct"], use["tokens"], use["perplexity"])
        for use in evaluation["scales"]
    ]


def _pairs(evaluation: dict[str, Any], images: dict[str, Any], gallery: Gallery) -> list[Pair]:
    found = []
    for scored in evaluation["images"][:MOST_PAIRS]:
        image = images.get(scored["sha256"])
        model = gallery.tokenizer()
        if image is None or model is None:
            continue
        schedule = schedule_of(tuple(scored["grid"]), scored["scales"])
        side = 16 * max(scored["grid"])
        picture = gallery.picture(image, 2 * side)
        if picture is None:
            continue
        from nextflow_tokenize.vision.pixels import fit, to_images, to_pixels

        pixels = to_pixels([fit(picture, schedule[-1])])
        codes = model.encode(pixels, schedule).target[0].tolist()
        made = gallery.reconstruct(codes, schedule)
        if made is not None:
            first = to_images(pixels)[0]
            found.append(Pair(data_uri(first), data_uri(made), psnr(first, made), image["address"] or scored["sha256"][:12]))
    return found
