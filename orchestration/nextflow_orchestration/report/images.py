"""The image nodes that a report shows, looked up by sha256 in a stage's documents.

A report shows a few dozen of them, and a run may have a billion: so those that are wanted are asked for together, and the
documents are read only until all are found, and no further than `LOOKED` of them; where it is known which documents show
them, only the files that hold these. The cost: of a larger run, where the wanted ones may lie anywhere, some are not shown.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from nextflow_data.storage.store_path import AnyPath
from nextflow_pipelines.contract.tables import dataset_files, iter_batches
from nextflow_pipelines.stages.common import file_of

LOOKED = 200_000
"""Documents that are looked through at most for images whose document is not known."""
_COLUMN = "nodes.list.element.image"


class Images:
    """Image nodes of the documents of the committed stage in `folder`."""

    def __init__(self, folder: AnyPath) -> None:
        self._folder = folder
        self._known: dict[str, Any] = {}

    def find(self, wanted: Set[str], documents: Set[str] = frozenset()) -> dict[str, Any]:
        """Those of the sha256s `wanted` that are found, by it; in the documents whose ids are `documents`, where there are
        any."""
        looked = 0
        files = dataset_files(self._folder, "documents")
        inside = sorted({file_of(doc_id, len(files)) for doc_id in documents}) if documents else range(len(files))
        for batch in iter_batches([files[number] for number in inside], rows=256, columns=["doc_id", _COLUMN]):
            if looked >= LOOKED or wanted <= self._known.keys():
                break
            looked += batch.num_rows
            held = batch.filter(pc.is_in(batch["doc_id"], pa.array(sorted(documents)))) if documents else batch
            self._keep(held.to_pylist(), wanted)
        return {sha256: self._known[sha256] for sha256 in wanted if sha256 in self._known}

    def _keep(self, rows: list[dict[str, Any]], wanted: Set[str]) -> None:
        for row in rows:
            for node in row["nodes"]:
                image = node["image"]
                if image is not None and image["sha256"] in wanted:
                    self._known.setdefault(image["sha256"], image)
