"""Records that are added to while something is at work: files of one JSON object a line.

Whoever adds to one may be killed in the middle of a line, and a disk may fill, so a line that is no object is left out and
the rest is read. The cost: damage is not told apart from a kill; what must be known whole has a hash (`whole_files`).
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a file in order; none where there is no file."""
    rows: list[dict[str, Any]] = []
    with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                rows += [row] if isinstance(row, dict) else []
    return rows
