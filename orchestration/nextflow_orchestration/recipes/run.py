"""The recipe: one YAML file, one typed tree, validated before any work begins.

Every setting of a run is here or has a default here; the resolved tree is stored with the run's output, so a run can be
repeated from its results. Command-line overrides (`--set train.steps=10`) go through the same validation. The cost of one
tree: adding a setting means naming it in a section class, which is also where it is documented.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from nextflow_data.config import CaptionConfig, DedupConfig, FilterConfig, IngestConfig
from nextflow_data.section import Section
from nextflow_data.sources.base import SourceConfig
from nextflow_data.sources.entry import AnySource
from nextflow_data.sources.warc import WarcConfig
from nextflow_pipelines.spark.config import SparkConfig
from nextflow_tokenize.config.pack import PackConfig
from nextflow_tokenize.config.tokenize import TextTokenizerConfig, TokenizeConfig
from nextflow_tokenize.config.vision import VisionTokenizerConfig, missing_weights
from nextflow_tokenize.schedule import LEVEL_SCALES, grids, token_count
from nextflow_tokenize.vision.usable import check_levels, read_tokenizer_config
from pydantic import Field, ValidationError, field_validator, model_validator

from megatron_nextflow.config.generate import GenerateConfig
from megatron_nextflow.config.train import TrainConfig
from nextflow_orchestration.recipes.errors import RecipeError, duplicate_keys, explain, key_lines

R = TypeVar("R", bound=Section)

SAMPLE = "sample"
"""The input that `nextflow_orchestration.sample.warc` makes from PyPI packages."""


class FlowConfig(Section):
    """How the flow behaves as a Prefect flow."""

    retries: int = Field(
        default=1, ge=0, description="tries again of a stage that failed (bad configuration is never tried again)"
    )
    retry_delay_seconds: float = Field(default=2.0, ge=0, description="wait before a retry")


class GenerateSection(GenerateConfig):
    """The image that a run makes at its end."""

    prompt: str = Field(default="A photograph of a coffee cup", description="what it should show")

    @field_validator("prompt")
    @classmethod
    def _words_alone(cls, value: str) -> str:
        if "<image>" in value:
            raise ValueError("a run's own prompt has no images; say it in words, and use `mnf generate --image` afterwards")
        return value


class ReportConfig(Section):
    """What the run's report shows."""

    packs: int = Field(default=8, ge=0, description="packs whose images and text are shown")
    examples: int = Field(default=4, ge=0, description="examples a rule")


class Recipe(Section):
    """A whole run, of `input` ("sample" or WARC files) or of `sources` (files of any kind); outputs go under `root`."""

    name: str = Field(min_length=1)
    root: Path = Field(description="folder of the run's outputs")
    input: list[str] | None = Field(default=None, min_length=1, description='WARC files, or "sample": short for `sources`')
    sources: list[AnySource] | None = Field(default=None, min_length=1, description="entries: kind, files, its settings")
    spark: SparkConfig = SparkConfig()
    flow: FlowConfig = FlowConfig()
    ingest: IngestConfig = IngestConfig()
    filter: FilterConfig = FilterConfig()
    dedup: DedupConfig = DedupConfig()
    caption: CaptionConfig = CaptionConfig()
    vision_tokenizer: VisionTokenizerConfig = VisionTokenizerConfig()
    text_tokenizer: TextTokenizerConfig = TextTokenizerConfig()
    tokenize: TokenizeConfig = TokenizeConfig()
    pack: PackConfig = PackConfig()
    train: TrainConfig = TrainConfig()
    generate: GenerateSection = GenerateSection()
    report: ReportConfig = ReportConfig()

    @field_validator("input", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_way_in(self) -> Recipe:
        if (self.input is None) == (self.sources is None):
            both = "both `input` and `sources` are set" if self.input else "neither `input` nor `sources` is set"
            raise ValueError(f"{both}; set `sources`, or `input` where all is WARC")
        return self

    @model_validator(mode="after")
    def _fits(self) -> Recipe:
        if self.pack.max_length > self.train.model.max_length:
            raise ValueError(
                f"pack.max_length {self.pack.max_length} is more than train.model.max_length {self.train.model.max_length}: "
                "the model could not hold the packs"
            )
        model, level = self.train.model, self.generate.level
        scales = LEVEL_SCALES[level]
        if scales > model.max_scales:
            raise ValueError(
                f"generate.level {level} has {scales} scales, train.model.max_scales is {model.max_scales}: the model could "
                "not make the run's image"
            )
        if token_count(grids((64, 64), scales)) > model.max_length:
            raise ValueError(f"an image of generate.level {level} does not fit train.model.max_length {model.max_length}")
        return self

    def sections(self) -> dict[str, Section]:
        """The sections by name, as the stages take them."""
        return {name: value for name in type(self).model_fields if isinstance(value := getattr(self, name), Section)}

    def entries(self) -> list[SourceConfig]:
        """What `sources` says, or `input` in its place: one entry of kind warc (where SAMPLE may stand for a file)."""
        return self.sources or [WarcConfig(files=tuple(self.input or ()))]

    def check_inputs(self) -> None:
        """RecipeError where an input file is missing, naming it, and where the vision tokenizer cannot be used."""
        named = [name for entry in self.entries() for name in entry.files]
        missing = [name for name in named if not (name == SAMPLE and self.input) and not Path(name).is_file()]
        if missing:
            key = "input" if self.input else "sources"
            raise RecipeError("\n".join(f"input file not found: {name}; correct `{key}` in the recipe" for name in missing))
        wrong = missing_weights(self.vision_tokenizer)
        if wrong:
            raise RecipeError("\n".join(wrong))
        config, given = self.vision_tokenizer, self.vision_tokenizer.path
        try:
            config = config if given is None else read_tokenizer_config(given)
        except (OSError, ValueError) as error:
            raise RecipeError(f"vision_tokenizer.path: {error}") from None
        try:
            check_levels(config, [self.tokenize.level, *self.tokenize.lower_levels])
        except ValueError as error:
            raise RecipeError(f"tokenize: {error}") from None
        if self.generate.level not in config.levels:
            raise RecipeError(
                f"generate: the vision tokenizer is made for levels {list(config.levels)}, not for {self.generate.level}"
            )


def _override(tree: dict[str, Any], assignment: str) -> tuple[str, ...]:
    """Applies one `--set`; returns the path of the key."""
    dotted, sign, value = assignment.partition("=")
    keys = dotted.strip().split(".")
    if not sign or not all(keys):
        raise RecipeError(f"--set {assignment}: write it as section.key=value")
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise RecipeError(f"--set {assignment}: '{key}' is a value, not a section")
    try:
        tree[keys[-1]] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {assignment}: the value is not YAML: {error}") from None
    return tuple(keys)


def load_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """Reads and validates a run's recipe. Raises RecipeError, one line a mistake with its line in the file."""
    return load(Recipe, path, overrides)


def load(kind: type[R], path: Path, overrides: list[str] | None = None) -> R:
    """Reads and validates a recipe of any kind. Raises RecipeError as `load_recipe` does."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        tree = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise RecipeError(f"{path}:{mark.line + 1 if mark else 1}: not YAML: {error.problem}") from None
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}:1: a recipe is a mapping of sections")
    repeated = list(duplicate_keys(node, str(path)))
    if repeated:
        raise RecipeError("\n".join(repeated))
    lines: dict[tuple[str | int, ...], int | None] = dict(key_lines(node))
    for assignment in overrides or []:
        lines[_override(tree, assignment)] = None
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(explain(error, kind, lines, str(path))) from None
