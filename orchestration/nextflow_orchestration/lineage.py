"""Which committed stages belong together: the chain that report and explain read.

A root may hold several commits of one stage, from other settings or inputs. A stage's manifest names its inputs by
fingerprint, so the chain is followed backwards from its end and never guessed from times. Where the end is not given it is
the newest commit of the stage furthest down the way: time decides only which run is meant, not what belongs to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nextflow_pipelines.stage import MANIFEST, Manifest, StageError, find_committed, read_manifest

STAGES = ("ingest", "filter", "dedup", "caption", "vision_tokenizer", "text_tokenizer", "tokenize", "pack")
"""The stages of the way, in order."""


@dataclass(frozen=True)
class Commit:
    """A committed stage: its folder and manifest."""

    folder: Path
    manifest: Manifest

    def has(self, dataset: str) -> bool:
        """Whether the stage wrote a data set of that name."""
        return any(entry["path"].startswith(f"{dataset}/") for entry in self.manifest["files"])


class NoRun(RuntimeError):
    """There is no committed stage where one was looked for."""


def chain(root: Path, end: Path | None = None) -> dict[str, Commit]:
    """The commits of one run, by stage name in the order of the way.

    `end` is the folder of its last stage; None: the newest commit of the last stage that has one. Raises NoRun when nothing
    is committed under `root`, and what `read_manifest` raises for the last stage; another commit that cannot be read is as
    good as none.
    """
    if end is None:
        ends = [folders for stage in reversed(STAGES) if (folders := find_committed(root, stage))]
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


def shard_folder(commits: dict[str, Commit]) -> Path | None:
    """The shard set of a run, None where it is not packed yet."""
    if "pack" not in commits:
        return None
    folder = commits["pack"].folder / "shards"
    return folder if (folder / MANIFEST).exists() else None
