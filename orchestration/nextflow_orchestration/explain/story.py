"""A document's story as plain values, and how it is told on a console.

Finding the story (`explain`) and telling it are apart, so that a test, or another program, can read the story without
parsing a terminal. Everything told came from the web: it is printed as text, never as rich markup, and control characters,
which could drive the terminal, are shown and not sent.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from nextflow_orchestration.words.rows import AsideLine, NodeLine

Verdict = Literal["kept", "dropped", "edited", "flagged", "aside", "missing", "pending"]
_STYLE = {
    "kept": ("✓", "green"), "dropped": ("✗", "red"), "edited": ("~", "yellow"), "flagged": ("!", "yellow"),
    "aside": ("✗", "red"), "missing": ("?", "red"), "pending": ("…", "dim"),
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """What happened in one stage to a document, or to one of its nodes or segments (`scope`)."""

    stage: str
    verdict: Verdict
    words: str
    scope: str = "document"
    snippet: str = ""


@dataclass(frozen=True)
class TokenLine:
    """One tokenised segment: its tokens or codes, and what it is."""

    index: int
    kind: str
    tokens: int
    words: str


@dataclass(frozen=True)
class Placement:
    """Where a piece of a document lies: slots `first` to `last` of a pack, both included, and the tokens it has there."""

    shard: str
    key: str
    first: int
    last: int
    words: str = ""


@dataclass(frozen=True)
class DocumentStory:
    """Everything known of one document. `record` are (name, value) pairs; `outcome` is the answer in one sentence."""

    doc_id: str
    address: str
    outcome: str
    record: tuple[tuple[str, str], ...] = ()
    nodes: tuple[NodeLine, ...] = ()
    steps: tuple[Step, ...] = ()
    final: tuple[NodeLine, ...] = ()
    tokens: tuple[TokenLine, ...] = ()
    placements: tuple[Placement, ...] = ()


@dataclass(frozen=True)
class PackStory:
    """One pack: its slots and cost, and for each piece in it what it is, where, and of which document."""

    shard: str
    key: str
    slots: int
    cost: float
    pieces: tuple[tuple[Placement, str], ...] = ()


@dataclass(frozen=True)
class Story:
    """The answer to a query. Nothing found: all parts are empty but `suggestions`."""

    query: str
    documents: tuple[DocumentStory, ...] = ()
    pack: PackStory | None = None
    asides: tuple[AsideLine, ...] = ()
    suggestions: tuple[str, ...] = ()
    note: str = ""
    run: str = ""
    """Whose run it is told of, where there are several."""

    @property
    def found(self) -> bool:
        return bool(self.documents or self.pack or self.asides)


def visible(text: str) -> str:
    """`text` with control and direction-changing characters shown as escapes, line breaks kept."""
    return "".join(
        c if c == "\n" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co") else c.encode("unicode_escape").decode()
        for c in text
    )


def _text(words: str, style: str = "") -> Text:
    return Text(visible(words), style=style)


def print_story(story: Story, console: Console) -> None:
    """Tells the story on `console`."""
    if story.run:
        console.print(_text(story.run, "dim"), soft_wrap=True)
    if story.note:
        console.print(_text(story.note, "yellow"))
    if not story.found:
        console.print(_text(f"Nothing here is called {story.query!r}.", "bold"))
        if story.suggestions:
            console.print("Nearest:")
        for suggestion in story.suggestions:
            console.print(_text(f"  {suggestion}"), soft_wrap=True)
        return
    if story.pack is not None:
        _render_pack(story.pack, console)
    for document in story.documents:
        _render_document(document, console, short=story.pack is not None)
    for aside in story.asides:
        console.print(Text.assemble(("✗ ", "red"), _text(f"{aside.stage}: kept aside, {aside.reason}", "bold")))
        for line in (aside.address, aside.words, aside.where):
            if line:
                console.print(_text(f"  {line}"), soft_wrap=True)
    if story.suggestions:
        console.print(_text("Also: " + ", ".join(story.suggestions), "dim"), soft_wrap=True)


def _render_pack(pack: PackStory, console: Console) -> None:
    console.print(_text(f"{pack.shard}:{pack.key}", "bold"))
    console.print(_text(f"{pack.slots:,} slots, {pack.cost:.3g} FLOPs, {len(pack.pieces)} pieces", "dim"))
    table = _table("slots", "what", "document")
    for placement, address in pack.pieces:
        table.add_row(f"{placement.first:,}–{placement.last:,}", _text(placement.words), _text(address))
    console.print(Padding(table, (0, 0, 1, 0)))


def _table(*names: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=True, header_style="dim")
    for name in names:
        table.add_column(name, justify="right" if name in ("", "slots", "tokens") else "left", overflow="fold")
    return table


def _render_document(story: DocumentStory, console: Console, short: bool) -> None:
    console.print(_text(story.address, "bold"), soft_wrap=True)
    console.print(_text(story.outcome))
    for name, value in story.record:
        console.print(Text.assemble(_text(f"  {name:<9}", "dim"), _text(value)), soft_wrap=True)
    if not short:
        _render_nodes("As it was parsed", story.nodes, console)
    if story.steps:
        console.print("What was decided", style="bold")
        table = Table.grid(padding=(0, 1))
        for step in story.steps:
            mark, colour = _STYLE[step.verdict]
            words = _text(step.words)
            if step.snippet:
                words.append_text(_text(f"\n“{step.snippet}”", "dim"))
            table.add_row(Text(mark, style=colour), _text(step.stage, "bold"), words)
        console.print(Padding(table, (0, 0, 0, 2)))
    if not short:
        _render_nodes("As it went on", story.final, console)
        if story.tokens:
            console.print(_text(f"Tokens: {sum(t.tokens for t in story.tokens):,}", "bold"))
            table = _table("", "kind", "tokens", "what")
            for token in story.tokens:
                table.add_row(str(token.index), token.kind, f"{token.tokens:,}", _text(token.words))
            console.print(Padding(table, (0, 0, 0, 2)))
        if story.placements:
            console.print("Where it is now", style="bold")
            for place in story.placements:
                where = f"  {place.shard}:{place.key}  slots {place.first:,}–{place.last:,}  {place.words}"
                console.print(_text(where), soft_wrap=True)
    console.print()


def _render_nodes(title: str, nodes: tuple[NodeLine, ...], console: Console, most: int = 40) -> None:
    if not nodes:
        return
    texts = sum(n.kind == "text" for n in nodes)
    console.print(_text(f"{title}, {len(nodes)} nodes: {texts} text, {len(nodes) - texts} image", "bold"))
    table = _table("", "kind", "size", "begins")
    for node in nodes[:most]:
        table.add_row(str(node.index), node.kind, node.size, _text(node.words))
    console.print(Padding(table, (0, 0, 0, 2)))
    if len(nodes) > most:
        console.print(_text(f"  and {len(nodes) - most} more", "dim"))
