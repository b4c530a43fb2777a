"""The report's part on the vision tokenizer, from what its stage committed: scores, and held-out images made again.

Scores are those the stage measured (`tokenizer/evaluation.json`); only the pictures shown are encoded and decoded here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nextflow_data.common.json_lines import read_rows
from nextflow_data.storage.files import local_copy
from nextflow_tokenize.schedule import grids, schedule_of
from nextflow_tokenize.vision.identity import VisionInfo, vision_info

from nextflow_orchestration.report.charts import thinned
from nextflow_orchestration.report.model import Fact, Pair, ScaleUse, Tokenizer
from nextflow_orchestration.report.pictures import Gallery, data_uri, psnr_of_pictures
from nextflow_orchestration.runs.lineage import Commit

MOST_PAIRS = 16
CURVES = {"psnr": "PSNR (dB)"}
"""Metrics of the tokenizer's training that are drawn."""
TEACHERS = {
    "classical": "classical: a fixed descriptor of gradients and colour, not a learned model",
    "siglip": "SigLIP, a learned vision model",
}
"""What a teacher is, in words."""


def tokenizer(commit: Commit, gallery: Gallery) -> Tokenizer | None:
    """Facts, pairs and usage; None where no tokenizer was trained. Sizes are the committed tokenizer's own, so they hold for
    a given one too."""
    facts = commit.manifest["facts"]
    if not facts.get("tokenizer"):
        return None
    folder = local_copy(commit.folder / "tokenizer")
    info = vision_info(folder)
    evaluation = _read_evaluation(folder)
    rows = read_rows(folder / "metrics.jsonl")
    curves = []
    for key, name in CURVES.items():
        points = tuple((row["step"], row[key]) for row in rows if "step" in row and key in row)
        curves += [thinned(name, points)] if len(points) > 1 else []
    return Tokenizer(
        facts=_facts(facts, info, evaluation),
        codebook=info["codebook_size"],
        pairs=tuple(_pairs(evaluation, gallery)),
        usage=tuple(_usage(evaluation)),
        curves=tuple(curves),
        note=_note(facts, evaluation),
    )


def _read_evaluation(folder: Path) -> dict[str, Any]:
    """The scores; none where a given tokenizer met no image it could be scored on."""
    path = folder / "evaluation.json"
    if not path.is_file():
        return {"images": [], "scales": [], "psnr": None, "usage": None}
    evaluation: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return evaluation


def _note(facts: dict[str, Any], evaluation: dict[str, Any]) -> str:
    if facts.get("given"):
        scored = "these scores are of this run's images" if evaluation["images"] else "none of this run's images fits it"
        return f"The tokenizer was given and not trained by this run: {scored}."
    if facts.get("held_out_images"):
        return ""
    return "There were too few images to keep some from training: these scores are of images it was trained on."


def _facts(facts: dict[str, Any], info: VisionInfo, evaluation: dict[str, Any]) -> tuple[Fact, ...]:
    given, held_out = bool(facts.get("given")), bool(facts.get("held_out_images"))
    found = [
        Fact("Identity (sha256)", facts["tokenizer"]),
        Fact(
            "Codebook",
            f"{info['codebook_size']:,} entries, each a semantic code of {info['semantic_dim']} "
            f"and a pixel code of {info['pixel_dim']} numbers under one index",
        ),
        Fact("Semantic teacher", TEACHERS.get(info["teacher"], info["teacher"])),
    ]
    if not given:
        found.append(Fact("Trained on", f"{facts.get('training_images', 0):,} images, {facts.get('steps', 0):,} steps"))
    if evaluation["images"]:
        name = "Held-out PSNR" if held_out else "PSNR"
        found.append(Fact(name, f"{evaluation['psnr']:.2f} dB over {len(evaluation['images'])} images"))
        if facts.get("psnr_training") is not None and held_out:
            found.append(Fact("PSNR on training images", f"{facts['psnr_training']:.2f} dB"))
        if evaluation.get("ssim") is not None:
            found.append(Fact(name.replace("PSNR", "SSIM"), f"{evaluation['ssim']:.3f}"))
        found.append(Fact("Codebook used on these", f"{100 * evaluation['usage']:.1f} %"))
    return tuple(found)


def _usage(evaluation: dict[str, Any]) -> list[ScaleUse]:
    sides = grids((64, 64), max(1, len(evaluation["scales"])))
    return [
        ScaleUse(use["scale"], sides[use["scale"] - 1], use["distinct"], use["tokens"], use["perplexity"])
        for use in evaluation["scales"]
    ]


def _pairs(evaluation: dict[str, Any], gallery: Gallery) -> list[Pair]:
    found = []
    images = gallery.find({scored["sha256"] for scored in evaluation["images"][:MOST_PAIRS]})
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
        from nextflow_tokenize.vision.images.pixels import fit, to_images, to_pixels

        pixels = to_pixels([fit(picture, schedule[-1])])
        codes = model.encode(pixels, schedule).target[0].tolist()
        made = gallery.reconstruct(codes, schedule)
        if made is not None:
            first = to_images(pixels)[0]
            name = image["address"] or scored["sha256"][:12]
            found.append(Pair(data_uri(first), data_uri(made), psnr_of_pictures(first, made), name))
    return found
