"""The training page's content, from what a training writes into its folder. Read as text, so that no torch is needed.

Whatever is missing is left out: the page is asked for while a training begins, after it was killed, and of folders that an
older version wrote. A long training has more steps than a line has pixels, so a curve is thinned to means of equally many
steps, and where a single step matters drawn over the band of their lowest and highest.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from megatron_nextflow.config.model import ParallelConfig, layout_words, model_processes
from megatron_nextflow.launching.exit_status import REFUSED
from megatron_nextflow.launching.launch_record import LaunchRecord, alive, read_record
from megatron_nextflow.watch.heartbeat import read_heartbeat
from megatron_nextflow.watch.reporter import read_events, read_metrics
from nextflow_orchestration.report.charts import thinned
from nextflow_orchestration.report.model import Chart, Curve, Fact, Moment, Saved, Tile, TrainingPage
from nextflow_orchestration.words.numbers import plural, short

MOST_EVENTS = 60
IMAGE = "image/"
"""What the names of the image losses begin with; the number of the scale follows."""
MARKED = ("data", "nan", "spike", "rollback", "resumed", "hang")
"""Kinds of events that are drawn into the charts."""
REFRESH = 30
"""Seconds after which the page of a training at work is read again."""


def page_of(output: Path) -> TrainingPage:
    """What there is to show of the training in `output`. Raises FileNotFoundError where no training wrote anything."""
    settings = _read_json(output / "train.json")
    rows = [row for row in read_metrics(output) if isinstance(row.get("step"), int)]
    events = read_events(output)
    record, beat = read_record(output), read_heartbeat(output) or {}
    if not settings and not rows and record is None:
        raise FileNotFoundError(f"{output} holds no training: neither train.json nor metrics.jsonl is there")
    steps = settings.get("steps") or beat.get("steps") or (rows[-1]["step"] if rows else 0)
    at_work = record is not None and (record.status == "submitted" or alive(record) or _elsewhere(record, beat))
    return TrainingPage(
        title=output.name,
        subtitle=_subtitle(record, beat, at_work),
        tiles=tuple(_tiles(rows, steps, record, beat, at_work)),
        charts=tuple(chart for chart in _charts(rows) if chart.curves),
        marks=tuple((e.get("step", 0), str(e.get("message"))) for e in events if e.get("kind") in MARKED)[-MOST_EVENTS:],
        events=tuple(_moment(e) for e in reversed(events[-MOST_EVENTS:])),
        hidden_events=max(0, len(events) - MOST_EVENTS),
        checkpoints=tuple(_checkpoints(output)),
        layout=tuple(_layout(settings, record)),
        hardware=tuple(_hardware(record)),
        settings=yaml.safe_dump(settings, sort_keys=False, allow_unicode=True) if settings else "",
        refresh=REFRESH if at_work else 0,
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _elsewhere(record: LaunchRecord, beat: dict[str, Any]) -> bool:
    """Whether a launcher on another machine seems to be at work: nobody can ask its process, so its heartbeat decides."""
    return record.status == "running" and not alive(record) and time.time() - float(beat.get("time") or 0) < 300


def clock(seconds: float) -> str:
    """A time since 1970, to the minute, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")


