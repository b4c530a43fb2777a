"""How sharp an image is, and what else ingest measures of it: the plainest scorer, one function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nextflow_data.scorers.loading import scorers

VERSION = "1"


@scorers.register("sharpness")
def score(
    *, image: bytes | None, text: str | None, reference: bytes | str | None, extra: Mapping[str, Any]
) -> dict[str, Any]:
    """The variance of the Laplacian of the grey levels as the score; entropy, edge_density and colourfulness beside it, all
    as `nextflow_data.images.measure` has them. ValueError without an image."""
    from nextflow_data.config import IngestConfig
    from nextflow_data.images.measure import measure

    if image is None:
        raise ValueError("there is no image")
    found = measure(image, IngestConfig())
    return {
        "score": found["sharpness"],
        "entropy": found["entropy"],
        "edge_density": found["edge_density"],
        "colourfulness": found["colourfulness"],
    }
