"""`manifest.json` of a shard set: what the set is, and the size and sha256 of every file in it. Written last, the commit.

The file is canonical JSON and carries a hash of itself, so that no byte of it can change unseen. The cost: it cannot be
edited by hand; a set is made again instead. A reader refuses a format version it does not know, and names with a path in
them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Annotated, Any, Literal

from nextflow_data.common.section import Section
from pydantic import Field, StringConstraints, ValidationError

from nextflow_tokenize.config.pack import CostModel
from nextflow_tokenize.schedule import FINAL_GRIDS, SQUARE_SIDES

MANIFEST = "manifest.json"
SAMPLES = "samples.parquet"
DOCUMENTS = "documents.parquet"
FORMAT: Literal["megatron-nextflow-shards"] = "megatron-nextflow-shards"
FORMAT_VERSION = 1
MAX_MANIFEST_BYTES = 1 << 28

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
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


class FileRecord(Section):
    """A file of the set."""

    name: Literal[
        "samples.parquet", "documents.parquet", ".nv-meta/.info.json", ".nv-meta/dataset.yaml", ".nv-meta/split.yaml"
    ]
    bytes: Count
    sha256: Sha256


class ShardRecord(Section):
    """A shard, its member index and what is in it. Slots count ⟨boi⟩ and ⟨eoi⟩; codes are Σhw of all images."""

    name: Annotated[str, StringConstraints(pattern=r"^shard-[0-9]{6}\.tar$")]
    bytes: Count
    sha256: Sha256
    index_bytes: Count
    index_sha256: Sha256
    samples: Count
    slots: Count
    text_tokens: Count
    image_codes: Count
    images: Count

    @property
    def index_name(self) -> str:
        """The member index beside the shard."""
        return self.name + ".idx"

    @property
    def number(self) -> int:
        """The shard's number."""
        return int(self.name[6:12])


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


class Totals(Section):
    """The whole set. `pieces` is at least `documents`: a document longer than a pack is in several."""

    samples: Count
    documents: Count
    pieces: Count
    slots: Count
    text_tokens: Count
    image_codes: Count
    images: Count


class CostRecord(Section):
    """FLOPs of the packs; `spread` is max / mean, `fill` used slots / (packs · max_length), `cost_fill` mean / max_cost."""

    mean: float = Field(ge=0)
    max: float = Field(ge=0)
    spread: float = Field(ge=0)
    fill: float = Field(ge=0, le=1)
    cost_fill: float = Field(ge=0, le=1)


class ShardManifest(Section):
    """The whole of `manifest.json`; `sha256` is that of the canonical text without this field."""

    format: Literal["megatron-nextflow-shards"] = FORMAT
    format_version: int = FORMAT_VERSION
    sample_schema: dict[str, str] = Field(default_factory=lambda: dict(SAMPLE_SCHEMA))
    text_tokenizer: TextTokenizerRecord
    vision_tokenizer: VisionTokenizerRecord | None
    schedule: ScheduleRecord
    seed: int
    budget: BudgetRecord
    parents: dict[str, str]
    shards: tuple[ShardRecord, ...]
    files: tuple[FileRecord, ...]
    totals: Totals
    tokens_by_source: dict[str, Tokens]
    tokens_by_licence: dict[str, Tokens]
    packing: CostRecord
    sha256: Sha256 = "0" * 64

    @property
    def codebook_size(self) -> int:
        """Entries of the codebook; 1 for a set without images."""
        return self.vision_tokenizer.codebook_size if self.vision_tokenizer else 1

    @property
    def set_identity(self) -> str:
        """What a training is bound to: hex sha256 over the shards' own hashes in order, the tokenizers and the schedule.

        Parents, tables and this file's form are not in it: the same packs made again by another way are the same set.
        """
        vision = self.vision_tokenizer
        bound = {
            "shards": [shard.sha256 for shard in self.shards],
            "text_tokenizer": self.text_tokenizer.sha256,
            "vision_tokenizer": None if vision is None else vision.sha256,
            "schedule": self.schedule.sha256,
        }
        return sha256(canonical(bound)).hexdigest()

    def file_table(self) -> dict[str, tuple[int, str]]:
        """Size and sha256 of every file of the set but the manifest, by name."""
        table: dict[str, tuple[int, str]] = {file.name: (file.bytes, file.sha256) for file in self.files}
        for shard in self.shards:
            table[shard.name] = (shard.bytes, shard.sha256)
            table[shard.index_name] = (shard.index_bytes, shard.index_sha256)
        return table


