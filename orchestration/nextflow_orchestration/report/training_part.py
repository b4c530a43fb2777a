"""The report's part on a training run: metrics.jsonl as curves. Read as text, so that no torch is needed."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

from megatron_nextflow.watch.reporter import read_metrics
from nextflow_orchestration.report.charts import thinned
from nextflow_orchestration.report.model import Curve, Fact, Training
from nextflow_orchestration.words.numbers import short


def training(folder: Path, facts: tuple[Fact, ...] = ()) -> Training | None:
    """The curves of a training folder; None where nothing was logged."""
    rows = [row for row in read_metrics(folder) if "step" in row]
    if not rows:
        return None
    kinds = {name for row in rows for name in row.get("by_kind", {})}
    scales = sorted((name for name in kinds if name.startswith("image/")), key=lambda name: int(name.partition("/")[2]))

    def curve(name: str, key: str) -> Curve:
        return Curve(name, tuple((row["step"], row[key]) for row in rows if row.get(key) is not None))

    def kind(name: str, label: str) -> Curve:
        points = ((row["step"], row.get("by_kind", {}).get(name)) for row in rows)
        return Curve(label, tuple((step, value) for step, value in points if value is not None))

    image = []
    for row in rows:
        values = [row["by_kind"][name] for name in scales if name in row.get("by_kind", {})]
        if values:
            image.append((row["step"], statistics.fmean(values)))
    losses = (kind("text", "text"), Curve("image, mean of scales", tuple(image)), curve("objective", "loss"))
    last = rows[-1]
    speeds = [row["tokens_per_second"] for row in rows[1:] or rows if row.get("tokens_per_second") is not None]
    known = [Fact("Steps", f"{last['step']:,}")]
    if speeds:
        known.append(Fact("Median speed", f"{short(statistics.median(speeds))} tokens/s"))
    predicted = [row["labels"] / row["seconds"] for row in rows[1:] or rows if row.get("labels") and row.get("seconds")]
    if predicted:
        known.append(Fact("Of them predicted", f"{short(statistics.median(predicted))} tokens/s"))
    known += [
        Fact(f"Last {c.name} loss", f"{c.points[-1][1]:.3f}") for c in losses if c.points and math.isfinite(c.points[-1][1])
    ]
    return Training(
        facts=(*facts, *known),
        loss=tuple(thinned(c.name, c.points) for c in losses if c.points),
        by_scale=tuple(thinned(f"scale {name.partition('/')[2]}", kind(name, name).points) for name in scales),
        speed=(thinned("tokens/s", curve("tokens/s", "tokens_per_second").points),),
    )
