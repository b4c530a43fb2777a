"""The stages in order, what each reads, and one call to run any of them by name.

Whoever schedules the work needs nothing else:

    results = {}
    for name in STAGES:
        results[name] = run_stage(name, ctx, sections, results, sources)

`sections` maps a recipe's section names to their settings, `results` the stages done so far. A stage is imported when it is
run, so that this module loads neither Spark nor torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from nextflow_data.common.section import Section
from nextflow_data.sources.base import SourceConfig

from nextflow_pipelines.spark.context import RunContext, StageResult


@dataclass(frozen=True)
class StageDefinition:
    """`sections` and `inputs` are the arguments of its `carry_out`, in order: its settings, then the stages it reads. `does`
    says to people what it does."""

    name: str
    sections: tuple[str, ...]
    inputs: tuple[str, ...]
    does: str


_DEFINITIONS = (
    StageDefinition(
        "ingest", ("ingest",), (), "reads records, parses pages into ordered text and images, measures each image once"
    ),
    StageDefinition("filter", ("filter",), ("ingest",), "text, image and document rules"),
    StageDefinition("dedup", ("dedup", "ingest"), ("filter",), "takes out copies of texts and images"),
    StageDefinition("caption", ("caption", "ingest"), ("dedup",), "gives images words"),
    StageDefinition(
        "vision_tokenizer",
        ("vision_tokenizer", "ingest"),
        ("dedup",),
        "trains the codes of images, or takes a trained tokenizer",
    ),
    StageDefinition("text_tokenizer", ("text_tokenizer",), ("caption",), "trains the words' vocabulary, or takes one"),
    StageDefinition(
        "tokenize",
        ("tokenize", "ingest"),
        ("caption", "text_tokenizer", "vision_tokenizer"),
        "turns text into ids and images into codes at every scale",
    ),
    StageDefinition(
        "pack",
        ("pack",),
        ("tokenize", "text_tokenizer", "vision_tokenizer"),
        "puts documents together into sequences of equal compute",
    ),
)

STAGES: Mapping[str, StageDefinition] = {definition.name: definition for definition in _DEFINITIONS}
"""Every stage by name, in the order in which they can be run."""


def run_stage(
    name: str,
    ctx: RunContext,
    sections: Mapping[str, Section],
    inputs: Mapping[str, StageResult],
    sources: Sequence[SourceConfig] = (),
) -> StageResult:
    """Runs a stage, or finds it committed (`StageResult.skipped`).

    `sections` and `inputs` may hold more than the stage needs; a missing one is a KeyError that names it. `sources` are the
    entries that name the input files, which only "ingest" reads. Raises FileNotFoundError for a missing source, ValueError
    for settings that do not fit together, and the errors of `contract.stage` (StageBusy, DiskFull, Corrupt, StageError).
    After any of them, and after KeyboardInterrupt, what was finished is kept and the same call goes on from there.
    """
    definition = STAGES[name]
    for kind, wanted, given in (("section", definition.sections, sections), ("input", definition.inputs, inputs)):
        missing = [key for key in wanted if key not in given]
        if missing:
            raise KeyError(f"stage {name} needs the {kind} {missing[0]!r}")
    arguments: list[Any] = [sections[key] for key in definition.sections]
    arguments += [inputs[key] for key in definition.inputs]
    if name == "ingest":
        arguments.append(sources)
    result: StageResult = import_module(f"nextflow_pipelines.stages.{name}").carry_out(ctx, *arguments)
    return result
