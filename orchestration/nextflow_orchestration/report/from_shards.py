"""The report's part on a shard set: token mix and packing as an audit counted them, and some packs opened and looked at."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from nextflow_data.common.excerpts import beginning
from nextflow_data.storage.files import local_copy
from nextflow_data.storage.store_path import AnyPath
from nextflow_tokenize.segments import image_grids, slots
from nextflow_tokenize.shards.reader import ShardSet
from nextflow_tokenize.shards.records import BudgetRecord
from nextflow_tokenize.shards.sample_format import Sample
from nextflow_tokenize.shards.statistics import OTHER, UNKNOWN, Amounts, Statistics

from nextflow_orchestration.report.model import Mix, Packing, PackSheet, Piece, Share
from nextflow_orchestration.report.pictures import Gallery

MOST_SHARES = 12
MOST_SHARDS = 16
"""Shards among whose packs some are chosen to be shown."""
MOST_PIECES = 12
MOST_TEXT = 420
"""Characters shown of a text segment."""


def mixes(counted: Statistics) -> tuple[Mix, ...]:
    """Tokens by kind, by site, by task and by licence."""
    kinds = (Share("text", counted.text_tokens, 0), Share("image", 0, counted.image_codes))
    cuts = {
        "source": _shares(counted.tokens_by_site),
        "task": _shares(counted.tokens_by_task),
        "licence": _shares(counted.tokens_by_licence, "(not stated)"),
    }
    return (Mix("kind", kinds), *(Mix(by, shares) for by, shares in cuts.items() if shares))


def _shares(amounts: Amounts, unknown: str = UNKNOWN) -> tuple[Share, ...]:
    shares = [
        Share(unknown if name == UNKNOWN else name, one["text_tokens"], one["image_codes"], one["documents"])
        for name, one in amounts.items()
    ]
    shares.sort(key=lambda share: (share.label == OTHER, -share.total, share.label))
    if len(shares) <= MOST_SHARES:
        return tuple(shares)
    rest = shares[MOST_SHARES:]
    label = "all others" if rest[-1].label == OTHER else f"{len(rest)} others"
    text, image = sum(share.text for share in rest), sum(share.image for share in rest)
    return (*shares[:MOST_SHARES], Share(label, text, image, sum(share.documents or 0 for share in rest)))


def packing(counted: Statistics, budget: BudgetRecord) -> Packing:
    """Lengths and costs of the packs, and the budgets."""
    return Packing(
        packs=counted.packs,
        slots=counted.slots,
        fill=tuple(counted.fill),
        cost_fill=tuple(counted.cost_fill),
        costs=(counted.cost_min, counted.cost_mean, counted.cost_max),
        deviation=counted.cost_deviation,
        max_slots=budget.max_length,
        max_cost=budget.max_cost,
    )


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


def sheets(shards: ShardSet, wanted: int, text_tokenizer: AnyPath | None, gallery: Gallery) -> tuple[PackSheet, ...]:
    """Some packs, spread over the set, with their segments made visible. Of a large set they are of a few shards."""
    decode = _decoder(text_tokenizer, gallery)
    looked = [shards.shards[number] for number in spread(range(len(shards.shards)), MOST_SHARDS)]
    places = [(shard, int(shards.shards.starts[shard.number])) for shard in looked]
    numbers = [first + place for shard, first in places for place in range(shard.samples)]
    images = [count for shard in looked for count in shards.samples(shard)["images"].to_pylist()]
    samples = [shards.read(numbers[index]) for index in chosen(images, wanted)]
    of_shard = {shard.number: shard for shard in looked}
    addresses: dict[str, str | None] = {}
    for number in {int(sample.key.partition("-")[0]) for sample in samples}:
        rows = shards.documents(of_shard[number]).select(["doc_id", "address"]).to_pylist()
        addresses |= {row["doc_id"]: row["address"] for row in rows}
    shown = [segment for sample in samples for segment in sample.segments[:MOST_PIECES] if segment["kind"] == "image"]
    nodes = gallery.find({one["sha256"] for one in shown}, {one["doc"] for one in shown}) if shown else {}
    found = []
    for sample in samples:
        pieces = tuple(_pieces(sample, addresses, decode, nodes, gallery))
        name = of_shard[int(sample.key.partition("-")[0])].name.removesuffix(".tar")
        hidden = len(sample.segments) - len(pieces)
        found.append(PackSheet(name, sample.key, sample.slots, sample.cost, pieces, hidden))
    return tuple(found)


def _decoder(path: AnyPath | None, gallery: Gallery) -> Any:
    if path is None:
        return None
    try:
        from nextflow_tokenize.documents.text_tokenizer import TextTokenizer

        return TextTokenizer.load(local_copy(path)).decode
    except ImportError as error:
        gallery.problems[
            f"Texts are not decoded: {error.name} is not installed (pip install 'megatron-nextflow[train]')."
        ] = None
    except (OSError, ValueError) as error:
        gallery.problems[f"Texts are not decoded: {error}"[:300]] = None
    return None


def _pieces(
    sample: Sample, addresses: dict[str, str | None], decode: Any, images: dict[str, Any], gallery: Gallery
) -> list[Piece]:
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
        pair = gallery.pair(segment["sha256"], images.get(segment["sha256"]), codes, grids)
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
