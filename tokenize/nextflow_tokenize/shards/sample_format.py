"""One sample's bytes in a tar, read strictly: exactly four plain members in their order, canonical JSON, arrays that agree.

A shard is read by byte range, so this parser sees one sample and nothing else. It accepts what `write_shard` writes and no
other tar dialect: links, folders, long names, sparse files and trailing data are errors, each with the byte range it is in.
The standard library's `TarInfo.frombuf` reads the 512-byte header and verifies its checksum.
"""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from nextflow_data.common.section import Section
from numpy.typing import NDArray
from pydantic import Field, StringConstraints, TypeAdapter, ValidationError

from nextflow_tokenize.npy import TEXT_DTYPE, NpyError, code_dtype, from_npy
from nextflow_tokenize.packing.cost import attended_pairs, cost_of
from nextflow_tokenize.schedule import schedule_of
from nextflow_tokenize.segments import ImageSegment, Segment, TextSegment, slots, slots_of
from nextflow_tokenize.shards.manifest import ShardManifest
from nextflow_tokenize.shards.records import Sha256, canonical, strict_json

BLOCK = 512
MEMBERS = ("input.npy", "json", "target.npy", "text.npy")
"""A sample's members in the order of the tar: alphabetical, as webdataset writes them."""

DocId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]


class _Text(Section):
    kind: Literal["text"]
    doc: DocId
    tokens: int = Field(ge=1)
    loss: bool


class _Image(Section):
    kind: Literal["image"]
    doc: DocId
    sha256: Sha256
    grid: Annotated[list[int], Field(min_length=2, max_length=2)]
    scales: int = Field(ge=1)
    loss: bool


class _Pack(Section):
    segments: list[Annotated[_Text | _Image, Field(discriminator="kind")]]
    cost: float = Field(ge=0, allow_inf_nan=False)


_PACK = TypeAdapter(_Pack)


class SampleError(ValueError):
    """A sample that is not what the format demands.

    `member` is the part at fault; `start`, `stop` its bytes in the sample.
    """

    def __init__(self, message: str, member: str | None = None, start: int | None = None, stop: int | None = None) -> None:
        super().__init__(message)
        self.member, self.start, self.stop = member, start, stop


@dataclass(frozen=True)
class Sample:
    """One pack as read: `text` int32 [T]; `input`, `target` unsigned [C] in the set's code type; `cost` in FLOPs."""

    key: str
    segments: tuple[Segment, ...]
    text: NDArray[np.int32]
    input: NDArray[np.unsignedinteger]
    target: NDArray[np.unsignedinteger]
    cost: float

    @property
    def slots(self) -> int:
        """Slots the pack takes in a sequence."""
        return slots_of(self.segments)


def parse_sample(data: bytes, key: str, manifest: ShardManifest) -> Sample:
    """The sample of these bytes, checked as far as it can be without other samples. Raises SampleError.

    Checked: headers, member set and order, schema of the JSON, grids against the schedule, counts of the arrays against the
    segments, text ids < vocabulary, codes < codebook, slots and cost against the budget, and the cost itself.
    """
    members = split_members(data, key)
    segments, cost = _json(members["json"])
    tokens, codes = _counts(segments, members["json"])
    text = _array(members["text.npy"], TEXT_DTYPE, tokens, manifest.text_tokenizer.vocab_size, "text ids", "vocabulary")
    width = code_dtype(manifest.codebook_size)
    given = _array(members["input.npy"], width, codes, manifest.codebook_size, "input codes", "codebook")
    target = _array(members["target.npy"], width, codes, manifest.codebook_size, "target codes", "codebook")
    _budget(segments, cost, manifest, members["json"])
    return Sample(key, segments, text, given, target, cost)


@dataclass(frozen=True)
class Member:
    """A member's content and where it lies in the sample's bytes, header excluded."""

    name: str
    content: bytes
    start: int

    def error(self, message: str) -> SampleError:
        """An error that names this member."""
        return SampleError(f"{self.name}: {message}", self.name, self.start, self.start + len(self.content))


