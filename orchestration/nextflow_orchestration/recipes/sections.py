"""Sections of a run's recipe that belong to no stage: the flow, the run's own image, the report."""

from __future__ import annotations

from nextflow_data.common.section import Section, operational
from pydantic import Field, field_validator

from megatron_nextflow.config.generate import GenerateConfig


class FlowConfig(Section):
    """How the flow behaves as a Prefect flow."""

    retries: int = Field(default=1, ge=0)
    """Tries again of a stage that failed; bad configuration is never tried again."""
    retry_delay_seconds: float = Field(default=2.0, ge=0)
    """Wait before a retry."""


class GenerateSection(GenerateConfig):
    """The image that a run makes at its end. `end_of_text` left out is the text tokenizer's."""

    prompt: str = "A photograph of a coffee cup"
    """What it should show."""

    @field_validator("prompt")
    @classmethod
    def _words_alone(cls, value: str) -> str:
        if "<image>" in value:
            raise ValueError("a run's own prompt has no images; say it in words, and use `mnf generate --image` afterwards")
        return value


class ReportConfig(Section):
    """What the run's report shows."""

    packs: int = Field(default=8, ge=0)
    """Packs whose images and text are shown."""
    examples: int = Field(default=4, ge=0)
    """Examples a rule."""
    audit: bool = operational(False)
    """Read every byte of the shards again for the report's audit; false: it shows the audit that was made as they were
    written. `mnf audit` reads them too."""
