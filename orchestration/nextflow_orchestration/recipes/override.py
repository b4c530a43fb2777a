"""What the value of `--set key=value` is: a number, true, false, null, a [list], a {mapping}, or the text as it was typed.

YAML gives half of the characters that occur in paths a meaning of their own (` #` begins a comment, `*` an alias, `: ` a
mapping, `12:30` is a number), and in a file one sees it happen. On a command line one does not, so here YAML's rules hold
only for what is unmistakably meant so. The cost: YAML's block style, dates and base-60 numbers cannot be written; a text
that looks like a number needs quotes of its own (`name='"12"'`).
"""

from __future__ import annotations

from typing import Any

import yaml

_PLAIN = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "bool", "null"))

BLANKS = " \t\r\n"


def setting(text: str) -> Any:
    """The value that `text` stands for. Blanks around it do not count; within quotes they do.

    Raises ValueError with the reason where it begins as a list or mapping and is none.
    """
    text = text.strip(BLANKS)
    if text.startswith(("[", "{")):
        return _collection(text)
    if text[:1] in ("'", '"'):
        return _quoted(text)
    loader = yaml.SafeLoader("")
    tag = loader.resolve(yaml.ScalarNode, text, (True, False))
    if tag not in _PLAIN or ":" in text:
        return text
    try:
        return loader.construct_object(yaml.ScalarNode(tag, text))
    except ValueError:  # `0x_` looks like a number to YAML and to nobody else
        return text


def _collection(text: str) -> Any:
    advice = "put quotes around it to have it taken as it is"
    try:
        value = yaml.safe_load(text)
        beside = _unread(text)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ValueError(f"begins like a list or mapping of YAML and is none: {problem}; {advice}") from None
    if beside:
        raise ValueError(f"{beside!r} would be read as a comment; {advice}")
    return value


def _quoted(text: str) -> str:
    """What stands in quotes, if that is all there is; else the text with them."""
    try:
        value = yaml.safe_load(text)
        return value if isinstance(value, str) and not _unread(text) else text
    except yaml.YAMLError:
        return text


def _unread(text: str) -> str:
    """What YAML passes over between its tokens besides white space: comments."""
    beside, end = "", 0
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        beside += text[end : token.start_mark.index].strip()
        end = max(end, token.end_mark.index)
    return beside + text[end:].strip()
