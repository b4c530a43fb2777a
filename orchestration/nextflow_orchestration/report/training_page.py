"""`mnf page`: a training as one HTML file beside its checkpoints.

The same frame, style and care as the report (`page`): no scripts, nothing loaded, every value escaped. It is written anew
while a training is watched and once at its end, and read again by the browser while it is at work. The cost: it is a picture
of a moment, not a live view; TensorBoard is that.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from nextflow_data.common.whole_files import replace_file

from megatron_nextflow.runtime.training_folder import MANIFEST, latest
from nextflow_orchestration.report.charts import lines, shade
from nextflow_orchestration.report.from_training_folder import page_of
from nextflow_orchestration.report.model import Fact, Generated, TrainingPage
from nextflow_orchestration.report.page import environment

PAGE = "training.html"
SAMPLES = "samples"
MOST_SAMPLES = 24
SIDE = 320
"""Longest side of a sample on the page, in pixels."""
_TONES = {"nan": "drop", "hang": "drop", "spike": "edit", "rollback": "edit", "straggler": "edit", "finished": "ok"}
_SECTIONS = (
    ("training_curves", "Curves", lambda p: p.charts),
    ("training_samples", "Samples", lambda p: p.samples),
    ("training_events", "Events", lambda p: p.events),
    ("training_checkpoints", "Checkpoints", lambda p: p.checkpoints),
    ("training_setup", "Parallel layout and machine", lambda p: p.layout),
    ("settings", "Settings", lambda p: p.settings),
)


def write_training_page(output: Path) -> Path:
    """Writes training.html into a training's folder; returns it. Raises FileNotFoundError where there is no training."""
    samples, notes = _samples(output / SAMPLES)
    page = replace(page_of(output), samples=samples, notes=notes)
    path = output / PAGE
    replace_file(path, training_html(page, _codebook(output)).encode())
    return path


def training_html(page: TrainingPage, codebook: int | None = None) -> str:
    """The page as a complete HTML document."""
    guess = "a model that guesses evenly among n tokens has ln n."
    if codebook:
        guess = f"guessing evenly among the {codebook:,} image codes costs {math.log(codebook):.2f}."
    drawn = [
        (c, lines(c.curves, c.title, "step", c.unit, ramp=c.ramp, zero=c.zero, log=c.log, marks=page.marks))
        for c in page.charts
    ]
    long = any(curve.spread for chart in page.charts for curve in chart.curves)
    values: dict[str, Any] = {
        "report": page,
        "sections": [(name, title) for name, title, has in _SECTIONS if has(page)],
        "shade": shade,
        "charts": [pair for pair in drawn if pair[1]],
        "guess": guess,
        "thinned": "A point stands for the mean of many steps, a band for their lowest and highest." if long else "",
        "tone": _TONES,
    }
    return environment().get_template("training_page.html.j2").render(values)


def _samples(folder: Path) -> tuple[tuple[Generated, ...], tuple[str, ...]]:
    """The newest images of a folder, with what their files say of themselves; and why some are not shown."""
    newest = sorted(folder.glob("*.png"), key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)
    if not newest:
        return (), ()
    try:
        from PIL import Image

        from nextflow_orchestration.report.pictures import data_uri
    except ImportError:
        return (), ("Samples are not shown: Pillow is not installed (pip install 'megatron-nextflow[train]').",)
    found, notes = [], []
    for path in newest[:MOST_SAMPLES]:
        try:
            with Image.open(path) as picture:
                said = {key: str(value) for key, value in picture.info.items()}
                facts = [Fact("step", path.name.removeprefix("step-").partition("-")[0].removesuffix(".png").lstrip("0"))]
                facts += [Fact(key, said[key]) for key in ("seed",) if key in said]
                found.append(Generated(said.get("prompt", path.name), data_uri(picture, SIDE), tuple(facts)))
        except OSError as error:
            notes.append(f"{path.name} is not shown: {error}")
    return tuple(found), tuple(notes)


def _codebook(output: Path) -> int | None:
    """Codes of the training's vision tokenizer, from its newest checkpoint."""
    try:
        path = latest(output)
        if path is None:
            return None
        manifest = path / MANIFEST
        return int(json.loads(manifest.read_text(encoding="utf-8"))["state"]["codebook_size"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
