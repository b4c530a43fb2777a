"""What a stage's runs took: times and speeds, which are in no output, and which versions made it.

A line of JSON a run, `<root>/metrics/<stage>.jsonl`. A store cannot add to an object, so there each line is one of its own
under `<root>/metrics/<stage>/`, named by its time. The cost: reading them is a request a run.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nextflow_data.common.json_lines import read_rows
from nextflow_data.storage.files import put
from nextflow_data.storage.store_path import AnyPath

METRICS = "metrics"


def append_metrics(root: AnyPath, stage: str, values: Mapping[str, Any]) -> None:
    """Adds what one run of a stage took."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    line = json.dumps({"time": now, "stage": stage, **values}) + "\n"
    folder = root / METRICS
    if isinstance(folder, Path):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{stage}.jsonl").open("a") as file:
            file.write(line)
    else:
        put(folder / stage / f"{now}-{uuid.uuid4().hex[:8]}.json", line)


def read_metrics(root: AnyPath, stage: str) -> list[dict[str, Any]]:
    """What runs of a stage took, the oldest first."""
    folder = root / METRICS
    if isinstance(folder, Path):
        return read_rows(folder / f"{stage}.jsonl")
    return [json.loads(path.read_bytes()) for path in (folder / stage).glob("*.json")]
