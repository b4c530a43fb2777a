"""What of a run is committed already, found by fingerprint; nothing is run or written, and neither Spark nor Prefect starts.

Each stage says itself what its fingerprint would be (`RunContext.look`), from those of the stages before it, whether these
are committed or not. Where it needs what another stage finds out (the tokenizers' hashes), it cannot be known before that
one has run.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nextflow_data.sources.base import SourceConfig
from nextflow_pipelines.registry import STAGES, run_stage
from nextflow_pipelines.spark.context import NotKnown, RunContext, StageResult

from nextflow_orchestration.flow.final_stages import generate_stage
from nextflow_orchestration.flow.input_files import present_files
from nextflow_orchestration.recipes.errors import RecipeError
from nextflow_orchestration.recipes.parts import Parts
from nextflow_orchestration.recipes.places import shown
from nextflow_orchestration.recipes.run import Recipe
from nextflow_orchestration.training.copies import copy_of, step_of
from nextflow_orchestration.training.folders import training_folder

INPUT = "input"


@dataclass
class Look:
    """`entries` are the sources, None where a file is not there; `stages` what is known of the stages, committed or not;
    `unknown` leads from a part to the one that must run before it can be known."""

    entries: list[SourceConfig] | None
    stages: dict[str, StageResult] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)
    training: Path | None = None
    step: int = 0

    def kept(self, part: str, steps: int = 0) -> bool:
        """Whether a part is committed; a training, where it has gone `steps` steps."""
        if part == "train":
            return self.training is not None and self.step >= steps
        return part in self.stages and self.stages[part].skipped


def look(recipe: Recipe, names: Iterable[str]) -> Look:
    """What is there of the parts `names`, which begin with the first. Raises Corrupt for a commit that is damaged."""
    found = Look(present_files(recipe))
    context = RunContext(root=recipe.root, work=recipe.working, storage=recipe.storage, spark=recipe.spark, look=True)
    for name in names:
        if name in STAGES:
            _look_for_stage(recipe, context, name, found)
        elif name == "train" and recipe.train is not None:
            pack = found.stages.get("pack")
            if pack is None or not pack.skipped:
                found.unknown[name] = "pack"
                continue
            found.training = training_folder(recipe.working, recipe.train, pack.dir / "shards")
            found.step = step_of(found.training, copy_of(found.training, recipe.root))
        elif name == "generate" and recipe.train is not None:
            if found.training is None or not found.kept("train", recipe.train.steps):
                found.unknown[name] = "train"
                continue
            found.stages[name] = generate_stage(recipe, recipe.train, found.training, context)
    return found


def _look_for_stage(recipe: Recipe, context: RunContext, name: str, found: Look) -> None:
    before = [found.unknown[stage] for stage in STAGES[name].inputs if stage in found.unknown]
    if name == "ingest" and found.entries is None:
        before = [INPUT]
    if not before:
        try:
            found.stages[name] = run_stage(name, context, recipe.sections(), found.stages, found.entries or [])
            return
        except NotKnown as error:
            before = [error.stage]
    found.unknown[name] = before[0]


def require_before(recipe: Recipe, which: Parts, command: Sequence[str], found: Look | None = None) -> Look:
    """What lies before the first part that runs; RecipeError, with the command that makes it, where any is missing.

    `command` is the `mnf run` that was asked for, without `--from` and `--to`; `found` is given where it was looked already.
    """
    found = found or look(recipe, which.before)
    steps = recipe.train.steps if recipe.train is not None else 0
    missing = next((part for part in which.before if not found.kept(part, steps)), None)
    if missing is None:
        return found
    if missing == "train" and found.training is not None:
        what = f"train ({found.training.name}) is at step {found.step} of {steps}"
    else:
        folder = f" ({found.stages[missing].dir.name})" if missing in found.stages else ""
        what = f"{missing}{folder} is not committed"
    make = shlex.join([*command, "--to", which.before[-1]])
    raise RecipeError(f"--from {which.run[0]} needs what lies before it, and {what} in {shown(recipe.root)}: run {make}")


def command(recipe_path: Path | str, overrides: Sequence[str]) -> list[str]:
    """The `mnf run` of a recipe."""
    return ["mnf", "run", str(recipe_path), *(word for one in overrides for word in ("--set", one))]
