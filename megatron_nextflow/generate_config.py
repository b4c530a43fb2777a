"""How images and text are sampled: the `generate` part of a recipe.

Everything is a number that a person may want to turn; what the paper leaves open is said field by field. Needs no torch.
"""

from __future__ import annotations

from typing import Literal

from nextflow_data.config import Section
from pydantic import Field


class GenerateConfig(Section):
    """How `mnf generate` samples. The paper publishes no sampling settings; VAR-RL's (guidance 5, top-k 2, top-p 0.9) follow
    VAR. The defaults are ours, wider, for small models that are far from converged."""

    guidance: float = Field(default=2.0, ge=0)
    """Strength of classifier-free guidance at the last scale; it grows linearly over the scales (VAR). 0 switches it off."""
    temperature: float = Field(default=1.0, gt=0)
    top_k: int = Field(default=0, ge=0)
    """Most probable codes or words that are drawn from; 0 means all."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    """Smallest set of codes or words that holds this probability."""
    level: Literal[128, 256, 512, 1024] = 128
    """Resolution level of the image, which fixes the number of scales."""
    aspect: float = Field(default=1.0, gt=0)
    """Height over width of the image; the nearest of the schedule's 41 ratios is taken."""
    max_tokens: int = Field(default=64, ge=1)
    """Text tokens of a continuation."""
    seed: int = Field(default=0, ge=0)
