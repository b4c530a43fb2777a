"""Which kind of recipe a file is, told by its keys: one given to another verb is told in one line where it belongs."""

from __future__ import annotations

from collections.abc import Collection

from nextflow_orchestration.recipes.errors import RecipeError
from nextflow_orchestration.recipes.written import Written

RUN_ONLY = frozenset(
    {
        *("root", "work", "storage", "input", "sources", "spark", "flow", "ingest", "filter", "dedup", "caption"),
        *("text_tokenizer", "tokenize"),
        *("pack", "generate", "report"),
    }
)
"""Keys that only a run's recipe has (`recipes.run.Recipe`, which a test compares; importing it here would be a circle)."""

_KEYS: dict[str, tuple[Collection[str], str]] = {
    "tokenizer": ({"images", "stages"}, "a vision tokenizer's recipe: mnf tokenizer train"),
    "run": (RUN_ONLY, "a run's recipe: mnf run"),
    "training": ({"train"}, "a training's recipe, on shards that are there: mnf train"),
}
"""Of each kind the keys that only it has (or that it alone has without the others'), and what to do with it."""


def kind_of(written: Written) -> str | None:
    """The kind that a file plainly is of; None where it could be any."""
    return next((kind for kind, (keys, _) in _KEYS.items() if set(keys) & set(written.tree)), None)


def require_kind(written: Written, *kinds: str) -> None:
    """RecipeError where a file is plainly of a kind that is not among `kinds`."""
    kind = kind_of(written)
    if kind is not None and kind not in kinds:
        raise RecipeError(f"{written.source}: this is {_KEYS[kind][1]} {written.source}")