def span(seconds: float) -> str:
    """A length of time in words: 45 s, 12 min, 3.4 h, 2.1 d."""
    for unit, size in (("d", 86400), ("h", 3600)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def _charts(rows: list[dict[str, Any]]) -> list[Chart]:
    kinds: dict[str, list[tuple[float, float]]] = defaultdict(list)
    terms: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        for name, value in row.get("terms", {}).items():
            terms[name].append((row["step"], value))
        found = {name: value for name, value in row.get("by_kind", {}).items() if value is not None}
        for name, value in found.items():
            kinds[name].append((row["step"], value))
        images = [value for name, value in found.items() if name.startswith(IMAGE)]
        if images:
            kinds["image"].append((row["step"], sum(images) / len(images)))
    scales = sorted((name for name in kinds if name.startswith(IMAGE)), key=lambda name: int(name.removeprefix(IMAGE)))

    def points(key: str) -> list[tuple[float, float]]:
        return [(row["step"], row[key]) for row in rows if isinstance(row.get(key), int | float)]

    def curves(*made: Curve) -> tuple[Curve, ...]:
        return tuple(curve for curve in made if curve.points)

    def one(name: str, key: str, spread: bool = False) -> tuple[Curve, ...]:
        return curves(thinned(name, points(key), spread))

    by_scale = curves(*(thinned(f"scale {name.removeprefix(IMAGE)}", kinds[name]) for name in scales))
    by_term = curves(*(thinned(name, points) for name, points in terms.items()))
    by_kind = curves(thinned("text", kinds["text"]), thinned("image, mean of scales", kinds["image"]))
    share = curves(thinned("MFU", [(step, 100 * value) for step, value in points("mfu")]))
    return [
        Chart("Loss", "nats", one("objective", "loss", spread=True), words="What is minimised, all weights in."),
        Chart("Terms of the loss", "a label", by_term, words="What is minimised, term by term: they add up to it."),
        Chart("Text and image loss", "nats", by_kind),
        Chart("Image loss by scale", "nats", by_scale, ramp=True, words="Scale 1 is the single coarsest code."),
        Chart("Gradient norm", "before clipping", one("norm", "grad_norm", spread=True), log=True),
        Chart("Throughput", "tokens/s", one("tokens/s", "tokens_per_second"), zero=True),
        Chart("Arithmetic", "TFLOP/s a device", one("TFLOP/s", "tflops"), zero=True),
        Chart("Share of the device's peak", "% MFU", share, zero=True),
        Chart("Seconds a step", "s", one("seconds", "seconds", spread=True), zero=True),
        Chart("Learning rate", "", one("rate", "lr"), zero=True),
    ]


def _tiles(
    rows: list[dict[str, Any]], steps: int, record: LaunchRecord | None, beat: dict[str, Any], at_work: bool
) -> Iterable[Tile]:
    status = record.status if record is not None else str(beat.get("state", ""))
    if record is not None and record.status == "running" and not at_work:
        status = "ended without a word"
    if record is not None and (record.status, record.exit_code) == ("failed", REFUSED):
        status = "refused"
    tone = {"finished": "good", "failed": "bad", "refused": "bad", "ended without a word": "bad"}.get(status, "")
    if status:
        took = span((record.ended or time.time()) - record.began) if record is not None else ""
        yield Tile("Status", status, f"{took} so far" if at_work else f"after {took}" if took else "", tone)
    step = max(rows[-1]["step"] if rows else 0, int(beat.get("step") or 0))
    if steps:
        yield Tile("Step", f"{step:,}", f"{100 * step / steps:.0f} % of {steps:,}")
    if not rows:
        return
    recent = rows[-20:]
    losses = [row["loss"] for row in (rows[0], *recent) if math.isfinite(row.get("loss") or math.nan)]
    if losses:
        last = losses[1:] or losses
        note = f"{losses[0]:.3f} at first; mean of {len(last)} steps" if len(last) > 1 else ""
        yield Tile("Loss", f"{statistics.fmean(last):.3f}", note)
    # The first step of a training compiles and warms up.
    usual = [row for row in recent[1:] or recent if row.get("seconds")]
    if usual:
        seconds = statistics.median(row["seconds"] for row in usual)
        speed = statistics.median(row.get("tokens_per_second", 0) for row in usual)
        yield Tile("Tokens/s", short(speed), f"{short(seconds)} s a step")
        if usual[-1].get("tflops") is not None:
            mfu = [row["mfu"] for row in usual if row.get("mfu") is not None]
            note = f"{100 * statistics.median(mfu):.0f} % of the peak (MFU)" if mfu else "a device"
            yield Tile("TFLOP/s", short(statistics.median(row["tflops"] for row in usual)), note)
        if at_work and steps > step:
            yield Tile("To go", span(seconds * (steps - step)), "at this speed")


def _subtitle(record: LaunchRecord | None, beat: dict[str, Any], at_work: bool) -> str:
    words = []
    if record is not None:
        where = f"Slurm job {record.job}" if record.job else record.host
        begun = "submitted" if record.status == "submitted" else "begun"
        words.append(f"{_processes(record.processes)} on {where}, {begun} {clock(record.began)} UTC.")
    if beat.get("time"):
        last = f"Last word: {beat.get('state')}, step {beat.get('step')}, {clock(float(beat['time']))} UTC"
        words.append(f"{last}." if at_work else f"{last}; nothing is at work now.")
    return " ".join(words)


def _processes(count: int) -> str:
    return "1 process" if count == 1 else f"{count:,} processes"


def _moment(event: dict[str, Any]) -> Moment:
    when = clock(event["time"]) if isinstance(event.get("time"), int | float) else ""
    return Moment(when, int(event.get("step") or 0), str(event.get("kind", "")), str(event.get("message", "")))


def _checkpoints(output: Path) -> Iterable[Saved]:
    for folder in sorted((output / "checkpoints").glob("step-*"), reverse=True):
        manifest = _read_json(folder / "manifest.json")
        if manifest:
            state = manifest.get("state", {})
            layout = layout_words(state.get("parallel") or {}, state.get("processes", 1))
            size = sum(int(entry.get("size", 0)) for entry in manifest.get("files", {}).values())
            yield Saved(int(state.get("step", 0)), size, clock((folder / "manifest.json").stat().st_mtime), layout)


def _layout(settings: dict[str, Any], record: LaunchRecord | None) -> Iterable[Fact]:
    parallel, model, data = (settings.get(name, {}) for name in ("parallel", "model", "data"))
    labels = ParallelConfig.dimensions()
    sizes = {name: parallel[name] for name in labels if parallel.get(name)}
    for name, size in sizes.items():
        yield Fact(labels[name], str(size))
    if record is not None:
        yield Fact("Data parallel", str(record.processes // model_processes(sizes)))
        yield Fact("Processes", f"{record.processes:,} on {plural(record.nodes, 'machine')}")
    if parallel.get("sequence_parallel"):
        yield Fact("Sequence parallel", "yes")
    if model:
        yield Fact("Model", f"{model.get('layers')} layers, width {model.get('hidden_size')}, {model.get('heads')} heads")
    if data:
        packs = f"{data.get('global_batch_size')} packs of up to {model.get('max_length', '?')} slots"
        yield Fact("A step", packs)
        yield Fact("Shards", str(data.get("shards")))
    if settings:
        yield Fact("Precision", " + FP8 ".join(filter(None, (settings.get("precision"), settings.get("fp8")))))


def _hardware(record: LaunchRecord | None) -> Iterable[Fact]:
    if record is None or record.machine is None:
        return
    machine = record.machine
    for name in sorted(set(machine.gpus)):
        yield Fact("GPU", f"{machine.gpus.count(name)} × {name}")
    yield Fact("Processor", f"{machine.cpu}, {machine.cores} cores")
    yield Fact("Memory", f"{machine.memory_gib:g} GiB")
    for package, version in machine.versions.items():
        yield Fact(package, version)
