"""What a report shows, as plain values: collectors fill these, the template reads them, and neither knows the other.

A part that is None or empty is left out of the page, so a shard set alone and a whole run give the same kind of report.
Strings are raw, never HTML: escaping is the template's, in one place. Pictures are `data:` URIs or None with a reason.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tile:
    """One figure at the top of the page. `tone` is "", "good" or "bad"."""

    label: str
    value: str
    note: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Fact:
    """A name and its value, for lists of settings and identities."""

    name: str
    value: str


@dataclass(frozen=True)
class StageCount:
    """What a stage committed: its documents and image nodes, where it lies, and how long it took (seconds, if known)."""

    stage: str
    does: str
    documents: int
    images: int
    folder: str
    seconds: float | None = None
    reused: bool = False


@dataclass(frozen=True)
class Example:
    """One case of a rule or of a kept-aside record. `where` is "document", "text 3", "image 2" or a place in a file."""

    address: str
    where: str = ""
    value: str = ""
    detail: str = ""
    snippet: str = ""
    picture: str | None = None


@dataclass(frozen=True)
class Rule:
    """All decisions of one rule with one action. `values` are (smallest, median, largest) of what was measured."""

    stage: str
    rule: str
    action: str
    means: str
    count: int
    documents: int
    threshold: str = ""
    values: tuple[str, str, str] | None = None
    examples: tuple[Example, ...] = ()


@dataclass(frozen=True)
class Kept:
    """Records kept aside for one reason in one stage."""

    stage: str
    reason: str
    count: int
    examples: tuple[Example, ...] = ()


@dataclass(frozen=True)
class Share:
    """A part of the token mix: text tokens and image codes under one label."""

    label: str
    text: int
    image: int
    documents: int | None = None

    @property
    def total(self) -> int:
        return self.text + self.image


@dataclass(frozen=True)
class Mix:
    """One way to cut the tokens: by kind, by source, by licence."""

    by: str
    shares: tuple[Share, ...]


@dataclass(frozen=True)
class Packing:
    """The packs' lengths in slots and compute costs in FLOPs. `slots` is their sum; `fill` and `cost_fill` count packs by
    their share of a budget, in bars over 0 … 1; `costs` are the least, the mean and the most."""

    packs: int
    slots: int
    fill: tuple[int, ...]
    cost_fill: tuple[int, ...]
    costs: tuple[float, float, float]
    deviation: float
    max_slots: int
    max_cost: float


@dataclass(frozen=True)
class Pair:
    """An image and its reconstruction from codes, both as data: URIs, with the PSNR in dB where both exist."""

    original: str | None
    reconstruction: str | None
    psnr: float | None = None
    label: str = ""


@dataclass(frozen=True)
class ScaleUse:
    """Codebook usage at one scale: grid (h, w) of a square image, distinct codes used, codes drawn, perplexity."""

    scale: int
    grid: tuple[int, int]
    used: int
    drawn: int
    perplexity: float | None = None


@dataclass(frozen=True)
class Curve:
    """One line of a chart: (x, y) points; and where each stands for many, their (x, lowest, highest)."""

    name: str
    points: tuple[tuple[float, float], ...]
    spread: tuple[tuple[float, float, float], ...] = ()


@dataclass(frozen=True)
class Tokenizer:
    """The vision tokenizer: facts, held-out pairs, codebook usage by scale, and its own training curves."""

    facts: tuple[Fact, ...]
    codebook: int
    pairs: tuple[Pair, ...] = ()
    usage: tuple[ScaleUse, ...] = ()
    curves: tuple[Curve, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Piece:
    """A segment of a shown pack. `kind` is "text" or "image"; `text` is decoded, or empty with `note` saying why."""

    kind: str
    doc: str
    address: str
    slots: int
    loss: bool
    text: str = ""
    pair: Pair | None = None
    grid: tuple[int, int] | None = None
    scales: int = 0
    note: str = ""


@dataclass(frozen=True)
class PackSheet:
    """One sampled pack with its segments in order; `hidden` segments are not shown."""

    shard: str
    key: str
    slots: int
    cost: float
    pieces: tuple[Piece, ...]
    hidden: int = 0


@dataclass(frozen=True)
class Training:
    """A training run: facts, and curves over steps. `by_scale` has one curve a scale, coarse to fine."""

    facts: tuple[Fact, ...]
    loss: tuple[Curve, ...] = ()
    by_scale: tuple[Curve, ...] = ()
    speed: tuple[Curve, ...] = ()


@dataclass(frozen=True)
class Generated:
    """An image the trained model made. `picture` is a data: URI."""

    prompt: str
    picture: str
    facts: tuple[Fact, ...] = ()


@dataclass(frozen=True)
class AuditLine:
    """Something the audit found wrong, and where. `severity` is "error" or "warning"."""

    severity: str
    shard: str
    key: str
    message: str


@dataclass(frozen=True)
class Audit:
    """The audit's verdict: what was checked, every finding, and whether the set may be trained on (`ok`). `read`: whether
    the shards' bytes were read for it; else it is what was counted as they were written."""

    facts: tuple[Fact, ...]
    findings: tuple[AuditLine, ...] = ()
    ok: bool = True
    read: bool = True


@dataclass(frozen=True)
class Report:
    """A whole report. `notes` say what is missing and why."""

    title: str
    subtitle: str
    tiles: tuple[Tile, ...] = ()
    inputs: tuple[Fact, ...] = ()
    stages: tuple[StageCount, ...] = ()
    rules: tuple[Rule, ...] = ()
    kept: tuple[Kept, ...] = ()
    mixes: tuple[Mix, ...] = ()
    packing: Packing | None = None
    tokenizer: Tokenizer | None = None
    sheets: tuple[PackSheet, ...] = ()
    training: Training | None = None
    generated: tuple[Generated, ...] = ()
    audit: Audit | None = None
    settings: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Chart:
    """Curves over steps, drawn together. `ramp`: an ordered family (scales); `log`: a logarithmic axis; `zero`: from 0."""

    title: str
    unit: str
    curves: tuple[Curve, ...]
    ramp: bool = False
    zero: bool = False
    log: bool = False
    words: str = ""


@dataclass(frozen=True)
class Moment:
    """Something that happened in a training: when (as text), at which step, what kind of thing, in words."""

    when: str
    step: int
    kind: str
    message: str


@dataclass(frozen=True)
class Saved:
    """A checkpoint of a training: its step, its size in bytes, when it was written, and over which layout."""

    step: int
    size: int
    when: str
    layout: str


@dataclass(frozen=True)
class TrainingPage:
    """One training, finished or at work. `refresh`: seconds after which a browser reads the page again; 0: never."""

    title: str
    subtitle: str
    tiles: tuple[Tile, ...] = ()
    charts: tuple[Chart, ...] = ()
    marks: tuple[tuple[float, str], ...] = ()
    events: tuple[Moment, ...] = ()
    hidden_events: int = 0
    checkpoints: tuple[Saved, ...] = ()
    samples: tuple[Generated, ...] = ()
    layout: tuple[Fact, ...] = ()
    hardware: tuple[Fact, ...] = ()
    settings: str = ""
    notes: tuple[str, ...] = ()
    refresh: int = 0
