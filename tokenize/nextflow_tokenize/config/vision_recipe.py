"""The recipe of `mnf tokenizer train`: images, the tokenizer, and the stages it is trained in, one after the other.

A stage is the recipe's `vision_tokenizer` with some settings changed, so that the three stages of the paper (pixel branch;
joint; doubled pixel decoder alone) are three short entries; each goes on from the tokenizer that the one before left. No
torch at import time: a recipe is checked before anything heavy loads.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nextflow_data.common.section import Section
from pydantic import Field, ValidationError, field_validator, model_validator

from nextflow_tokenize.config.vision import VisionTokenizerConfig, missing_weights


class StageEntry(Section):
    """One stage: its name, and what differs from the recipe's `vision_tokenizer`."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    """Also the name of its folder."""
    vision_tokenizer: dict[str, Any] = Field(default_factory=dict)
    """Settings that replace the recipe's, section by section."""


class TokenizerRecipe(Section):
    """A tokenizer's training. Outputs go under `output`, one folder a stage."""

    name: str = Field(min_length=1)
    """Shown in messages."""
    output: Path
    """Folder of the stages' folders and of the finished tokenizer."""
    images: list[str] = Field(min_length=1)
    """Folders (searched through), image files, .tar files (WebDataset shards and any other) and .warc files, by path or
    pattern."""
    init: Path | None = None
    """Folder of a tokenizer that the first stage goes on from."""
    vision_tokenizer: VisionTokenizerConfig = VisionTokenizerConfig()
    stages: tuple[StageEntry, ...] = (StageEntry(name="train"),)

    @field_validator("images", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _resolvable(self) -> TokenizerRecipe:
        if not self.stages:
            raise ValueError("stages: name at least one")
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"stages: {', '.join(names)} must have names of their own")
        if self.vision_tokenizer.path is not None:
            raise ValueError("vision_tokenizer.path uses a trained tokenizer as it is; name one to train on from as init")
        if self.vision_tokenizer.sides is not None:
            raise ValueError(
                "vision_tokenizer.sides: training takes NextFlow's schedules; a tokenizer of one square is for use"
            )
        self.resolved()
        return self

    def check_inputs(self) -> None:
        """FileNotFoundError, naming all of them, where folders of weights that any stage reads are not there."""
        wrong = [line for config in self.resolved() for line in missing_weights(config)]
        if self.init is not None and not self.init.is_dir():
            wrong.append(f"init: {self.init} is not a folder")
        if wrong:
            raise FileNotFoundError("; ".join(dict.fromkeys(wrong)))

    def resolved(self) -> list[VisionTokenizerConfig]:
        """The settings of each stage. Raises ValueError naming the stage whose settings do not fit."""
        base = self.vision_tokenizer.model_dump()
        found = []
        for number, stage in enumerate(self.stages):
            try:
                config = VisionTokenizerConfig.model_validate(_merged(base, stage.vision_tokenizer))
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(str(part) for part in first["loc"])
                said = "unknown key" if first["type"] == "extra_forbidden" else first["msg"]
                raise ValueError(f"stage {stage.name}: {where + ': ' if where else ''}{said}") from None
            if number == 0 and self.init is None and config.training.stage == "decoder":
                raise ValueError(f"stage {stage.name} trains a decoder for finished codes: put a joint stage before it")
            found.append(config)
        return found


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        inner = merged.get(key)
        merged[key] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged
