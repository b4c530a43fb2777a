"""A `Report` as one HTML file.

Everything shown came from the web at some point, so the page is built to hold hostile text: jinja2 escapes every value, no
address becomes a link, and a content security policy in the page forbids scripts and every load but `data:` images. The
cost: nothing on the page is interactive beyond folding and scrolling.
"""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from nextflow_orchestration.report.charts import histogram, lines, shade
from nextflow_orchestration.report.model import Curve, Packing, Report, Training
from nextflow_orchestration.words.numbers import short

_SECTIONS = (
    ("input", "What went in", lambda r: r.inputs),
    ("stages", "What was left after each stage", lambda r: r.stages),
    ("rules", "Drops and edits", lambda r: r.rules),
    ("aside", "Kept aside", lambda r: r.stages),
    ("tokenizer", "Vision tokenizer", lambda r: r.tokenizer),
    ("mix", "Token mix", lambda r: r.mixes),
    ("packing", "Packing", lambda r: r.packing and r.packing.slots),
    ("sheets", "Inside some packs", lambda r: r.sheets),
    ("audit", "Audit", lambda r: r.audit),
    ("training", "Training", lambda r: r.training),
    ("generated", "A generated image", lambda r: r.generated),
    ("settings", "Settings", lambda r: r.settings),
)


def report_html(report: Report) -> str:
    """The report as a complete HTML document, no reference to anything outside it."""
    values: dict[str, Any] = {
        "report": report,
        "sections": [(name, title) for name, title, has in _SECTIONS if has(report)],
        "width": _width,
        "change": _change,
        "shade": shade,
        "most_documents": max((s.documents for s in report.stages), default=1),
        "most_images": max((s.images for s in report.stages), default=1),
        "tokenizer_chart": _chart(report.tokenizer.curves, "Tokenizer training", "dB") if report.tokenizer else "",
    }
    if report.packing:
        values |= _packing(report.packing)
    if report.training:
        values |= _training(report.training, report.tokenizer.codebook if report.tokenizer else None)
    return environment().get_template("report.html.j2").render(values)


def environment() -> Environment:
    """The templates' environment: everything escaped, a missing value an error."""
    made = Environment(
        loader=PackageLoader("nextflow_orchestration.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    made.filters |= {"n": _n, "short": short, "percent": _percent, "seconds": _seconds, "size": _size}
    return made


def _n(value: int | float) -> str:
    return f"{value:,}" if isinstance(value, int) else short(value)


def _percent(part: float, whole: float) -> str:
    share = 100 * part / whole if whole else 0.0
    return f"{share:.1f} %" if share == 0 or share >= 0.1 else "< 0.1 %"


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 60 else f"{int(value // 60)} min {int(value % 60):02d} s"


def _size(value: int) -> str:
    return f"{short(value)}B" if value >= 1e6 else f"{short(value / 1e3)} kB"


def _width(part: float, whole: float) -> str:
    return f"{min(100.0, 100 * part / whole):.2f}" if whole else "0"


def _change(before: int | None, now: int) -> str:
    return "" if before is None or before == now else f" ({now - before:+,})".replace("-", "−")


def _chart(curves: tuple[Curve, ...], title: str, y_label: str) -> Markup:
    return lines(curves, title, "step", y_label)


def _packing(packing: Packing) -> dict[str, Any]:
    fill = spread = ""
    if packing.packs:
        least, mean, most = packing.costs
        fill = f"On average {_percent(packing.slots, packing.packs * packing.max_slots)} full over {packing.packs:,} packs."
        deviation = _percent(packing.deviation, mean)
        spread = f"Mean {short(mean)}, from {short(least)} to {short(most)}; deviation {deviation} of the mean."
    return {
        "fill_chart": histogram(packing.fill, packing.max_slots, "Pack lengths", "slots"),
        "cost_chart": histogram(packing.cost_fill, packing.max_cost, "Pack costs", "FLOPs"),
        "fill_words": fill,
        "cost_words": spread,
    }


def _training(training: Training, codebook: int | None) -> dict[str, Any]:
    from math import log

    guess = "a model that guesses evenly among n tokens has ln n."
    if codebook:
        guess = f"guessing evenly among the {codebook:,} image codes costs {log(codebook):.2f}."
    charts = [
        ("Loss by kind", lines(training.loss, "Loss by kind", "step", "nats"), training.loss, False, ""),
        (
            "Image loss by scale",
            lines(training.by_scale, "Image loss by scale", "step", "nats", ramp=True),
            training.by_scale,
            True,
            "Scale 1 is the single coarsest code.",
        ),
        ("Speed", lines(training.speed, "Speed", "step", "tokens/s", zero=True), training.speed, False, ""),
    ]
    return {"guess": guess, "training_charts": [c for c in charts if c[1]]}
