"""A stage's result in a few words: for the console, for Prefect's table, for the log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nextflow_pipelines.spark.context import StageResult

FACTS = {
    "vision_tokenizer": (
        ("images", "{:,} images"),
        ("psnr_training", "PSNR {:.1f} dB"),
        ("psnr_held_out", "held out {:.1f} dB"),
        ("psnr", "given, PSNR {:.1f} dB"),
        ("usage", "{:.0%} of the codes in use"),
        ("reason", "{}"),
    ),
    "text_tokenizer": (("vocab_size", "{:,} entries"),),
    "pack": (("packs", "{:,} packs"), ("fill", "{:.0%} full")),
}
"""Facts of a stage's manifest that are worth a word, in order."""


def _total(counts: Any) -> int:
    return sum(_total(v) for v in counts.values()) if isinstance(counts, Mapping) else int(counts)


def decided(counts: Mapping[str, Any]) -> dict[str, int]:
    """How many documents a stage dropped, how many of their nodes it took out, and how many edits it made."""
    by_scope = counts.get("decisions", {})

    def number(action: str, *scopes: str) -> int:
        return sum(actions.get(action, 0) for scope in scopes for actions in by_scope.get(scope, {}).values())

    return {
        "dropped": number("drop", "document"),
        "nodes taken out": number("drop", "node"),
        "edits": number("edit", *by_scope),
    }


def describe(result: StageResult) -> str:
    """One line: documents out, drops and edits, kept-aside records, the stage's own facts, and how it came about."""
    counts = result.counts
    words = []
    documents = counts.get("rows", {}).get("documents")
    if documents is not None:
        words.append(f"{documents:,} documents")
    for what, number in decided(counts).items():
        if number:
            words.append(f"{number:,} {what.replace('nodes', 'node') if number == 1 else what}")
    if counts.get("asides"):
        words.append(f"{_total(counts['asides']):,} kept aside")
    tokens = counts.get("tokens", {})
    if tokens:
        codes, images = tokens.get("image codes", 0), tokens.get("images", 0)
        words.append(f"{tokens.get('text', 0):,} text ids, {codes:,} codes of {images:,} images")
    for name, form in FACTS.get(result.name, ()):
        if result.facts.get(name) is not None:
            words.append(form.format(result.facts[name]))
    if result.kept and not result.skipped:
        words.append(f"{result.kept} parts kept from before")
    words += result.notes
    return ", ".join(words)


def table(results: Mapping[str, StageResult]) -> list[dict[str, Any]]:
    """Rows for Prefect's table artifact."""
    rows = []
    for name, result in results.items():
        rows.append(
            {
                "stage": name,
                "documents": result.counts.get("rows", {}).get("documents", ""),
                **decided(result.counts),
                "kept aside": _total(result.counts.get("asides", {})),
                "seconds": round(result.seconds, 1),
                "reused": "yes" if result.skipped else "",
                "folder": result.dir.name,
            }
        )
    return rows
