"""image: sizes, shapes, blur and emptiness, and icons by how often a site shows them."""

from __future__ import annotations

from pydantic import Field

from nextflow_data.common.section import Section
from nextflow_data.decisions import Finding
from nextflow_data.document import Image
from nextflow_data.rules.rule import ImageRule, rule


class ImageRules(Section):
    """Rules on one image node; an image that fails is taken out of its document. All thresholds are ours."""

    min_side: int = Field(default=64, ge=1)
    """Smallest shorter side, in pixels."""
    max_aspect: float = Field(default=4.0, ge=1)
    """Largest longer side / shorter side; NextFlow's schedule ends at 1:4 and 4:1."""
    min_sharpness: float = Field(default=5.0, ge=0)
    """Smallest variance of the Laplacian, on the copy that is measured (grey levels 0…255)."""
    min_entropy: float = Field(default=0.3, ge=0, le=8)
    """Smallest Shannon entropy of the grey levels, in bits. Line drawings lie between 0.3 and 1, empty canvases below."""
    max_recurrence: int = Field(default=5, ge=1)
    """Most pages of one site that may show the same image before it is taken for an icon or a logo."""


@rule
class ImageQuality(ImageRule[ImageRules]):
    """By what was measured when the image was ingested (`nextflow_data.images.measure`); nothing is decoded."""

    name = "image"
    Config = ImageRules
    words = {
        "min_side": "the image's shorter side is too small, in pixels",
        "max_aspect": "the image is too long for its width",
        "max_recurrence": "too many pages of the site show this image, as they would an icon or a logo",
        "min_sharpness": "the image is too blurred",
        "min_entropy": "the image is nearly of one colour",
    }

    def judge(self, image: Image, seen: int) -> Finding | None:
        rules, address = self.config, image["address"]
        short, long = sorted((image["width"], image["height"]))
        aspect = long / max(short, 1)
        if short < rules.min_side:
            return self.found("min_side", float(short), address)
        if aspect > rules.max_aspect:
            return self.found("max_aspect", aspect, address)
        if seen > rules.max_recurrence:
            return self.found("max_recurrence", float(seen), address)
        if image["sharpness"] < rules.min_sharpness:
            return self.found("min_sharpness", image["sharpness"], address)
        if image["entropy"] < rules.min_entropy:
            return self.found("min_entropy", image["entropy"], address)
        return None
