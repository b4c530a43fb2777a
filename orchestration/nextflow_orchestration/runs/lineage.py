"""Which committed stages belong together: the chain that report and explain read.

A root may hold several commits of one stage, from other settings or inputs. A stage's manifest names its inputs by
fingerprint, so the chain is followed backwards from its end and never guessed from times. Where the end is not given it is
the newest commit of the stage furthest down the way: time decides only which run is meant, not what belongs to it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from nextflow_data.common.errors import RequestError
from nextflow_data.common.whole_files import replace_file
from nextflow_pipelines.contract.stage import MANIFEST, StageError, StageManifest, find_committed, read_manifest
from nextflow_pipelines.registry import STAGES

from megatron_nextflow.runtime import training_folder
from megatron_nextflow.runtime.training_folder import METRICS, last_step

RUN = "run.json"
"""In a run's root; the file of that name in a training's folder says who trains there (`launching.launch_record`)."""


@dataclass(frozen=True)
class Commit:
    """A committed stage: its folder and manifest."""

    folder: Path
    manifest: StageManifest

    def has(self, dataset: str) -> bool:
        """Whether the stage wrote a data set of that name."""
        return any(entry["path"].startswith(f"{dataset}/") for entry in self.manifest["files"])


class NoRun(RequestError):
    """There is no committed stage where one was looked for."""


def chain(root: Path, end: Path | None = None) -> dict[str, Commit]:
    """The commits of one run, by stage name in the order of the way.

    `end` is the folder of its last stage; None: that of the last `mnf run` to finish, else the newest commit of the
    last stage that has one. Raises NoRun when nothing
    is committed under `root`, and what `read_manifest` raises for the last stage; another commit that cannot be read is as
    good as none.
    """
    if end is None:
        end = last_run(root).get("pack")
    if end is None:
        ends = [folders for stage in reversed(list(STAGES)) if (folders := find_committed(root, stage))]
        if not ends:
            raise NoRun(f"{root} holds no committed stage: run `mnf run` first, or name another folder with --root")
        end = ends[0][0]
    by_fingerprint: dict[str, Commit] = {}
    for path in sorted(root.glob(f"*/{MANIFEST}")):
        if any(path.parent.name.startswith(f"{stage}-") for stage in STAGES):
            try:
                manifest = read_manifest(path.parent)
            except StageError:
                continue
            by_fingerprint[manifest["fingerprint"]] = Commit(path.parent, manifest)
    found: dict[str, Commit] = {}
    waiting = [read_manifest(end)["fingerprint"]]
    while waiting:
        commit = by_fingerprint.get(waiting.pop())
        if commit is not None and commit.manifest["stage"] not in found:
            found[commit.manifest["stage"]] = commit
            waiting += commit.manifest["inputs"].values()
    return {stage: found[stage] for stage in STAGES if stage in found}


def remember_run(root: Path, **folders: Path) -> None:
    """Writes which folders under `root` the run that has just finished made or found: `<root>/run.json`."""
    names = {name: folder.relative_to(root).as_posix() for name, folder in folders.items()}
    replace_file(root / RUN, (json.dumps(names, indent=1, sort_keys=True) + "\n").encode())


def last_run(root: Path) -> dict[str, Path]:
    """The folders of the last run to finish under `root`, those that are still there; empty where none has."""
    try:
        names = json.loads((root / RUN).read_bytes())
        return {name: root / folder for name, folder in names.items() if (root / folder).is_dir()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def shard_folder(commits: dict[str, Commit]) -> Path | None:
    """The shard set of a run, None where it is not packed yet."""
    if "pack" not in commits:
        return None
    folder = commits["pack"].folder / "shards"
    return folder if (folder / MANIFEST).exists() else None


def newest_training(root: Path) -> Path:
    """The last run's training folder, else the one with the newest checkpoint. Raises NoRun where there is none."""
    remembered = last_run(root).get("train")
    if remembered is not None and last_step(remembered):
        return remembered
    found = [(training_folder.latest(path), path) for path in root.glob("train-*") if last_step(path)]
    if not found:
        raise NoRun(f"{root} holds no trained model: run `mnf run` or `mnf train` first, or name one with --checkpoint")
    return max((one.stat().st_mtime_ns, path) for one, path in found if one is not None)[1]


def newest_metrics(root: Path) -> Path | None:
    """The training folder under `root` whose metrics are the newest, with a checkpoint or without; None where none is."""
    found = [path for path in root.glob(f"train-*/{METRICS}") if path.stat().st_size]
    return max(found, key=lambda path: (path.stat().st_mtime_ns, path)).parent if found else None
