"""What the manifests of all formats are made of: records of tokenizers, schedule, budget and amounts, and their one JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from hashlib import sha256
from typing import Annotated, Any

from nextflow_data.common.section import Section
from pydantic import Field, StringConstraints, ValidationError

from nextflow_tokenize.config.pack import CostModel
from nextflow_tokenize.schedule import FINAL_GRIDS, SQUARE_SIDES

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
ShardName = Annotated[str, StringConstraints(pattern=r"^shard-[0-9]{6}\.tar$")]
Count = Annotated[int, Field(ge=0)]

SAMPLE_SCHEMA = {
    "json": "canonical JSON {cost, segments}: cost in FLOPs; segments in order, "
    "text {kind, doc, tokens, loss} or image {kind, doc, sha256, grid, scales, loss}",
    "text.npy": "int32 [text tokens of all text segments]: ids, in order",
    "input.npy": "unsigned int [Σhw of all images]: codes fed, image by image, scale by scale, row by row",
    "target.npy": "unsigned int [Σhw of all images]: codes to predict, same order",
}
"""What the members of a sample are, in words; stored so that a set explains itself."""


class ManifestError(ValueError):
    """A manifest that cannot be used; the message says what and where."""


class TextTokenizerRecord(Section):
    """The text tokenizer by hash; `eod` is the id that ends a document, where there is one."""

    sha256: Sha256
    vocab_size: int = Field(ge=1)
    eod: int | None = Field(default=None, ge=0)


class VisionTokenizerRecord(Section):
    """The vision tokenizer by hash of its weights and configuration; widths of the two branches of a code."""

    sha256: Sha256
    codebook_size: int = Field(ge=1)
    semantic_dim: int = Field(ge=0)
    pixel_dim: int = Field(ge=0)


class ScheduleRecord(Section):
    """The multi-scale schedule that grids are of: its square sides, how many ratios, and the hash of both tables."""

    name: str
    square_sides: tuple[int, ...]
    ratios: int
    sha256: Sha256


class BudgetRecord(Section):
    """What a pack may take, and the model its cost is counted for."""

    max_length: int = Field(ge=1)
    max_cost: int = Field(ge=1)
    cost_model: CostModel


class Tokens(Section):
    """An amount of data."""

    text_tokens: Count = 0
    image_codes: Count = 0
    images: Count = 0

    def plus(self, other: Tokens) -> Tokens:
        """The sum."""
        return Tokens(
            text_tokens=self.text_tokens + other.text_tokens,
            image_codes=self.image_codes + other.image_codes,
            images=self.images + other.images,
        )


class CostRecord(Section):
    """FLOPs of the packs; `spread` is max / mean, `fill` used slots / (packs · max_length), `cost_fill` mean / max_cost."""

    mean: float = Field(ge=0)
    max: float = Field(ge=0)
    spread: float = Field(ge=0)
    fill: float = Field(ge=0, le=1)
    cost_fill: float = Field(ge=0, le=1)


def schedule_record() -> ScheduleRecord:
    """The schedule of `nextflow_tokenize.schedule`, named and hashed."""
    tables = json.dumps([SQUARE_SIDES, FINAL_GRIDS], separators=(",", ":"))
    return ScheduleRecord(
        name="nextflow-table-14",
        square_sides=SQUARE_SIDES,
        ratios=len(FINAL_GRIDS),
        sha256=sha256(tables.encode()).hexdigest(),
    )


def canonical(value: Any) -> bytes:
    """The one text of a JSON value: keys sorted, no spaces, ASCII. NaN and infinities raise ValueError."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def strict_json(data: bytes) -> Any:
    """JSON without what differs between readers: duplicate keys, NaN, huge numbers. Raises ValueError for anything amiss."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key stands twice in one object")
        return found

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is no JSON number")

    try:
        return json.loads(data.decode("ascii"), object_pairs_hook=unique, parse_constant=refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def why_not(error: Exception) -> str:
    """The first thing that is wrong with a value that does not follow its schema."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    return str(error)


def identity_of(
    shards: Iterable[str], text: TextTokenizerRecord, vision: VisionTokenizerRecord | None, schedule: ScheduleRecord
) -> str:
    """What a training is bound to: hex sha256 over the shards' own hashes in order, the tokenizers and the schedule.

    Parents, tables and a manifest's form are not in it: the same packs made again by another way are the same set.
    """
    bound = {
        "shards": list(shards),
        "text_tokenizer": text.sha256,
        "vision_tokenizer": None if vision is None else vision.sha256,
        "schedule": schedule.sha256,
    }
    return sha256(canonical(bound)).hexdigest()