def packing_of(slots: int, costs: Sequence[float], max_length: int, max_cost: int) -> CostRecord:
    """Fill and spread of packs that take `slots` in all; costs in the order of shards (a sum of floats depends on it)."""
    if not costs:
        return CostRecord(mean=0, max=0, spread=0, fill=0, cost_fill=0)
    mean = sum(costs) / len(costs)
    return CostRecord(
        mean=mean,
        max=max(costs),
        spread=max(costs) / mean,
        fill=slots / (len(costs) * max_length),
        cost_fill=mean / max_cost,
    )


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


def seal(manifest: ShardManifest) -> ShardManifest:
    """The manifest with its own hash in it."""
    body = manifest.model_dump(mode="json", exclude={"sha256"})
    return manifest.model_copy(update={"sha256": sha256(canonical(body)).hexdigest()})


def to_bytes(manifest: ShardManifest) -> bytes:
    """The file's bytes: sorted keys, one space of indent, a final newline."""
    value = manifest.model_dump(mode="json")
    return json.dumps(value, sort_keys=True, indent=1, ensure_ascii=True, allow_nan=False).encode() + b"\n"


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


def from_bytes(data: bytes, where: str = MANIFEST) -> ShardManifest:
    """The manifest of a file's bytes. Raises ManifestError saying what is wrong: syntax, version, schema, or hash."""
    try:
        value = strict_json(data)
    except ValueError as error:
        raise ManifestError(f"{where} is not valid JSON ({error}); the set must be written again") from None
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise ManifestError(f"{where} is not the manifest of a shard set: its 'format' is not '{FORMAT}'")
    if value.get("format_version") != FORMAT_VERSION:
        found = value.get("format_version")
        raise ManifestError(f"{where} has format version {found!r}; this software reads version {FORMAT_VERSION}")
    try:
        # JSON mode, so that arrays may fill tuples while a string is still no number.
        manifest = ShardManifest.model_validate_json(data, strict=True)
    except (ValidationError, ValueError) as error:
        raise ManifestError(f"{where} does not follow the schema: {_first(error)}") from None
    try:
        sealed, written = seal(manifest).sha256, to_bytes(manifest)
    except ValueError:
        raise ManifestError(f"{where} holds a number that is not finite; the set must be written again") from None
    if sealed != manifest.sha256:
        raise ManifestError(f"{where} was changed after it was written: its content does not have the sha256 it states")
    if written != data:
        raise ManifestError(f"{where} was changed after it was written: it is not in canonical form")
    _check_numbers(manifest, where)
    return manifest


def _first(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    return str(error)


def _check_numbers(manifest: ShardManifest, where: str) -> None:
    for expected, shard in enumerate(manifest.shards):
        if shard.number != expected:
            raise ManifestError(f"{where}: shard {expected} is missing or out of order; '{shard.name}' stands in its place")
    names = [file.name for file in manifest.files]
    if len(set(names)) != len(names):
        raise ManifestError(f"{where}: a file is listed twice")


def sum_by(keyed: Iterable[tuple[str | None, Tokens]]) -> dict[str, Tokens]:
    """Amounts added up by name; None counts as "(unknown)"."""
    totals: dict[str, Tokens] = {}
    for name, tokens in keyed:
        name = "(unknown)" if name is None else name
        totals[name] = totals.get(name, Tokens()).plus(tokens)
    return dict(sorted(totals.items()))
