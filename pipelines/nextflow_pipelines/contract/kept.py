"""What earlier attempts have left of a stage: finished units that are kept, and what nobody will read, which is removed."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

from nextflow_data.common.whole_files import file_sha256
from nextflow_data.storage.files import list_files
from nextflow_data.storage.store_path import AnyPath, StorePath

from nextflow_pipelines.contract.made_with import differences, in_words, made_with
from nextflow_pipelines.contract.stage import MANIFEST, REQUESTS, WORK, StageManifest, is_published, sizes_of, stage_file
from nextflow_pipelines.contract.units import DONE, UnitRecord, is_whole, read_record


def done_units(stage_dir: AnyPath) -> frozenset[str]:
    """Units that have a done-record, by one listing; on a store it may be an old one."""
    folder = stage_dir / DONE
    names = os.listdir(folder) if isinstance(folder, Path) else [path.name for path, _ in list_files(folder, "*.json")]
    return frozenset(name.removesuffix(".json") for name in names if name.endswith(".json"))


def check_kept(stage_dir: AnyPath) -> dict[str, UnitRecord]:
    """Records of the units that an earlier run has finished; others are removed, so that their units are done again.

    On a disk files are hashed, in as many threads as there are cores. On a store sizes are compared, by one listing, and of
    what does not carry its hash in its name also the hash that was noted when it was put: nothing is read.
    """
    units = sorted(done_units(stage_dir))
    with ThreadPoolExecutor(REQUESTS) as pool:
        read = list(pool.map(partial(read_record, stage_dir), units))
    records = [record for record in read if record is not None]
    if isinstance(stage_dir, Path):
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            whole = list(pool.map(partial(_unchanged, stage_dir), records))
    else:
        whole = _as_noted(stage_dir, records)
    kept = {record["unit"]: record for record, good in zip(records, whole, strict=True) if good}
    for unit in units:
        if unit not in kept:
            (stage_dir / DONE / f"{unit}.json").unlink(missing_ok=True)
    return kept


def _unchanged(stage_dir: Path, record: UnitRecord) -> bool:
    return is_whole(stage_dir, record) and all(file_sha256(stage_dir / f["path"]) == f["sha256"] for f in record["files"])


def _as_noted(stage_dir: StorePath, records: Sequence[UnitRecord]) -> list[bool]:
    entries = [(number, entry) for number, record in enumerate(records) for entry in record["files"]]
    sizes = sizes_of(stage_dir, [entry for _, entry in entries])
    wrong = {number for (number, entry), size in zip(entries, sizes, strict=True) if size != entry["bytes"]}
    published = [(number, entry) for number, entry in entries if number not in wrong and is_published(entry)]
    with ThreadPoolExecutor(REQUESTS) as pool:
        noted = pool.map(lambda one: stage_dir.store.noted_sha256(f"{stage_dir}/{one[1]['path']}"), published)
        wrong |= {number for (number, entry), sha256 in zip(published, noted, strict=True) if sha256 != entry["sha256"]}
    return [number not in wrong for number in range(len(records))]


def mixed_versions(records: Iterable[UnitRecord]) -> str:
    """What kept units were made with that this process is not, in words; "" where they are alike."""
    now = made_with()
    words: Counter[str] = Counter()
    for record in records:
        before = record.get("made_with")
        found = "versions that were not noted" if before is None else in_words(differences(before, now))
        words[found] += 1
    words.pop("", None)
    return "; ".join(f"{count} finished units were made with {found}" for found, count in sorted(words.items()))


def kept_bytes(stage_dir: AnyPath) -> tuple[int, int]:
    """(units, bytes) that a stage which stops now leaves for the next run."""
    with ThreadPoolExecutor(REQUESTS) as pool:
        records = [r for r in pool.map(partial(read_record, stage_dir), done_units(stage_dir)) if r is not None]
    return len(records), sum(entry["bytes"] for record in records for entry in record["files"])


def remove_strays(stage_dir: AnyPath, manifest: StageManifest) -> None:
    """Removes what the manifest does not name, but `_work/`."""
    named = {MANIFEST, *(entry["path"] for entry in manifest["files"])}
    if not isinstance(stage_dir, Path):
        named = {str(stage_dir / MANIFEST), *(str(stage_file(stage_dir, entry)) for entry in manifest["files"])}
        work = f"{stage_dir / WORK}/"
        _unlink(path for path, _ in list_files(stage_dir) if str(path) not in named and not str(path).startswith(work))
        return
    for path in sorted(stage_dir.rglob("*"), reverse=True):
        relative = path.relative_to(stage_dir).as_posix()
        if relative == WORK or relative.startswith(f"{WORK}/"):
            continue
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif relative not in named:
            path.unlink()


def remove_work(stage_dir: AnyPath) -> None:
    """Removes `_work/` of a committed stage."""
    folder = stage_dir / WORK
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
    else:
        _unlink(path for path, _ in list_files(folder))


def _unlink(paths: Iterable[AnyPath]) -> None:
    """As many as can be: who may not delete leaves objects that nobody reads."""

    def one(path: AnyPath) -> None:
        with suppress(OSError):
            path.unlink(missing_ok=True)

    with ThreadPoolExecutor(REQUESTS) as pool:
        list(pool.map(one, paths))
