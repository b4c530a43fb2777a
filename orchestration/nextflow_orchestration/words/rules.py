"""Rules and reasons in plain words, for people who read a report or ask about one page.

A stage names its rules in short, stable words that statistics can be kept by. What they mean is said here, in the place
where people read it; a rule this table does not know is told by its own name, so a new rule is never hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nextflow_data.captioners.captioner import captioners
from nextflow_data.rules.rule import rules

RULES: dict[str, str] = {
    # ingest
    "image-not-in-source": "an image the page shows is not among the records of its source",
    "image-unusable": "an image the page shows could not be read",
    "image-without-address": "an image without an address was left out",
    "icon-tracking-pixel": "an invisible image of a pixel or two was left out",
    "icon-declared-size": "an image that its markup declares to be small was left out as an icon",
    "icon-class": "an image marked as an icon or logo was left out",
    "inline-svg": "a drawing inside the markup was left out",
    "boilerplate-link-density": "regions made mostly of links were left out as navigation",
    "boilerplate-hidden": "regions the page hides were left out",
    "boilerplate-class-header": "a page header, by its class or id, was left out",
    "boilerplate-role": "regions whose role is navigation, banner or the like were left out",
    "boilerplate-class": "regions whose class or id says navigation, footer or the like were left out",
    "charset-claim": "the page claims another character set than it is written in",
    "charset-replaced": "characters that could not be decoded were replaced",
    # filter; what each rule's checks mean is said by the rule (`nextflow_data.rules`)
    "document.empty": "nothing is left",
    # dedup
    "dedup.exact": "the same text as another page that stays",
    "dedup.min_similarity": "nearly the same text as another page that stays",
    "dedup.image_exact": "the same image as one that stays",
    "dedup.image_max_difference": "nearly the same image as one that stays",
    "dedup.nothing_left": "it held nothing but copies",
    # caption
    "caption.none": "no words were found for the image",
    # tokenize
    "tokenize.nothing_left": "no text and no image of it could be tokenised",
    "image-unreadable": "the image's bytes could not be read or decoded",
    "no-vision-tokenizer": "the run has no vision tokenizer, so the image has no codes",
    "max-upscale": "the image is too small: it would have to be enlarged too much",
    "image-changed": "the image's bytes are not those that were measured",
    # pack
    "pack.nothing_left": "an image of it fits no pack",
    "empty": "it has no tokens and no image",
    "longer-than-pack": "it does not fit the length of a pack",
    "costlier-than-pack": "it does not fit the compute of a pack",
}
"""What a rule found or did, as a clause."""

REASONS: dict[str, str] = {
    "empty-file": "the file has no bytes",
    "missing-file": "the file cannot be opened",
    "unsupported-compression": "the file is compressed in a way that is not supported",
    "not-warc": "these bytes are not a WARC record",
    "gzip-corrupt": "the compressed member is damaged",
    "gzip-truncated": "the compressed member ends before it should: the file was cut",
    "record-too-large": "the record is larger than the limit",
    "payload-too-large": "the decoded content is larger than the limit",
    "warc-header": "the record's header cannot be read",
    "content-length": "the record's stated length is not its length",
    "several-records-in-member": "several records share one compressed member, so none can be found again",
    "not-http": "the record is not an HTTP response",
    "http-header": "the HTTP header cannot be read",
    "http-status": "the server's answer was not a success",
    "http-body-short": "the body is shorter than the HTTP header says",
    "revisit": "the record only points to an earlier capture",
    "duplicate-record": "another source holds the same record",
    "segmented": "the record is one part of a divided one",
    "content-encoding": "the content's compression is damaged or not supported",
    "content-changed": "the bytes are not those that were measured",
    "not-found-in-page": "the page no longer holds its embedded image",
    "empty-page": "the page has neither text nor images after its boilerplate is left out",
    "page-too-large": "the page is larger than the limit",
    "markup-too-deep": "the page's elements are nested too deeply to be parsed",
    "empty-image": "the image has no bytes",
    "image-too-large": "the image file is larger than the limit",
    "unsupported-format": "the image is of a kind that is not supported",
    "too-many-pixels": "the image has more pixels than the limit",
    "undecodable": "the image cannot be decoded",
    "truncated-image": "the image file ends before it should",
}
"""Why a record could not be used, as a clause."""


def rule_words(rule: str) -> str:
    """What a rule means, or "" where only its name is known."""
    if rule in RULES:
        return RULES[rule]
    name, _, check = rule.partition(".")
    if check and name in rules and (words := rules.get(name).means(check)):
        return words
    if check and name in captioners and (words := captioners.get(name).words.get(check, "")):
        return words
    if rule.startswith("boilerplate-tag-"):
        return f"regions in a <{rule.removeprefix('boilerplate-tag-')}> element were left out"
    return REASONS.get(rule, "")


def reason_words(reason: str) -> str:
    """What a reason means; its own words where it is not known."""
    return REASONS.get(reason, reason.replace("-", " "))


def number(value: float | None) -> str:
    """A measured value for reading: whole where it is whole, else four significant digits; "" for None."""
    if value is None:
        return ""
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.4g}"


def place(scope: str, index: int | None, node: Mapping[str, Any] | None = None) -> str:
    """What of a document a decision is about: "" for all of it, else "image 3" or "segment 2" (`node` tells which kind)."""
    return "" if index is None else f"{node['kind'] if node else scope} {index}"


def in_words(decision: Mapping[str, Any]) -> str:
    """A decision as one sentence: rule, measured value, threshold, what was done, detail."""
    words = rule_words(decision["rule"])
    text = f"{decision['rule']}, {words}" if words else decision["rule"]
    value, threshold = number(decision["value"]), number(decision["threshold"])
    if value and threshold:
        text += f" (measured {value}, threshold {threshold})"
    elif value:
        text += f" (measured {value})"
    where = place(decision["scope"], decision["index"])
    text += f", {where}" if where else ""
    if decision["action"] == "drop":
        text += "; dropped" if decision["scope"] == "document" else f"; the {decision['scope']} was taken out"
    return text + (f": {decision['detail']}" if decision["detail"] else "")
