"""The report's part on a shard set: token mix, packing, and some packs opened and looked at."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from nextflow_data.addresses import site_of
from nextflow_data.common.excerpts import beginning
from nextflow_tokenize.segments import image_grids, slots
from nextflow_tokenize.shards.manifest import DOCUMENTS, SAMPLES
from nextflow_tokenize.shards.reader import ShardSet
from nextflow_tokenize.shards.sample_format import Sample

from nextflow_orchestration.report.model import Mix, Packing, PackSheet, Piece, Share
from nextflow_orchestration.report.pictures import Gallery

MOST_SHARES = 12
MOST_PIECES = 12
MOST_TEXT = 420
"""Characters shown of a text segment."""


def mixes(shards: ShardSet) -> tuple[Mix, ...]:
    """Tokens by kind, by site, by task and by licence."""
    total = shards.manifest.totals
    kinds = (Share("text", total.text_tokens, 0), Share("image", 0, total.image_codes))
    pieces = shards.table(DOCUMENTS)
    rows = pieces.select(["doc_id", "address", "licence", "task", "text_tokens", "image_codes"]).to_pylist()
    cuts = {
        "source": [site_of(row["address"]) if row["address"] else "(unknown)" for row in rows],
        "task": [row["task"] or "(unknown)" for row in rows],
        "licence": [row["licence"] or "(not stated)" for row in rows],
    }
    return (Mix("kind", kinds), *(Mix(by, _shares(rows, labels)) for by, labels in cuts.items()))


def _shares(rows: Sequence[dict[str, Any]], labels: Sequence[str]) -> tuple[Share, ...]:
    sums: dict[str, list[int]] = {}
    documents: dict[str, set[str]] = {}
    for row, label in zip(rows, labels, strict=True):
        amount = sums.setdefault(label, [0, 0])
        amount[0] += row["text_tokens"]
        amount[1] += row["image_codes"]
        documents.setdefault(label, set()).add(row["doc_id"])
    shares = [Share(label, text, image, len(documents[label])) for label, (text, image) in sums.items()]
    shares.sort(key=lambda share: (-share.total, share.label))
    if len(shares) <= MOST_SHARES:
        return tuple(shares)
    rest = shares[MOST_SHARES:]
    other = Share(
        f"{len(rest)} others", sum(s.text for s in rest), sum(s.image for s in rest), sum(s.documents or 0 for s in rest)
    )
    return (*shares[:MOST_SHARES], other)


def packing(shards: ShardSet) -> Packing:
    """Length and cost of every pack, and the budgets."""
    table: pa.Table = shards.table(SAMPLES)
    budget = shards.manifest.budget
    return Packing(tuple(table["slots"].to_pylist()), tuple(table["cost"].to_pylist()), budget.max_length, budget.max_cost)


def spread(items: Sequence[int], wanted: int) -> list[int]:
    """`wanted` of `items`, evenly spread over their order; all of them where they are fewer."""
    wanted = min(len(items), wanted)
    return [items[(2 * i + 1) * len(items) // (2 * wanted)] for i in range(wanted)]


def chosen(images: Sequence[int], wanted: int) -> list[int]:
    """Which packs to show, given how many images each has: three of four with images, where there are such."""
    with_images = [number for number, count in enumerate(images) if count]
    without = [number for number, count in enumerate(images) if not count]
    pictured = spread(with_images, max(wanted - wanted // 4, wanted - len(without)))
    return sorted([*pictured, *spread(without, wanted - len(pictured))])


def sheets(shards: ShardSet, wanted: int, text_tokenizer: Path | None, gallery: Gallery) -> tuple[PackSheet, ...]:
    """Some packs, spread over the set, with their segments made visible."""
    addresses = {row["doc_id"]: row["address"] for row in shards.table(DOCUMENTS).select(["doc_id", "address"]).to_pylist()}
    decode = _decoder(text_tokenizer, gallery)
    found = []
    for index in chosen(shards.table(SAMPLES)["images"].to_pylist(), wanted):
        shard, _ = shards.locate(index)
        sample = shards.read(index)
        pieces = tuple(_pieces(sample, addresses, decode, gallery))
        total = sample.slots
        hidden = len(sample.segments) - len(pieces)
        found.append(PackSheet(shard.name.removesuffix(".tar"), sample.key, total, sample.cost, pieces, hidden))
    return tuple(found)


def _decoder(path: Path | None, gallery: Gallery) -> Any:
    if path is None:
        return None
    try:
        from nextflow_tokenize.documents.text_tokenizer import TextTokenizer

        return TextTokenizer.load(path).decode
    except ImportError as error:
        gallery.problems[
            f"Texts are not decoded: {error.name} is not installed (pip install 'megatron-nextflow[train]')."
        ] = None
    except (OSError, ValueError) as error:
        gallery.problems[f"Texts are not decoded: {error}"[:300]] = None
    return None


def _pieces(sample: Sample, addresses: dict[str, str | None], decode: Any, gallery: Gallery) -> list[Piece]:
    """The first segments of a pack; texts and codes are taken from where the segments before them end."""
    pieces: list[Piece] = []
    at_text = at_code = 0
    for segment in sample.segments[:MOST_PIECES]:
        address = addresses.get(segment["doc"]) or ""
        if segment["kind"] == "text":
            ids = sample.text[at_text : at_text + segment["tokens"]].tolist()
            at_text += segment["tokens"]
            text = decode(ids) if decode is not None else ""
            text = beginning(re.sub(r"\n\s*\n", "\n", text.strip()), MOST_TEXT)
            note = "" if decode is not None else "ids, not decoded: the text tokenizer is not at hand"
            pieces.append(Piece("text", segment["doc"], address, segment["tokens"], segment["loss"], text, note=note))
            continue
        grids = image_grids(segment)
        count = sum(h * w for h, w in grids)
        # With self-correction the fed codes drive the residual and targets make up for them, so the image that the codes
        # stand for is the fed codes of all scales but the last, and the target of that.
        last = at_code + count - grids[-1][0] * grids[-1][1]
        codes = sample.input[at_code:last].tolist() + sample.target[last : at_code + count].tolist()
        at_code += count
        pair = gallery.pair(segment["sha256"], codes, grids)
        note = "" if pair is not None else f"image {segment['sha256'][:12]}"
        pieces.append(
            Piece(
                "image",
                segment["doc"],
                address,
                slots(segment),
                segment["loss"],
                "",
                pair,
                grids[-1],
                segment["scales"],
                note,
            )
        )
    return pieces
