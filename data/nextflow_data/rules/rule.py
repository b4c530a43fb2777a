"""What a rule is: one class in one file that holds its name, its thresholds, what it measures, its verdict and its words.

    @rule
    class Length(TextRule[LengthConfig]):
        name = "length"
        Config = LengthConfig
        words = {"max_characters": "too much text to be worth its cost"}

        @abstractmethod
    def judge(self, text: str, document: Document) -> Verdict: ...

`Config` is the recipe's section `filter.<name>`; a check is named after the threshold it fails, so that a reader of a
decision ("length.max_characters") knows what to change. Ours lie in `rules.shipped`; another package names its own as entry
points of the group `nextflow.rules`. A rule must give the same answer for the same document on every machine; `version` is
raised where its answers change, and is part of the fingerprint of whatever it judged.

A rule is made once a process and settings, so what is slow to make (a model, a tokenizer) belongs in `__init__`, and what is
heavy to import too: recipes read these modules without needing what the rules need.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from nextflow_data.common.section import Section
from nextflow_data.common.sockets import Socket
from nextflow_data.decisions import Finding
from nextflow_data.document import Document, Image

C = TypeVar("C", bound=Section)
K = TypeVar("K", bound="type[Rule[Any]]")


@dataclass(frozen=True, slots=True)
class LineEdit:
    """A line (without the white space around it) that a rule takes out (`after` None) or changes, and why."""

    finding: Finding
    before: str
    after: str | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a text rule says: `finding` drops the document; else the edits, in order of the lines, and the language."""

    finding: Finding | None = None
    edits: tuple[LineEdit, ...] = ()
    language: str | None = None


class Rule(ABC, Generic[C]):
    """Base of all; make one of `TextRule`, `ImageRule` and `DocumentRule`."""

    name: ClassVar[str]
    Config: ClassVar[type[Section]]
    version: ClassVar[int] = 1
    words: ClassVar[Mapping[str, str]] = {}
    """What each check's failure means, as a clause, by the check's name."""

    def __init__(self, config: C) -> None:
        self.config = config

    def found(self, check: str, value: float | None = None, detail: str | None = None) -> Finding:
        """A failure of `check`, with the threshold of that name if it is a number."""
        asked = getattr(self.config, check, None)
        number = float(asked) if isinstance(asked, int | float) and not isinstance(asked, bool) else None
        return Finding(f"{self.name}.{check}", value, number, detail)

    @classmethod
    def means(cls, check: str) -> str:
        """The words of a check; "" for one that has none."""
        return cls.words.get(check, "")


class TextRule(Rule[C]):
    """Judges a document by its text, before its images."""

    @abstractmethod
    def judge(self, text: str, document: Document) -> Verdict:
        """`text` is all of the document's text as the rules before left it, blocks parted by an empty line."""


class ImageRule(Rule[C]):
    """Judges one image; one that fails is taken out of its document."""

    @abstractmethod
    def judge(self, image: Image, seen: int) -> Finding | None:
        """`seen` is the number of documents of the site that show the image."""


class DocumentRule(Rule[C]):
    """Judges what is left of a document after its text and its images were."""

    @abstractmethod
    def judge(self, document: Document) -> Finding | None:
        """The failure that drops it, or None."""


rules: Socket[type[Rule[Any]]] = Socket("rule", "nextflow_data.rules.shipped", "nextflow.rules")
"""Every rule by name."""


def rule(kind: K) -> K:
    """Decorator: registers a rule under its name."""
    rules.register(kind.name)(kind)
    return kind
