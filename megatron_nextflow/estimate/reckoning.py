"""What a training recipe amounts to, without the devices it is for.

Parameters are those of the model that training would build (`meta_model`), memory is reckoned by `memory`, arithmetic by
`flops`, so a recipe for a thousand GPUs is checked in seconds where there is none. The cost: what only the devices can tell,
such as whether FP8 can be had there, is not checked but said.

Exit status 0, or 2 where the recipe cannot be trained as it is, with one line a reason on stderr.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from nextflow_data.common.errors import RequestError
from nextflow_tokenize.packing.cost import flops_per_pair, flops_per_slot
from nextflow_tokenize.shards.manifest import MANIFEST, ShardManifest
from pydantic import ValidationError
from rich import box
from rich.console import Console
from rich.table import Table

from megatron_nextflow.config import installed
from megatron_nextflow.config.train import TrainConfig
from megatron_nextflow.estimate import flops, memory
from megatron_nextflow.estimate.memory import GIB, Memory
from megatron_nextflow.sequence.vocabulary import Vocabulary

REFUSED = 2


class DryRunError(RequestError):
    """A recipe that cannot be built."""


@dataclass(frozen=True)
class Sizes:
    """What the data decides: `vocabulary`, width of a code, and the shards' manifest where there are shards."""

    vocabulary: Vocabulary
    codebook_dim: int
    manifest: ShardManifest | None


@dataclass(frozen=True)
class Stage:
    """One process of a pipeline stage: its layers, its parameters, how many of them it learns, and its memory."""

    layers: int
    parameters: int
    trained: int
    memory: Memory


@dataclass(frozen=True)
class DryRun:
    """What a training would be.

    `parameters` and `trained` count the whole model. `step_flops` and `step_tokens` are of the global batch: of the shards'
    `packs` packs, as their mean has it, or where there are no shards of full packs of text. Every slot counts as a label.
    """

    processes: int
    copies: int
    parameters: int
    trained: int
    stages: tuple[Stage, ...]
    step_flops: float
    step_tokens: float
    packs: int | None
    notes: tuple[str, ...]

    def too_large(self, limit: float | None) -> list[str]:
        """A line for each pipeline stage that needs more than `limit` GiB a process."""
        if limit is None:
            return []
        return [
            f"pipeline stage {number} needs {stage.memory.total / GIB:.1f} GiB a process, memory_gib is {limit:g}: "
            "raise parallel.tp, pp or cp, set recompute, or lower data.micro_batch_size or model.max_length"
            for number, stage in enumerate(self.stages)
            if stage.memory.total > limit * GIB
        ]


