"""Trains a tokenizer by its recipe, stage by stage, alone or under torchrun:

    torchrun --nproc-per-node 8 -m nextflow_tokenize.vision.training.whole_training recipes/tokenizer_nextflow.yaml

Each stage has a folder under the recipe's `output`: `tokenizer/` when it is done, `work/` with checkpoints until then, and
`tensorboard/`. The same command goes on where it stopped; a finished stage is kept. `tokenizer` beside them leads to the
last stage's. A stage whose settings have changed since it was trained is refused, never trained anew in silence.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import pyarrow.parquet as pq
import yaml
from nextflow_data.common.signal_handlers import Handlers, default
from nextflow_data.common.whole_files import replace_file
from pydantic import ValidationError

from nextflow_tokenize.config.vision import VisionTokenizerConfig
from nextflow_tokenize.config.vision_recipe import TokenizerRecipe
from nextflow_tokenize.vision import processes
from nextflow_tokenize.vision.identity import identity, older_training_identity, training_identity
from nextflow_tokenize.vision.images.dataset import EncodedImage
from nextflow_tokenize.vision.images.image_index import encoded_images, index, unusable
from nextflow_tokenize.vision.training.checkpoints import OPERATIONAL, OtherTraining
from nextflow_tokenize.vision.training.training_stage import Progress, TrainReport, train_one_stage

INDEX = "images.parquet"
TOKENIZER = "tokenizer"
STAGE = "stage.json"

Say = Callable[[str], None]


@dataclass(frozen=True)
class StageOutcome:
    """A finished stage: its name, the folder of its tokenizer, whether it was found finished, and its report if not."""

    name: str
    tokenizer: Path
    kept: bool
    report: TrainReport | None


def train_by_recipe(
    recipe: TokenizerRecipe,
    progress: Callable[[str], Progress] | None = None,
    say: Say = lambda text: None,
    finished: Callable[[StageOutcome], None] = lambda outcome: None,
    device: str = "auto",
) -> list[StageOutcome]:
    """All stages of a recipe, in this process or the several that torchrun started.

    `progress` gives a stage's progress callback by its name; `say` is told what is done, `finished` each stage at its end;
    all three are called in the first process alone. Raises FileNotFoundError for images that are not there, OtherTraining
    for a stage trained with other settings, ValueError, NoImages and KeyboardInterrupt as `train` does.
    """
    recipe.check_inputs()
    where = processes.start(device)
    first = processes.rank() == 0
    listing = recipe.output / INDEX
    if first:
        recipe.output.mkdir(parents=True, exist_ok=True)
        say("reading images")
        index(recipe.images, listing, lambda done: say(f"reading images: {done}") if done % 1000 == 0 else None)
    processes.barrier()
    # The others read what the first one wrote: a file that comes or changes meanwhile must not give them another list.
    table = pq.read_table(listing)
    images, bad = encoded_images(table), unusable(table)
    if first:
        reasons = f", {len(bad)} cannot be used ({', '.join(sorted(set(bad.values()))[:2])})" if bad else ""
        say(f"{len(images)} distinct images{reasons}: {listing}")
    outcomes: list[StageOutcome] = []
    init = recipe.init
    with _Asked() as asked:
        for number, (entry, config) in enumerate(zip(recipe.stages, recipe.resolved(), strict=True), start=1):
            folder = recipe.output / f"{number}-{entry.name}"
            callback = progress(entry.name) if progress is not None and first else None
            outcome = _stage(entry.name, folder, images, config, init, callback, where, asked)
            outcomes.append(outcome)
            if first:
                finished(outcome)
            init = outcome.tokenizer
    if first:
        link = recipe.output / f".{TOKENIZER}.new"
        link.unlink(missing_ok=True)
        link.symlink_to(outcomes[-1].tokenizer.relative_to(recipe.output))
        link.replace(recipe.output / TOKENIZER)
    processes.barrier()
    return outcomes


def _stage(
    name: str,
    folder: Path,
    images: Sequence[EncodedImage],
    config: VisionTokenizerConfig,
    init: Path | None,
    progress: Progress | None,
    device: Any,
    stop: Callable[[], bool],
) -> StageOutcome:
    tokenizer = folder / TOKENIZER
    belongs = {
        "settings": training_identity(config, OPERATIONAL),
        "init": None if init is None else identity(init),
        "images": hashlib.sha256("".join(sorted(image.sha256 for image in images)).encode()).hexdigest(),
    }
    older = belongs | {"settings": older_training_identity(config, OPERATIONAL)}
    kept = tokenizer.is_dir()
    if kept and json.loads((folder / STAGE).read_text(encoding="utf-8")) not in (belongs, older):
        raise OtherTraining(
            f"{folder} holds a stage trained with other settings or images: give the recipe another `output`, "
            "or remove the folder to train it anew"
        )
    if kept:
        return StageOutcome(name, tokenizer, True, None)
    if processes.rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / STAGE, json.dumps(belongs, indent=1, sort_keys=True) + "\n")
    report = train_one_stage(
        images, config, tokenizer, progress,
        work=folder / "work", init=init, log_dir=folder / "tensorboard", device=device, stop=stop,
    )  # fmt: skip
    return StageOutcome(name, tokenizer, False, report)


class _Asked(Handlers):
    """Whether SIGTERM or SIGINT has come; a second one ends the process, as if nobody handled it."""

    def __init__(self) -> None:
        super().__init__((signal.SIGINT, signal.SIGTERM))
        self._received = False

    def __call__(self) -> bool:
        return self._received

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Remembers the first; the second is sent again with nobody to take it."""
        if self._received:
            default(number)
            os.kill(os.getpid(), number)
        self._received = True


def main(arguments: Sequence[str] | None = None) -> int:
    """The module as a program; prints a JSON line a stage from the first process. 2: the recipe is wrong, 130: stopped."""
    parser = argparse.ArgumentParser(
        prog="nextflow_tokenize.vision.training.whole_training", description="Train a vision tokenizer by a recipe."
    )
    parser.add_argument("recipe", type=Path, help="recipe (YAML or JSON)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    given = parser.parse_args(arguments)
    first = os.environ.get("RANK", "0") == "0"

    def show(stage: str) -> Progress:
        def update(done: int, total: int, metrics: dict[str, float]) -> None:
            print(f"{stage}: step {done} of {total}, {metrics['psnr']:.1f} dB, {100 * metrics['usage']:.0f} % of codes",
                  file=sys.stderr, flush=True)  # fmt: skip

        return update

    try:
        recipe = TokenizerRecipe.model_validate(yaml.safe_load(given.recipe.read_text(encoding="utf-8")))
        train_by_recipe(recipe, show, lambda text: print(text, file=sys.stderr, flush=True), _print, given.device)
    except KeyboardInterrupt:
        return 130
    except (ValidationError, ValueError, OSError, RuntimeError, FloatingPointError, yaml.YAMLError) as error:
        # A mistake that all see is said once; one that a single process met is said by it.
        where = "" if first else f"process {os.environ['RANK']}: "
        if first or not isinstance(error, ValidationError | FileNotFoundError | OtherTraining):
            print(f"{where}{error}", file=sys.stderr, flush=True)
        return 2
    finally:
        processes.stop()
    return 0


def _print(outcome: StageOutcome) -> None:
    line = {"stage": outcome.name, "tokenizer": str(outcome.tokenizer), "kept": outcome.kept}
    print(json.dumps(line | (asdict(outcome.report) if outcome.report else {})), flush=True)


if __name__ == "__main__":
    sys.exit(main())
