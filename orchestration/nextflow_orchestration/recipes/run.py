"""The recipe of a run: one YAML file, one typed tree, validated before any work begins.

Every setting of a run is here or has a default here; the resolved tree is stored with the run's output, so a run can be
repeated from its results. Command-line overrides (`--set train.steps=10`) go through the same validation. The cost of one
tree: adding a setting means naming it in a section class, which is also where it is documented.

The whole file is validated, whatever runs. What is found in parts that do not run (`parts`) is let pass, unless it is a key
that there is not; a section in which something was let pass is left out of the resolved tree, as if it were not there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from nextflow_data.captioners.config import CaptionConfig
from nextflow_data.common.section import Section
from nextflow_data.config import DedupConfig, IngestConfig
from nextflow_data.rules.config import FilterConfig
from nextflow_data.sources.base import SourceConfig
from nextflow_data.sources.entry import AnySource
from nextflow_data.sources.warc import WarcConfig
from nextflow_pipelines.spark.config import SparkConfig
from nextflow_tokenize.config.pack import PackConfig
from nextflow_tokenize.config.tokenize import TextTokenizerConfig, TokenizeConfig
from nextflow_tokenize.config.vision import VisionTokenizerConfig, missing_weights
from nextflow_tokenize.schedule import LEVEL_SCALES, grids
from nextflow_tokenize.segments import image_slots
from nextflow_tokenize.vision.usable import check_levels, read_tokenizer_config
from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from megatron_nextflow.config.generate import GenerateConfig
from megatron_nextflow.config.train import TrainConfig
from nextflow_orchestration.recipes import cost
from nextflow_orchestration.recipes.errors import Misfit, RecipeError, explain
from nextflow_orchestration.recipes.kinds import require_kind
from nextflow_orchestration.recipes.parts import Parts, parts
from nextflow_orchestration.recipes.written import Written, read

R = TypeVar("R", bound=Section)

SAMPLE = "sample"
"""The input that `nextflow_orchestration.sample.warc` makes from PyPI packages."""


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


class Recipe(Section):
    """A run, from source files to shards; with a `train` section, to a trained model and an image as well."""

    name: str = Field(min_length=1)
    """Shown in reports, in Prefect and in messages."""
    root: Path
    """Folder of the run's outputs."""
    input: list[str] | None = Field(default=None, min_length=1)
    """WARC files, or "sample": pages and photographs that ship in PyPI packages. Short for `sources`."""
    sources: list[AnySource] | None = Field(default=None, min_length=1)
    """Entries of one kind of files each: kind, files, and the kind's own settings."""
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
    """Of `cost`, what is left out is that of `train.model`; without `train`, of Qwen2.5-VL-7B."""
    train: TrainConfig | None = None
    """Left out or null: the run ends with its shards."""
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
    def _fits(self, info: ValidationInfo) -> Recipe:
        """Fills in what follows from another section, and refuses what does not go together among the parts that run."""
        idle = (info.context or {}).get("idle", frozenset())
        if "end_of_text" not in self.generate.model_fields_set:
            self._resolve("generate", self.generate.model_copy(update={"end_of_text": self.text_tokenizer.end_of_text}))
        if self.train is None:
            self._cost_alone()
            return self
        model = self.train.model
        joint = cost.vocabulary(model, self.text_tokenizer, self.vision_tokenizer)
        wrong = cost.disagreements(model, joint, self.pack.cost)
        if wrong and "pack" not in idle:
            advice = "leave these out of pack.cost, which then follows the model, or train that model"
            raise Misfit(f"pack.cost is not of the model that `train` trains: {'; '.join(wrong)}; {advice}", "pack", "cost")
        self._resolve("pack", self.pack.model_copy(update={"cost": cost.of_model(model, joint, self.pack.cost)}))
        if "train" not in idle and self.pack.max_length > model.max_length:
            raise Misfit(
                f"pack.max_length {self.pack.max_length} is more than train.model.max_length {model.max_length}: "
                "the model could not hold the packs", "pack", "max_length"
            )  # fmt: skip
        if "generate" not in idle:
            self._can_make_the_image(self.train)
        return self

    def _cost_alone(self) -> None:
        try:
            self.pack.cost.check()
        except ValueError as error:
            raise Misfit(f"pack.cost: {error}", "pack", "cost") from None

    def _resolve(self, name: str, section: Section) -> None:
        object.__setattr__(self, name, section)  # still being made: what is frozen is the finished recipe

    def _can_make_the_image(self, train: TrainConfig) -> None:
        model, level = train.model, self.generate.level
        scales = LEVEL_SCALES[level]
        if scales > model.max_scales:
            raise Misfit(
                f"generate.level {level} has {scales} scales, train.model.max_scales is {model.max_scales}: the model could "
                "not make the run's image", "generate", "level"
            )  # fmt: skip
        if image_slots(grids((64, 64), scales)) > model.max_length:
            said = f"an image of generate.level {level} does not fit train.model.max_length {model.max_length}"
            raise Misfit(said, "generate", "level")

    def sections(self) -> dict[str, Section]:
        """The sections by name, as the stages take them."""
        return {name: value for name in type(self).model_fields if isinstance(value := getattr(self, name), Section)}

    def entries(self) -> list[SourceConfig]:
        """What `sources` says, or `input` in its place: one entry of kind warc (where SAMPLE may stand for a file)."""
        return self.sources or [WarcConfig(files=tuple(self.input or ()))]

    def check_inputs(self, which: Parts | None = None) -> None:
        """RecipeError where an input file is missing, naming it, and where the vision tokenizer cannot be used for the parts
        that are needed (None: all that the recipe has)."""
        needed = (which or parts(None, None, self.train is not None)).needed
        named = [name for entry in self.entries() for name in entry.files]
        missing = [name for name in named if not (name == SAMPLE and self.input) and not Path(name).is_file()]
        if missing:
            key = "input" if self.input else "sources"
            raise RecipeError("\n".join(f"input file not found: {name}; correct `{key}` in the recipe" for name in missing))
        if "vision_tokenizer" not in needed:
            return
        wrong = missing_weights(self.vision_tokenizer)
        if wrong:
            raise RecipeError("\n".join(wrong))
        config, given = self.vision_tokenizer, self.vision_tokenizer.path
        try:
            config = config if given is None else read_tokenizer_config(given)
        except (OSError, ValueError) as error:
            raise RecipeError(f"vision_tokenizer.path: {error}") from None
        try:
            check_levels(config, [self.tokenize.level, *self.tokenize.lower_levels] if "tokenize" in needed else ())
        except ValueError as error:
            raise RecipeError(f"tokenize: {error}") from None
        if "generate" in needed and self.generate.level not in config.levels:
            raise RecipeError(
                f"generate: the vision tokenizer is made for levels {list(config.levels)}, not for {self.generate.level}"
            )