def split_members(data: bytes, key: str) -> dict[str, Member]:
    """The four members of a sample. Raises SampleError where headers, names, order, sizes or padding are not as written."""
    members: dict[str, Member] = {}
    at = 0
    for name in MEMBERS:
        header = data[at : at + BLOCK]
        try:
            info = tarfile.TarInfo.frombuf(header, "ascii", "strict")
        except (tarfile.HeaderError, ValueError) as error:
            raise SampleError(f"the tar header of {name} cannot be read ({error})", name, at, at + BLOCK) from None
        if info.name != f"{key}.{name}" or info.type != tarfile.REGTYPE:
            raise SampleError(f"member {key}.{name} was expected, '{info.name}' found", name, at, at + BLOCK)
        start, stop = at + BLOCK, at + BLOCK + info.size
        end = stop + -info.size % BLOCK
        if info.size < 0 or end > len(data):
            raise SampleError(f"{name} states {info.size} bytes, more than the sample has", name, at, at + BLOCK)
        if data[stop:end].strip(b"\0"):
            raise SampleError(f"the padding after {name} is not zero", name, stop, end)
        members[name] = Member(name, data[start:stop], start)
        at = end
    if at != len(data):
        raise SampleError(f"{len(data) - at} bytes follow the last member", None, at, len(data))
    return members


def _json(member: Member) -> tuple[tuple[Segment, ...], float]:
    try:
        value = strict_json(member.content)
        # JSON mode: strict, yet a list is a list and not a Python tuple.
        pack = _PACK.validate_json(member.content, strict=True)
        if canonical(value) != member.content:
            raise ValueError("not in canonical form")
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise member.error(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from None
    except ValueError as error:
        raise member.error(str(error)) from None
    return tuple(_segment(item) for item in pack.segments), pack.cost


def _segment(item: _Text | _Image) -> Segment:
    if isinstance(item, _Text):
        return TextSegment(kind="text", doc=item.doc, tokens=item.tokens, loss=item.loss)
    return ImageSegment(
        kind="image", doc=item.doc, sha256=item.sha256, grid=list(item.grid), scales=item.scales, loss=item.loss
    )


def _counts(segments: tuple[Segment, ...], member: Member) -> tuple[int, int]:
    tokens = codes = 0
    closed: set[str] = set()
    previous: str | None = None
    for number, segment in enumerate(segments):
        if segment["doc"] != previous:
            if segment["doc"] in closed:
                raise member.error(f"segments.{number}: document {segment['doc']} stands in two places of one pack")
            closed.add(segment["doc"])
            previous = segment["doc"]
        if segment["kind"] == "text":
            tokens += segment["tokens"]
            continue
        h, w = segment["grid"]
        try:
            schedule_of((h, w), segment["scales"])
        except ValueError as error:
            raise member.error(f"segments.{number}: {error}") from None
        codes += slots(segment) - 1
    return tokens, codes


def _array(member: Member, dtype: np.dtype, count: int, limit: int, what: str, of: str) -> NDArray:
    try:
        array = from_npy(member.content, dtype)
    except NpyError as error:
        raise member.error(str(error)) from None
    if len(array) != count:
        raise member.error(f"{len(array)} {what}, but the segments have {count}")
    if count and (int(array.min()) < 0 or int(array.max()) >= limit):
        at = int(np.flatnonzero((array < 0) | (array >= limit))[0])
        raise member.error(f"{what}[{at}] is {int(array[at])}, outside the {of} of {limit}")
    return array


def _budget(segments: tuple[Segment, ...], cost: float, manifest: ShardManifest, member: Member) -> None:
    used = slots_of(segments)
    if used > manifest.budget.max_length:
        raise member.error(f"the pack takes {used} slots, more than the budget of {manifest.budget.max_length}")
    expected = float(cost_of(used, attended_pairs(segments), manifest.budget.cost_model))
    if cost != expected:
        raise member.error(f"the cost is stated as {cost!r} FLOPs, the segments give {expected!r}")
    if cost > manifest.budget.max_cost:
        raise member.error(f"the cost of {cost!r} FLOPs is above the budget of {manifest.budget.max_cost}")
