"""The parts of a run in order, which of them run, and which sections they read.

A run is the data stages, a training, an image, a report; a recipe without `train` ends with its shards and their report.
`--from` and `--to` run a stretch of them. Settings of parts after the last one decide nothing, so nothing that is wrong in
them is held against the run, except what nobody means: a misspelt key. Settings of parts before the first one are needed
all the same, because it is by them that what lies there is found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from nextflow_pipelines.registry import STAGES

from nextflow_orchestration.recipes.errors import RecipeError

TRAINING = ("train", "generate")
"""Parts that only a recipe with a `train` section has; their sections have their names, as the report's has."""
PARTS = (*STAGES, *TRAINING, "report")

_SECTIONS = {name: frozenset(stage.sections) for name, stage in STAGES.items()}
_SECTIONS |= {name: frozenset({name}) for name in (*TRAINING, "report")}


@dataclass(frozen=True)
class Parts:
    """`run` are those that run, `before` those that must have run; `idle` the sections that none of either reads."""

    run: tuple[str, ...]
    before: tuple[str, ...]
    idle: frozenset[str]

    def __contains__(self, part: str) -> bool:
        return part in self.run

    @property
    def needed(self) -> tuple[str, ...]:
        """All parts up to the last one that runs."""
        return self.before + self.run


def parts(first: str | None, last: str | None, trains: bool) -> Parts:
    """From `first` to `last` of a recipe's parts; None is the first, or the last, that it has.

    `trains`: whether it has a `train` section. Raises RecipeError for a part that is none, with the known ones.
    """
    own = [part for part in PARTS if trains or part not in TRAINING]
    for option, name in (("--from", first), ("--to", last)):
        if name is None or name in own:
            continue
        if name in PARTS:
            raise RecipeError(f"{option} {name}: the recipe has no `train` section, so it ends with its shards; add one")
        near = get_close_matches(name, own, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise RecipeError(f"{option} {name}: there is no such stage; {hint}known: {', '.join(own)}")
    begin = own.index(first) if first else 0
    end = own.index(last) if last else len(own) - 1
    if begin > end:
        raise RecipeError(f"--from {first} --to {last}: {last} comes before {first}; in order: {', '.join(own)}")
    return Parts(tuple(own[begin : end + 1]), tuple(own[:begin]), idle(own[: end + 1]))


def idle(needed: Sequence[str]) -> frozenset[str]:
    """Sections that only other parts than `needed` read."""
    return frozenset[str]().union(*_SECTIONS.values()) - frozenset[str]().union(*(_SECTIONS[part] for part in needed))
