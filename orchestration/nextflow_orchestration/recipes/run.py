"""The recipe of a run: one YAML file, one typed tree, validated before any work begins.

Every setting of a run is here or has a default here; the resolved tree is stored with the run's output, so a run can be
repeated from its results. Command-line overrides (`--set train.steps=10`) go through the same validation. The cost of one
tree: adding a setting means naming it in a section class, which is also where it is documented.

The whole file is validated, whatever runs. What is found in parts that do not run (`parts`) is let pass, unless it is a key
that there is not; a section in which something was let pass is left out of the resolved tree, as if it were not there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from nextflow_data.captioners.config import CaptionConfig
from nextflow_data.common.section import Section, operational
from nextflow_data.config import DedupConfig, IngestConfig
from nextflow_data.rules.config import FilterConfig
from nextflow_data.sources.base import SourceConfig
from nextflow_data.sources.entry import AnySource
from nextflow_data.sources.warc import WarcConfig
from nextflow_data.storage.config import StorageConfig
from nextflow_data.storage.store_path import AnyPath, StorePath
from nextflow_pipelines.spark.config import SparkConfig
from nextflow_tokenize.config.pack import PackConfig
from nextflow_tokenize.config.tokenize import TextTokenizerConfig, TokenizeConfig
from nextflow_tokenize.config.vision import VisionTokenizerConfig, missing_weights
from nextflow_tokenize.schedule import LEVEL_SCALES, grids
from nextflow_tokenize.segments import image_slots
from nextflow_tokenize.vision.usable import check_levels, read_tokenizer_config
from pydantic import Field, PrivateAttr, ValidationError, ValidationInfo, field_validator, model_validator

from megatron_nextflow.config.train import TrainConfig
from nextflow_orchestration.recipes import cost
from nextflow_orchestration.recipes.errors import Keys, Misfit, RecipeError, explain
from nextflow_orchestration.recipes.inputs import Places, input_problems, root_problem
from nextflow_orchestration.recipes.kinds import require_kind
from nextflow_orchestration.recipes.parts import Parts, parts
from nextflow_orchestration.recipes.places import Root, place, work_of
from nextflow_orchestration.recipes.sections import FlowConfig, GenerateSection, ReportConfig
from nextflow_orchestration.recipes.written import Written, read

R = TypeVar("R", bound=Section)

SAMPLE = "sample"
"""The input that `nextflow_orchestration.sample.warc` makes from PyPI packages."""


class Recipe(Section):
    """A run, from source files to shards; with a `train` section, to a trained model and an image as well."""

    name: str = Field(min_length=1)
    """Shown in reports, in Prefect and in messages."""
    root: Root
    """Folder of the run's outputs: of a disk, or an s3:// address. A relative one counts from the current directory."""
    work: Path | None = operational(None)
    """Folder of this machine for what runs and is not committed: Prefect's database beside it, trainings, metrics. Null: the
    root where that is on a disk, else a folder of runs/ that is named after the root's address."""
    storage: StorageConfig = StorageConfig()
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
    _at: Places = PrivateAttr(default_factory=Places)
    """For what is found out later than when the recipe is read."""

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
    def _reached(self) -> Recipe:
        """The root is reached by the recipe's own settings."""
        self._resolve("root", place(self.root, self.storage))
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

    def _resolve(self, name: str, value: Section | AnyPath) -> None:
        object.__setattr__(self, name, value)  # still being made: what is frozen is the finished recipe

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

    @property
    def working(self) -> Path:
        """The folder of this machine for what runs (`work`, or what stands for it)."""
        return work_of(self.root, self.work)

    def sections(self) -> dict[str, Section]:
        """The sections by name, as the stages take them."""
        return {name: value for name in type(self).model_fields if isinstance(value := getattr(self, name), Section)}

    def entries(self) -> list[SourceConfig]:
        """What `sources` says, or `input` in its place: one entry of kind warc (where SAMPLE may stand for a file)."""
        return self.sources or [WarcConfig(files=tuple(self.input or ()))]

    def _named(self) -> Iterator[tuple[Keys, str]]:
        """Where each input file is named, and its name; without the sample, which is made."""
        if self.input:
            yield from ((("input", n), name) for n, name in enumerate(self.input) if name != SAMPLE)
        for number, entry in enumerate(self.sources or ()):
            yield from ((("sources", number, "files", n), name) for n, name in enumerate(entry.files))

    def check_inputs(self, which: Parts | None = None) -> None:
        """RecipeError, with its line, where an input file is missing or a store cannot be used, and where the vision
        tokenizer cannot be used for the parts that are needed (None: all that the recipe has)."""
        needed = (which or parts(None, None, self.train is not None)).needed
        wrong = list(input_problems(self._named(), self.storage, self._at))
        if isinstance(self.root, StorePath) and (problem := root_problem(self.root)) is not None:
            wrong.append(f"{self._at(('root',))}{problem}")
        if wrong:
            raise RecipeError("\n".join(wrong))
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
    recipe = _let_pass(written, which)
    recipe._at = Places(written.places)
    return recipe, which


def _let_pass(written: Written, which: Parts) -> Recipe:
    """The recipe without what is wrong in parts that do not run."""
    findings = _findings(written.tree, which)
    if isinstance(findings, Recipe):
        return findings
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
    return recipe.model_copy(update={"train": None}) if "train" in wrong else recipe


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
