"""The stage contract: what a stage is, when it is done, and what is kept when it is killed. No Spark here.

A stage's output lies in `<root>/<stage>-<first 12 digits of its fingerprint>/`. The fingerprint is the sha256 of the
canonical JSON of the stage's name and version, its parameters and its inputs (fingerprints of the stages it reads, sha256 of
the files it reads, hash of the tokenizer it uses). `manifest.json`, written last, is the only commit: a folder without one
does not exist for any reader. Until then:

- work is cut into *units*; each unit writes its files under temporary names, fsyncs them, renames them into place and
  writes a done-record (names, sizes, sha256, counts) last. Renames are not atomic as a group; the record is.
- after kill -9, units with a record whose files still match are kept, the rest are redone. What a unit writes depends only
  on the unit, so the result is byte for byte that of a run never killed.
- a `flock` on `<root>/.locks/` keeps two runs of the same stage apart; the kernel drops it with the process that held it,
  so a lock file left behind by a kill means nothing.

The cost: a fsync per file, and one reading of each kept file on resuming. Nothing that is hashed or committed holds a time,
a host or an absolute path; times go to `<root>/metrics/`.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from nextflow_data.document import SCHEMA_VERSION

MANIFEST = "manifest.json"
MANIFEST_FORMAT = 1
Counts = dict[str, Any]
"""Nested counters: leaves are ints, added up over units (`merge_counts`)."""


class StageFile(TypedDict):
    """One output file: `path` is relative to the stage's folder; `rows` only for data sets."""

    path: str
    bytes: int
    sha256: str
    rows: NotRequired[int]


class StageManifest(TypedDict):
    """`manifest.json` of a committed stage."""

    format: int
    schema_version: int
    stage: str
    version: int
    fingerprint: str
    parameters: dict[str, Any]
    inputs: dict[str, str]
    files: list[StageFile]
    counts: Counts
    facts: dict[str, Any]


class StageError(RuntimeError):
    """A stage could not finish; the message says what was wrong, what was kept and what to do."""


class StageBusy(StageError):
    """Another live process is running the same stage on the same inputs."""


class DiskFull(StageError):
    """No space left where a stage writes."""


class Corrupt(StageError):
    """A committed stage's files are not what its manifest says."""


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces, UTF-8; NaN and what JSON lacks raise."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


@dataclass(frozen=True)
class StagePlan:
    """What makes a stage's output what it is. `inputs` maps a name to a fingerprint or a sha256."""

    name: str
    version: int
    parameters: Mapping[str, Any]
    inputs: Mapping[str, str]

    @property
    def fingerprint(self) -> str:
        """64 hex digits."""
        identity = {"stage": self.name, "version": self.version, "parameters": self.parameters, "inputs": self.inputs}
        return hashlib.sha256(canonical_json(identity).encode()).hexdigest()

    def folder(self, root: Path) -> Path:
        """Where the output lies."""
        return root / f"{self.name}-{self.fingerprint[:12]}"


def merge_counts(into: Counts, more: Mapping[str, Any]) -> Counts:
    """Adds `more` to `into`, leaf by leaf, and gives `into` back."""
    for key, value in more.items():
        into[key] = merge_counts(into.setdefault(key, {}), value) if isinstance(value, Mapping) else into.get(key, 0) + value
    return into


def sorted_counts(counts: Mapping[str, Any]) -> Counts:
    """Nested counters in order of their names."""
    return {k: sorted_counts(v) if isinstance(v, Mapping) else v for k, v in sorted(counts.items())}


def read_manifest(stage_dir: Path) -> StageManifest:
    """The manifest of a committed stage. StageError where there is none, it is damaged or of another format."""
    path = stage_dir / MANIFEST
    try:
        manifest: StageManifest = json.loads(path.read_bytes())
        version = manifest["format"], manifest["schema_version"]
    except FileNotFoundError:
        raise StageError(f"{stage_dir} is not a committed stage: it has no {MANIFEST}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Corrupt(f"{path} cannot be read ({error}); remove the folder and run again") from None
    if version[0] != MANIFEST_FORMAT or version[1] not in range(1, SCHEMA_VERSION + 1):
        raise StageError(
            f"{path} has format {version[0]} and schema {version[1]}; this program reads format {MANIFEST_FORMAT} with "
            f"schemas up to {SCHEMA_VERSION}: use the version that wrote it, or a newer one"
        )
    return manifest


def check_sizes(stage_dir: Path, manifest: StageManifest) -> list[str]:
    """Files of a committed stage that are missing or of another size, in words."""
    wrong = []
    for entry in manifest["files"]:
        try:
            size = (stage_dir / entry["path"]).stat().st_size
        except OSError:
            wrong.append(f"{entry['path']} is missing")
            continue
        if size != entry["bytes"]:
            wrong.append(f"{entry['path']} has {size} bytes, not {entry['bytes']}")
    return wrong


def find_committed(root: Path, stage: str) -> list[Path]:
    """Folders of a stage's commits under `root`, the newest first."""
    found = [p.parent for p in root.glob(f"{stage}-{'[0-9a-f]' * 12}/{MANIFEST}")]
    return sorted(found, key=lambda p: ((p / MANIFEST).stat().st_mtime_ns, p.name), reverse=True)


def append_metrics(root: Path, stage: str, values: Mapping[str, Any]) -> None:
    """Adds one line to `<root>/metrics/<stage>.jsonl`; times and speeds go there and nowhere else."""
    folder = root / "metrics"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{stage}.jsonl").open("a") as file:
        file.write(json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "stage": stage, **values}) + "\n")
