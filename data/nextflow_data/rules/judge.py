"""Every rule that judges one document: its language, its text, its images, and what is left.

A document stops at the first rule it fails, cheapest first; an image that fails is taken out and the document goes on. Each
is a Decision that names the rule as the recipe does, with what was measured. What the order costs: a dropped document does
not say which later rules it would have failed too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

from nextflow_data.config import FilterConfig, ImageRules
from nextflow_data.decisions import Action, Decision, Finding, Subject, decision
from nextflow_data.document import Document, Image, Node, text_node
from nextflow_data.nodes import recurrence_key, text_of, with_nodes, without
from nextflow_data.rules.language import identify
from nextflow_data.rules.text_rules import LineEdit, TextRules
from nextflow_data.stage_names import FILTER

Decide = Callable[[Finding, Action, int | None], None]


def filter_document(
    document: Document, config: FilterConfig, recurrence: Mapping[str, int]
) -> tuple[Document | None, list[Decision]]:
    """`document` as the rules leave it (None: dropped) and the decisions taken.

    `recurrence` maps `recurrence_key` to the number of documents of the site that show the image; an absent key counts 1.
    """
    decisions: list[Decision] = []
    subject = Subject.of(document)

    def decide(failure: Finding, action: Action, node: int | None = None) -> None:
        decisions.append(decision(subject, FILTER, failure, action, node))

    text = text_of(document)
    language: str | None = None
    edits: list[LineEdit] = []
    if config.document is not None and len(text) > config.document.max_characters:
        decide(Finding("document.max_characters", float(len(text)), float(config.document.max_characters)), "drop")
        return None, decisions
    if text.strip():
        language, failure = _judge_language(text, config)
        if failure is None:
            failure, edits = _text_rules(config).judge(text)
        if failure is not None:
            decide(failure, "drop")
            return None, decisions

    nodes = _edit_lines(document["nodes"], edits, decide)
    dropped: set[int] = set()
    for index, node in enumerate(nodes):
        if node["image"] is not None and config.image is not None:
            count = recurrence.get(recurrence_key(document["source"]["address"], node["image"]), 1)
            failure = judge_image(node["image"], config.image, count)
            if failure is not None:
                dropped.add(index)
                decide(failure, "drop", index)
    result = with_nodes({**document, "lang": language}, without(nodes, dropped))
    failure = _judge_document(result, config)
    if failure is not None:
        decide(failure, "drop")
        return None, decisions
    return result, decisions


def judge_image(image: Image, rules: ImageRules, recurrence: int) -> Finding | None:
    """The first image rule that fails, or None. `recurrence` is the number of documents of the site that show the image."""
    short, long = sorted((image["width"], image["height"]))
    aspect = long / max(short, 1)
    if short < rules.min_side:
        return Finding("image.min_side", float(short), float(rules.min_side), image["address"])
    if aspect > rules.max_aspect:
        return Finding("image.max_aspect", aspect, rules.max_aspect, image["address"])
    if recurrence > rules.max_recurrence:
        return Finding("image.max_recurrence", float(recurrence), float(rules.max_recurrence), image["address"])
    if image["sharpness"] < rules.min_sharpness:
        return Finding("image.min_sharpness", image["sharpness"], rules.min_sharpness, image["address"])
    if image["entropy"] < rules.min_entropy:
        return Finding("image.min_entropy", image["entropy"], rules.min_entropy, image["address"])
    return None


@lru_cache(maxsize=4)
def _text_rules(config: FilterConfig) -> TextRules:
    """Filters and their tokenizer take half a second to make: once a process and configuration."""
    return TextRules(config)


def _judge_language(text: str, config: FilterConfig) -> tuple[str | None, Finding | None]:
    if config.language is None:
        return None, None
    language, probability = identify(text)
    rules = config.language
    if rules.allowed and language not in rules.allowed:
        return language, Finding("language.allowed", probability, None, f"{language}, allowed: {', '.join(rules.allowed)}")
    if probability < rules.min_probability:
        return language, Finding("language.min_probability", probability, rules.min_probability, language)
    return language, None


def _edit_lines(nodes: list[Node], edits: list[LineEdit], decide: Decide) -> list[Node]:
    """`nodes` with C4's line edits applied, each a decision. Edits come in the order of the lines."""
    if not edits:
        return nodes
    pending = edits[::-1]
    result: list[Node] = []
    for index, node in enumerate(nodes):
        lines: list[str] = []
        for line in (node["text"] or "").splitlines():
            edit = pending[-1] if pending and pending[-1].before == line.strip() and line.strip() else None
            if edit is None:
                lines.append(line)
                continue
            pending.pop()
            decide(edit.failure, "edit", index)
            if edit.after is not None:
                lines.append(line[: len(line) - len(line.lstrip())] + edit.after)
        result.append(node if node["kind"] == "image" else text_node(_squeeze("\n".join(lines))))
    return result


def _squeeze(text: str) -> str:
    """Without the empty lines that taken-out lines leave."""
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    return text.strip("\n")


def _judge_document(document: Document, config: FilterConfig) -> Finding | None:
    rules = config.document
    if rules is None:
        return None if document["nodes"] else Finding("document.empty", 0.0, 1.0)
    images = sum(node["kind"] == "image" for node in document["nodes"])
    characters = len(text_of(document))
    for name, value, bound, fails in (
        ("min_images", images, rules.min_images, images < rules.min_images),
        ("max_images", images, rules.max_images, images > rules.max_images),
        ("min_characters", characters, rules.min_characters, characters < rules.min_characters),
    ):
        if fails:
            return Finding(f"document.{name}", float(value), float(bound))
    if images and characters / images < rules.min_characters_per_image:
        return Finding("document.min_characters_per_image", characters / images, rules.min_characters_per_image)
    return None if document["nodes"] else Finding("document.empty", 0.0, 1.0)