def reckon(config: TrainConfig, processes: int) -> DryRun:
    """The training of `config` on `processes` processes. No process group may be running; on return none is.

    Megatron answers for the CPU afterwards (`device.setup`). Raises ValueError (DryRunError, InputError and ShardError are
    such) where the model cannot be built or divided so.
    """
    from megatron_nextflow.estimate.meta_model import held_by

    notes = []
    if config.fp8 and not installed.transformer_engine():
        notes.append(f"fp8: {config.fp8} needs Transformer Engine where it trains; it is not installed here")
    if config.wandb and not installed.wandb():
        notes.append("wandb is set: it must be installed where it trains; it is not installed here")
    copies = _check(config, processes)
    sizes = _sizes(config, notes)
    vocabulary = sizes.vocabulary
    config.parallel.check_rows(vocabulary.tables)
    stages, parameters, trained = [], 0, 0
    for number in range(config.parallel.pp):
        held = held_by(config, vocabulary, sizes.codebook_dim, number)
        bytes_held = memory.estimate(config, vocabulary, number, held.mine, held.mine_trained, copies, bool(config.fp8))
        stages.append(Stage(config.model.layers // config.parallel.pp, held.mine, held.mine_trained, bytes_held))
        parameters += held.whole
        trained += held.whole_trained
    if sizes.manifest and (repeated := config.data.repeats(sizes.manifest.totals.samples)):
        notes.append(repeated)
    tokens, pairs = _pack(config, sizes.manifest)
    batch = config.data.global_batch_size
    frozen = config.trainable == "connector_and_head"
    a_pack = flops.step_flops(config.model, vocabulary, 1, 0, 1, frozen_layers=frozen) * tokens
    a_pack += flops.step_flops(config.model, vocabulary, 0, 1, 0) * pairs
    return DryRun(
        processes=processes,
        copies=copies,
        parameters=parameters,
        trained=trained,
        stages=tuple(stages),
        step_flops=a_pack * batch,
        step_tokens=tokens * batch,
        packs=sizes.manifest.totals.samples if sizes.manifest else None,
        notes=tuple(notes),
    )


def _check(config: TrainConfig, processes: int) -> int:
    """`config.check` without what only the machine that trains must have; returns the data-parallel size."""
    data = config.data.model_copy(update={"shards": config.data.shards or "-"})
    return config.model_copy(update={"data": data, "fp8": None, "wandb": None}).check(processes)


def _sizes(config: TrainConfig, notes: list[str]) -> Sizes:
    from nextflow_data.storage.files import any_path
    from nextflow_tokenize.shards.reader import ShardSet

    from megatron_nextflow.feeding.inputs import vocabulary_of

    data, model = config.data, config.model
    if data.shards is not None:
        place = any_path(data.shards, config.storage)
        if not (place / MANIFEST).is_file():
            notes.append(f"{data.shards} is not there yet: sizes are the recipe's")
        else:
            manifest = ShardSet.open(place).manifest
            vision = manifest.vision_tokenizer
            width = vision.semantic_dim + vision.pixel_dim if vision else 1
            return Sizes(vocabulary_of(config, data.shards, manifest), width, manifest)
    wanted = {"model.text_vocabulary": model.text_vocabulary, "data.codebook_size": data.codebook_size}
    wanted |= {"data.codebook_dim": data.codebook_dim}
    missing = [name for name, value in wanted.items() if value is None]
    if missing:
        raise DryRunError(f"there are no shards to tell the sizes of the vocabulary: set {', '.join(missing)}")
    text, codes, width = (int(value or 0) for value in wanted.values())
    return Sizes(Vocabulary(text, codes), width, None)


def _pack(config: TrainConfig, manifest: ShardManifest | None) -> tuple[float, float]:
    """Slots of a pack and their attended pairs: the set's means, or those of a text of `max_length`.

    A manifest has the mean cost and the model it was counted for, from which the pairs follow exactly.
    """
    if manifest is None:
        length = config.model.max_length
        return length, length * (length + 1) / 2
    slots, cost = manifest.totals.slots / manifest.totals.samples, manifest.budget.cost_model
    return slots, (manifest.packing.mean - slots * flops_per_slot(cost)) / flops_per_pair(cost)


def show(run: DryRun, config: TrainConfig, console: Console) -> None:
    """The whole of it, as text and a table a stage."""
    parallel = config.parallel
    learnt = "" if run.trained == run.parameters else f", of which it learns {run.trained:,}"
    console.print(f"[bold]{run.parameters:,}[/bold] parameters{learnt}", soft_wrap=True)
    ways = {"sequence parallel": parallel.sequence_parallel, "layers recomputed": config.recompute}
    precision = f"{config.precision}, FP8 {config.fp8}" if config.fp8 else config.precision
    said = ", ".join([parallel.words(run.processes), precision, *(way for way, used in ways.items() if used)])
    console.print(f"{run.processes} process{'' if run.processes == 1 else 'es'}: {said}", soft_wrap=True)
    console.print(_table(run, config))
    most = "at most" if run.packs is None else "on average"
    console.print(
        f"{run.step_flops / run.step_tokens:.4g} FLOPs a token, {run.step_flops:.4g} a step; "
        f"{run.step_tokens:,.0f} tokens a step {most}",
        soft_wrap=True,
    )
    packs = config.steps * config.data.global_batch_size
    epochs = f", {packs / run.packs:.2f} epochs of {run.packs:,} packs" if run.packs else ""
    console.print(
        f"{config.steps:,} steps: {run.step_tokens * config.steps:.4g} tokens {most}{epochs}, "
        f"{run.step_flops * config.steps:.4g} FLOPs",
        soft_wrap=True,
    )
    for note in run.notes:
        console.print(f"note: {note}", soft_wrap=True)


def _table(run: DryRun, config: TrainConfig) -> Table:
    limit = f", of {config.memory_gib:g}" if config.memory_gib else ""
    table = Table(title=f"GiB a process, by pipeline stage{limit}", title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    for name in ("stage", "layers", "parameters", "weights", "grads", "Adam", "activations", "loss", "total"):
        table.add_column(name, justify="right", no_wrap=True)
    for number, stage in enumerate(run.stages):
        held = stage.memory
        items = (held.weights, held.gradients, held.optimizer, held.activations, held.loss, held.total)
        row = (number, stage.layers, f"{stage.parameters / 1e6:,.1f} M", *(f"{item / GIB:.2f}" for item in items))
        table.add_row(*map(str, row))
    return table


def reckon_file(file: Path, processes: int) -> int:
    """Prints what the configuration in `file` amounts to; returns the exit status."""
    try:
        config = TrainConfig.model_validate_json(file.read_bytes())
        run = reckon(config, processes)
    except ValidationError as error:
        return _refuse([_line(entry["loc"], entry["msg"]) for entry in error.errors()])
    except (ValueError, OSError) as error:
        return _refuse([str(error)])
    show(run, config, Console(highlight=False))
    return _refuse(run.too_large(config.memory_gib))


def _line(place: tuple[int | str, ...], message: str) -> str:
    """One of pydantic's errors; a rule over several fields has no place and names them itself."""
    return ": ".join(filter(None, [".".join(map(str, place)), message.removeprefix("Value error, ")]))


def _refuse(reasons: list[str]) -> int:
    for reason in reasons:
        print(f"dry run: {reason}", file=sys.stderr)
    return REFUSED if reasons else 0
