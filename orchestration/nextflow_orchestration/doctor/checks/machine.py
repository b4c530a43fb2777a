"""Cores, memory and open files, with the limits of the container that this may be in."""

from __future__ import annotations

import os
import re
import resource
from pathlib import Path

from nextflow_orchestration.doctor.check import Case, Diagnosis, bad, check, ok

GIB = 1 << 30
MEMORY = 3 * GIB
"""For the quickstart: Spark's heap of 1 GiB, Python workers, torch, Prefect's server; our choice."""
OPEN_FILES = 1024
"""What most systems give, and the tests run with."""
_GROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def limits(groups: Path = _GROUPS, own: Path = _OWN) -> tuple[float | None, int | None]:
    """(cores, bytes) that control groups allow this process, the least on the way from its own group up; None: no limit.

    Both versions: of 2, cpu.max and memory.max; of 1, cpu.cfs_quota_us, cpu.cfs_period_us and memory.limit_in_bytes.
    """
    cores: list[float] = []
    memory: list[int] = []
    for folder in _folders(groups, own):
        quota = _numbers(folder / "cpu.max") or _numbers(folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us")
        if len(quota) == 2 and quota[0] > 0 and quota[1] > 0:
            cores.append(quota[0] / quota[1])
        for name in ("memory.max", "memory.limit_in_bytes"):
            memory += [
                value for value in _numbers(folder / name) if value < 1 << 60
            ]  # version 1 writes "none" as a huge one
    return min(cores, default=None), min(memory, default=None)


def _folders(groups: Path, own: Path) -> list[Path]:
    """Folders of the process's groups and of those above them, where they can be seen from here."""
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = ["0::/"]
    found: list[Path] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and not {"cpu", "memory"} & set(controllers.split(",")):
            continue
        top = groups / controllers if controllers else groups
        below = top / path.lstrip("/")
        # In a container the path may be the host's, and the limits are at the top.
        found += [folder for folder in (below, *below.parents) if folder == top or folder.is_relative_to(top)]
    return list(dict.fromkeys(found))


def _numbers(*files: Path) -> list[int]:
    """The whole numbers in files; none where one is missing or says "max"."""
    try:
        words = [word for file in files for word in file.read_text(encoding="utf-8").split()]
    except OSError:
        return []
    return [int(word) for word in words] if all(re.fullmatch(r"-?\d+", word) for word in words) else []


@check("machine", "cores")
def cores(case: Case) -> Diagnosis:
    """Those that this process may use: how many tasks and processes make sense."""
    there, may = os.cpu_count() or 1, len(os.sched_getaffinity(0))
    quota, _ = limits()
    if quota is not None and quota < may:
        advice = f"set spark.master to local[{max(1, int(quota))}], and not more --processes"
        return ok(f"{quota:g} of {there}, by the container's quota, which Python and Java may not see", advice)
    return ok(f"{may} of {there}" if may < there else f"{may}")


@check("machine", "memory")
def memory(case: Case) -> Diagnosis:
    """The machine's, or what the container allows."""
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    said = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    total, free = said["MemTotal"], said["MemAvailable"]
    _, limit = limits()
    by = ""
    if limit is not None and limit < total:
        total, free, by = limit, min(free, limit), ", by the container's limit"
    found = f"{total / GIB:.1f} GiB{by}, {free / GIB:.1f} GiB free"
    if min(total, free) < MEMORY:
        advice = "end other programs, or give the container more; spark.driver_memory and the model's sizes can be set lower"
        return bad(f"{found}; the quickstart wants {MEMORY / GIB:.0f}", advice)
    return ok(found)


@check("machine", "open files")
def open_files(case: Case) -> Diagnosis:
    """The limit of this shell."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < OPEN_FILES:
        most = "" if hard == resource.RLIM_INFINITY or hard >= OPEN_FILES else f"; the system allows {hard} at most"
        return bad(f"{soft} at a time{most}", f"ulimit -n {OPEN_FILES * 4}")
    return ok("no limit" if soft == resource.RLIM_INFINITY else f"{soft:,} at a time")
