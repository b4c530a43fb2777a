"""A check: one function that tries one thing and says what it found, registered by a decorator.

    @check("disk", "locks")
    def locks(case: Case) -> Diagnosis: ...

`examine` runs each in a process of its own, so that a check may import what it likes, hang, or crash; other packages add
theirs as entry points of the group `nextflow.doctor`. Whatever is not needed on this machine says so (`unneeded`) and is no
fault.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from nextflow_data.common.sockets import Socket
from nextflow_data.storage.config import StorageConfig
from nextflow_pipelines.spark.config import SparkConfig
from nextflow_tokenize.config.vision_recipe import TokenizerRecipe

from megatron_nextflow.config.train import TrainConfig
from nextflow_orchestration.recipes.run import Recipe
from nextflow_orchestration.recipes.training import TrainingRecipe, storage_of

AREAS = ("python", "packages", "java", "spark", "disk", "machine", "network", "prefect", "s3", "gpu", "recipe")
"""In the order in which they are shown; others come after."""


class State(StrEnum):
    """What came of a check."""

    OK = "ok"
    UNNEEDED = "not needed here"
    BAD = "does not work"


@dataclass(frozen=True)
class Diagnosis:
    """What a check found, in one line, and what to do about it."""

    state: State
    found: str
    advice: str = ""


def ok(found: str, advice: str = "") -> Diagnosis:
    """It works."""
    return Diagnosis(State.OK, found, advice)


def unneeded(found: str, advice: str = "") -> Diagnosis:
    """It is not there, and nothing that was asked for needs it."""
    return Diagnosis(State.UNNEEDED, found, advice)


def bad(found: str, advice: str) -> Diagnosis:
    """It does not work."""
    return Diagnosis(State.BAD, found, advice)


@dataclass(frozen=True)
class Case:
    """What the machine is examined for: a run into `root`, perhaps a recipe's, perhaps on an S3 address.

    `root` is the run's folder on this machine, also where what it commits goes to a store.
    """

    root: Path
    s3: str | None = None
    recipe: Recipe | TrainingRecipe | TokenizerRecipe | None = None

    @property
    def storage(self) -> StorageConfig:
        """How the recipe reaches stores, or the default way."""
        return storage_of(self.recipe) if isinstance(self.recipe, Recipe | TrainingRecipe) else StorageConfig()

    @property
    def folder(self) -> Path:
        """`root`, or where it is not there yet the nearest folder above it that is."""
        absolute = self.root.absolute()
        return next(path for path in (absolute, *absolute.parents) if path.is_dir())

    @property
    def train(self) -> TrainConfig | None:
        """The recipe's training, if it has one."""
        return None if self.recipe is None or isinstance(self.recipe, TokenizerRecipe) else self.recipe.train

    @property
    def spark(self) -> SparkConfig:
        """The recipe's Spark, or the default one."""
        return self.recipe.spark if isinstance(self.recipe, Recipe) else SparkConfig()


def always(case: Case) -> bool:
    """For checks that every case has."""
    return True


@dataclass(frozen=True)
class Check:
    """A check by name. `seconds`: after which it is ended and counts as bad. `needed`: whether a run on the CPU needs it, so
    that `mnf doctor` ends with 1 where it does not work. `when`: the cases in which it is made at all."""

    area: str
    name: str
    look: Callable[[Case], Diagnosis]
    seconds: float = 20.0
    needed: Callable[[Case], bool] = always
    when: Callable[[Case], bool] = always


CHECKS: Socket[Check] = Socket("check", "nextflow_orchestration.doctor.checks", "nextflow.doctor")


def check(
    area: str,
    name: str,
    *,
    seconds: float = 20.0,
    needed: Callable[[Case], bool] = always,
    when: Callable[[Case], bool] = always,
) -> Callable[[Callable[[Case], Diagnosis]], Callable[[Case], Diagnosis]]:
    """Decorator: registers a function as the check of that name. See `Check` for the rest."""

    def keep(look: Callable[[Case], Diagnosis]) -> Callable[[Case], Diagnosis]:
        CHECKS.register(f"{area}.{name}")(Check(area, name, look, seconds, needed, when))
        return look

    return keep


def never(case: Case) -> bool:
    """For `needed` of checks that a run on the CPU does without."""
    return False


def checks_of(case: Case) -> list[Check]:
    """All checks that the case asks for, area by area."""
    found = [CHECKS.get(name) for name in CHECKS.names()]
    chosen = [one for one in found if one.when(case)]
    return sorted(chosen, key=lambda one: AREAS.index(one.area) if one.area in AREAS else len(AREAS))
