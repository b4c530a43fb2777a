"""Every rule of a recipe on one document: its text, its images, and what is left.

A document stops at the first rule it fails; an image that fails is taken out and the document goes on. Each is a Decision
that names the rule as the recipe does, with what was measured. What the order costs: a dropped document does not say which
later rules it would have failed too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

from nextflow_data.common.stage_names import FILTER
from nextflow_data.decisions import Action, Decision, Finding, Subject, decision
from nextflow_data.document import Document, Node, text_node
from nextflow_data.nodes import recurrence_key, text_of, with_nodes, without
from nextflow_data.rules.config import FilterConfig
from nextflow_data.rules.rule import DocumentRule, ImageRule, LineEdit, TextRule


def filter_document(
    document: Document, config: FilterConfig, recurrence: Mapping[str, int]
) -> tuple[Document | None, list[Decision]]:
    """`document` as the rules leave it (None: dropped) and the decisions taken.

    `recurrence` maps `recurrence_key` to the number of documents of the site that show the image; an absent key counts 1.
    """
    return _made(config).judge(document, recurrence)


class _Rules:
    """The rules of a recipe, ready to judge."""

    def __init__(self, config: FilterConfig) -> None:
        made = [rule(section) for rule, section in config.chosen()]
        self.text = [rule for rule in made if isinstance(rule, TextRule)]
        self.image = [rule for rule in made if isinstance(rule, ImageRule)]
        self.document = [rule for rule in made if isinstance(rule, DocumentRule)]

    def judge(self, document: Document, recurrence: Mapping[str, int]) -> tuple[Document | None, list[Decision]]:
        subject, decisions = Subject.of(document), list[Decision]()

        def decide(finding: Finding, action: Action = "drop", node: int | None = None) -> None:
            decisions.append(decision(subject, FILTER, finding, action, node))

        nodes, language = document["nodes"], None
        for text_rule in self.text:
            text = text_of(document)
            if not text.strip():
                break
            verdict = text_rule.judge(text, document)
            if verdict.finding is not None:
                decide(verdict.finding)
                return None, decisions
            language = verdict.language or language
            nodes, edited = _edit_lines(nodes, verdict.edits)
            for finding, index in edited:
                decide(finding, "edit", index)
            document = {**document, "nodes": nodes, "lang": language}
        dropped: set[int] = set()
        for index, node in enumerate(nodes):
            if node["image"] is None:
                continue
            seen = recurrence.get(recurrence_key(document["source"]["address"], node["image"]), 1)
            found = next((f for rule in self.image if (f := rule.judge(node["image"], seen)) is not None), None)
            if found is not None:
                dropped.add(index)
                decide(found, "drop", index)
        document = with_nodes({**document, "lang": language}, without(nodes, dropped))
        failed = next((f for rule in self.document if (f := rule.judge(document)) is not None), None)
        if failed is None and not document["nodes"]:
            failed = Finding("document.empty", 0.0, 1.0)
        if failed is not None:
            decide(failed)
            return None, decisions
        return document, decisions


@lru_cache(maxsize=4)
def _made(config: FilterConfig) -> _Rules:
    """Some rules take half a second to make: once a process and configuration."""
    return _Rules(config)


def _edit_lines(nodes: list[Node], edits: Iterable[LineEdit]) -> tuple[list[Node], list[tuple[Finding, int]]]:
    """`nodes` with a rule's line edits applied, and each edit's finding with its node's index."""
    pending = list(edits)[::-1]
    if not pending:
        return nodes, []
    result: list[Node] = []
    done: list[tuple[Finding, int]] = []
    for index, node in enumerate(nodes):
        lines: list[str] = []
        for line in (node["text"] or "").splitlines():
            edit = pending[-1] if pending and pending[-1].before == line.strip() and line.strip() else None
            if edit is None:
                lines.append(line)
                continue
            pending.pop()
            done.append((edit.finding, index))
            if edit.after is not None:
                lines.append(line[: len(line) - len(line.lstrip())] + edit.after)
        result.append(node if node["kind"] == "image" else text_node(_squeeze("\n".join(lines))))
    return result, done


def _squeeze(text: str) -> str:
    """Without the empty lines that taken-out lines leave."""
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    return text.strip("\n")
