"""References under a root to files of this machine, as ingest leaves them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nextflow_data.common.range_opener import DEFAULT_KIND
from nextflow_data.common.whole_files import file_sha256
from nextflow_data.storage.files import state_of
from nextflow_pipelines.sources import Place, reference, write_places


def bind_sources(root: Path, paths: Sequence[Path]) -> list[str]:
    """The files' uris, which open under `root` from then on."""
    uris = [reference(DEFAULT_KIND, file_sha256(path), path.name) for path in paths]
    write_places(root, {uri: Place(path.absolute(), state_of(path)) for uri, path in zip(uris, paths, strict=True)})
    return uris