def load_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """Reads and validates a run's recipe. Raises RecipeError, one line a mistake with its line in the file."""
    return load_parts(read(path, overrides))[0]


def load_run(
    path: Path, overrides: list[str] | None = None, first: str | None = None, last: str | None = None
) -> tuple[Recipe, Parts]:
    """A run's recipe, and its parts from `first` to `last`; raises RecipeError as `load_recipe` does."""
    return load_parts(read(path, overrides), first, last)


def load_parts(written: Written, first: str | None = None, last: str | None = None) -> tuple[Recipe, Parts]:
    """`load_run` of what was read already."""
    require_kind(written, "run")
    trains = written.tree.get("train") is not None
    which = parts(first, last, trains)
    findings = _findings(written.tree, which)
    if isinstance(findings, Recipe):
        return findings, which
    held = [finding for finding in findings if _held(finding, which)]
    if held:
        raise RecipeError(explain(held, Recipe, written.places, written.source))
    wrong = {finding["loc"][0] for finding in findings}
    tree = {key: value for key, value in written.tree.items() if key not in wrong}
    if "train" in wrong:  # what pack.cost follows
        tree["train"] = {"model": written.tree["train"].get("model", {})} if "pack" in which.needed else {}
    recipe = _findings(tree, which)
    if not isinstance(recipe, Recipe):
        raise RecipeError(explain(recipe, Recipe, written.places, written.source))
    return recipe.model_copy(update={"train": None}) if "train" in wrong else recipe, which


def _findings(tree: dict[str, Any], which: Parts) -> Recipe | list[Any]:
    """The recipe, or what pydantic has against it."""
    try:
        return Recipe.model_validate(tree, context={"idle": which.idle})
    except ValidationError as error:
        return list(error.errors())


def _held(finding: Any, which: Parts) -> bool:
    """Whether a finding is held against a run of these parts."""
    loc = finding["loc"]
    if not loc or loc[0] not in which.idle or finding["type"] in ("extra_forbidden", "model_type"):
        return True
    return loc[:2] == ("train", "model") and "pack" in which.needed


def load(kind: type[R], path: Path, overrides: list[str] | None = None) -> R:
    """Reads and validates a recipe of any other kind. Raises RecipeError as `load_recipe` does."""
    return validated(kind, read(path, overrides))


def validated(kind: type[R], written: Written) -> R:
    """`load` of what was read already."""
    try:
        return kind.model_validate(written.tree)
    except ValidationError as error:
        raise RecipeError(explain(error.errors(), kind, written.places, written.source)) from None
