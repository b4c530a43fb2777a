"""What every benchmark shares: the machine in words, a table shown and kept as Markdown, and timing in turns.

A report says what it was run on and with, and how, because a number without them cannot be compared. Alternatives are timed
in turns, round by round, and compared within a round: on a shared machine only the ratio of neighbours in time means
anything. The cost: a run is as long as its slowest alternative times the rounds.
"""

from __future__ import annotations

import platform
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

PACKAGES = ("megatron-nextflow", "torch", "megatron-core", "transformer-engine", "numpy", "pillow", "webdataset")


@dataclass(frozen=True)
class Section:
    """A table of a report: its title, the names of its columns, and rows of cells in words."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """As a Markdown table under its title."""
        lines = [f"## {self.title}", "", _row(self.header), _row(["---", *["---:"] * (len(self.header) - 1)])]
        return "\n".join([*lines, *map(_row, self.rows)]) + "\n"


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Section:
    """A table of a report. Raises ValueError where a row has more or fewer cells than the header."""
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"{title}: {len(row)} cells in a row under {len(header)} columns: {row}")
    return Section(title, header, rows)


def report(name: str, claim: str, sections: Sequence[Section], remarks: Sequence[str], folder: Path) -> Path:
    """Shows the tables and writes `name`-date-device.md into `folder`; returns its path. `claim` is the script's docstring.

    The device in the name is the first GPU where there is one, else the processor.
    """
    console = Console() if sys.stdout.isatty() else Console(width=200)
    for section in sections:
        shown = Table(*section.header, title=section.title)
        for row in section.rows:
            shown.add_row(*row)
        console.print(shown)
    for remark in remarks:
        console.print(f"- {remark}", markup=False)
    today = datetime.now(UTC).date().isoformat()
    device = gpu() or cpu()
    path = folder / f"{name}-{today}-{re.sub('[^a-z0-9]+', '-', device.lower()).strip('-')}.md"
    machine = ", ".join(filter(None, [gpu(), f"{cpu()}, {_cores()} cores"]))
    parts = [
        f"# {name}, {today}\n",
        claim.strip() + "\n",
        f"- Device: {machine}\n- Versions: {versions()}\n- Command: `{command()}`\n",
        *(section.markdown() for section in sections),
        "".join(f"- {remark}\n" for remark in remarks),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(parts), encoding="utf-8")
    return path


def cpu() -> str:
    """The processor's name."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def gpu() -> str | None:
    """The first GPU's name; None without one."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def versions() -> str:
    """Python and the packages that matter."""
    found = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def command() -> str:
    """The command line, the script by its place in the project, other absolute paths by their last part."""
    given = [Path(one).name if one.startswith("/") else one for one in sys.argv[1:]]
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *given])


def in_turns(functions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Wall seconds of each function in each round, one after the other within a round, after one untimed round."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(rounds + 1):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """How many times as fast: the median over rounds of the ratio within a round."""
    return median(a / b for a, b in zip(slow, fast, strict=True))


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
