"""Which committed stages belong together: the chain that report and explain read.

A root may hold several commits of one stage, from other settings or inputs. A stage's manifest names its inputs by
fingerprint, which is also in the name of its folder, so the chain is followed backwards from its end, without a listing, and
never guessed from times. Where the end is not given it is
the newest commit of the stage furthest down the way: time decides only which run is meant, not what belongs to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nextflow_data.common.errors import RequestError
from nextflow_data.storage.store_path import AnyPath
from nextflow_pipelines.contract.stage import MANIFEST, StageError, StageManifest, find_committed, read_manifest
from nextflow_pipelines.registry import STAGES

from megatron_nextflow.runtime import training_folder
from megatron_nextflow.runtime.training_folder import METRICS, last_step
from nextflow_orchestration.runs.records import RunPlace, last_run, last_training, recipes_of


@dataclass(frozen=True)
class Commit:
    """A committed stage: its folder and manifest."""

    folder: AnyPath
    manifest: StageManifest

    def has(self, dataset: str) -> bool:
        """Whether the stage wrote a data set of that name."""
        return any(entry["path"].startswith(f"{dataset}/") for entry in self.manifest["files"])


class NoRun(RequestError):
    """There is no committed stage where one was looked for."""


def chain(root: AnyPath, end: AnyPath | None = None, recipe: str | None = None) -> dict[str, Commit]:
    """The commits of one run, by stage name in the order of the way.

    `end` is the folder of its last stage; None: that of the last `mnf run` to finish (of `recipe`, where it is named), else
    the newest commit of the last stage that has one, unless `recipe` shares the root with others: which of them made that
    cannot be known. Raises NoRun when nothing is committed under `root`, and what `read_manifest` raises for the last
    stage; another commit that cannot be read is as good as none.
    """
    if end is None:
        end = last_run(root, recipe).get("pack") or _newest(root, recipe)
    last = read_manifest(end)
    found = {last["stage"]: Commit(end, last)}
    waiting = [last]
    while waiting:
        for stage, fingerprint in waiting.pop()["inputs"].items():
            if stage not in STAGES or stage in found:
                continue
            folder = root / f"{stage}-{fingerprint[:12]}"
            try:
                manifest = read_manifest(folder)
            except StageError:
                continue
            if manifest["fingerprint"] == fingerprint:
                found[stage] = Commit(folder, manifest)
                waiting.append(manifest)
    return {stage: found[stage] for stage in STAGES if stage in found}


def _newest(root: AnyPath, recipe: str | None) -> AnyPath:
    """The newest commit of the last stage that has one."""
    others = [name for name in recipes_of(root) if name != recipe] if recipe is not None else []
    if others:
        raise NoRun(
            f"{root} holds no finished run of the recipe {recipe!r}, only of {', '.join(map(repr, others))}: run it "
            "with `mnf run` first"
        )
    for stage in reversed(list(STAGES)):
        if folders := find_committed(root, stage):
            return folders[0]
    raise NoRun(f"{root} holds no committed stage: run `mnf run` first, or name another folder with --root")


def shard_folder(commits: dict[str, Commit]) -> AnyPath | None:
    """The shard set of a run, None where it is not packed yet."""
    if "pack" not in commits:
        return None
    folder = commits["pack"].folder / "shards"
    return folder if (folder / MANIFEST).exists() else None


def newest_training(run: RunPlace) -> Path:
    """The last run's training folder on this machine, where it may be no more than a name of what was copied to the root;
    else the one with the newest checkpoint. Raises NoRun where there is none."""
    remembered = last_training(run)
    if remembered is not None:
        return remembered
    found = [(training_folder.latest(path), path) for path in run.work.glob("train-*") if last_step(path)]
    if not found:
        raise NoRun(f"{run.root} holds no trained model: run `mnf run` or `mnf train` first, or name one with --checkpoint")
    return max((one.stat().st_mtime_ns, path) for one, path in found if one is not None)[1]


def newest_metrics(work: Path) -> Path | None:
    """The training folder under `work` whose metrics are the newest, with a checkpoint or without; None where none is."""
    found = [path for path in work.glob(f"train-*/{METRICS}") if path.stat().st_size]
    return max(found, key=lambda path: (path.stat().st_mtime_ns, path)).parent if found else None
