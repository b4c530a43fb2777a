"""What `mnf run --dry-run` says of each part: whether it would run or is kept, what it would read, where it would write."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nextflow_data.storage.store_path import AnyPath
from nextflow_pipelines.contract.stage import read_manifest
from nextflow_pipelines.registry import STAGES

from megatron_nextflow.config.train import TrainConfig
from nextflow_orchestration.flow.final_stages import REPORT, report_identity
from nextflow_orchestration.flow.input_files import described, local_bytes
from nextflow_orchestration.flow.looking import INPUT, Look, look, require_before
from nextflow_orchestration.recipes.parts import Parts
from nextflow_orchestration.recipes.places import shown
from nextflow_orchestration.recipes.run import Recipe
from nextflow_orchestration.report.run_report import is_report_of

KEPT, RUNS = "kept", "would run"


def dry_run(recipe: Recipe, which: Parts, command: Sequence[str]) -> Iterator[str]:
    """A line a part. Raises Corrupt for a commit that is damaged, and RecipeError as `require_before` does."""
    found = look(recipe, which.needed)
    require_before(recipe, which, command, found)
    if found.entries is None:
        yield _line(
            INPUT, RUNS, f"the sample would be made in {shown(recipe.root / 'input')}, of packages that it downloads"
        )
    else:
        yield _line(INPUT, "", described(recipe, found.entries))
    for part in which.needed:
        if part in STAGES:
            yield _stage(recipe, part, found)
        elif part == "train" and recipe.train is not None:
            yield _training(recipe.train, found)
        elif part == "generate":
            yield _generated(recipe, found)
        else:
            yield _line(part, *_report(recipe, found))


def _line(part: str, state: str, words: str) -> str:
    return f"{part:<17}{state:<11}{words}"


def _stage(recipe: Recipe, name: str, found: Look) -> str:
    if found.kept(name):
        folder = found.stages[name].dir
        return _line(name, KEPT, f"{folder.name} ({_size(_bytes(folder))})")
    definition = STAGES[name]
    reads = [_source(found, stage) for stage in definition.inputs]
    if name == "ingest":
        size = local_bytes(recipe, found.entries or [])
        reads = [_size(size) if size else "the input"]
    elif "ingest" in definition.sections:  # which bounds what is decoded
        reads.append("images of the input")
    return _line(name, RUNS, f"{_writes(name, found)}; reads {', '.join(reads)}")


def _writes(name: str, found: Look) -> str:
    if name in found.stages:
        return f"into {found.stages[name].dir.name}"
    cause = found.unknown[name]
    return f"into a folder that cannot be known before {'the input is there' if cause == INPUT else f'{cause} has run'}"


def _source(found: Look, stage: str) -> str:
    if found.kept(stage):
        folder = found.stages[stage].dir
        return f"{folder.name} ({_size(_bytes(folder))})"
    return f"{found.stages[stage].dir.name if stage in found.stages else stage} (not there yet)"


def _training(train: TrainConfig, found: Look) -> str:
    if found.training is None:
        return _line("train", RUNS, f"{train.steps} steps, {_writes('train', found)}")
    pack, folder = found.stages["pack"], found.training.name
    if found.step >= train.steps:
        return _line("train", KEPT, f"{folder} (step {found.step})")
    if not pack.facts["packs"]:
        return _line("train", "would fail", f"{pack.dir.name} holds no packs")
    steps = f"from step {found.step} to {train.steps}" if found.step else f"{train.steps} steps"
    return _line("train", RUNS, f"{steps}, into {folder}; reads {_source(found, 'pack')}")


def _generated(recipe: Recipe, found: Look) -> str:
    if found.kept("generate"):
        return _line("generate", KEPT, found.stages["generate"].dir.name)
    return _line("generate", RUNS, f'"{recipe.generate.prompt}", {_writes("generate", found)}')


def _report(recipe: Recipe, found: Look) -> tuple[str, str]:
    out = recipe.root / REPORT
    results = {name: result for name, result in found.stages.items() if result.skipped}
    if not recipe.report.audit and is_report_of(out, report_identity(recipe, results, found.training, found.step)):
        return KEPT, shown(out)
    return RUNS, shown(out)


def _bytes(folder: AnyPath) -> int:
    return sum(file["bytes"] for file in read_manifest(folder)["files"])


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
