"""What generation is asked for, and all of it checked before the model is loaded.

Settings, tokenizers, levels, the prompts' images and the room in a sequence are looked at in order of what they cost, so a
request that cannot be met ends within seconds. The cost: the prompts' images are encoded while the model is not there yet,
so they are held as codes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from nextflow_tokenize.documents.text_tokenizer import TextTokenizer
from nextflow_tokenize.schedule import Grid
from nextflow_tokenize.segments import image_slots
from nextflow_tokenize.vision.identity import identity

from megatron_nextflow.checkpoint.format import CheckpointState, read_manifest
from megatron_nextflow.config.generate import NO_PROMPT, GenerateConfig, GenerationError
from megatron_nextflow.generation.growing_document import Part
from megatron_nextflow.generation.prompt import Picture, Prompt, encode_parts, picture_grids, plan_parts, read_pictures
from megatron_nextflow.generation.requirements import (
    image_grids_of,
    named_path,
    open_text_tokenizer,
    require_folder,
    require_images,
    require_level,
    require_png,
    require_room,
    require_same,
    step_folder,
)
from megatron_nextflow.generation.results import is_png, numbered

if TYPE_CHECKING:
    from nextflow_tokenize.vision.model import VisionTokenizer


@dataclass(frozen=True)
class Request:
    """What to generate. Raises GenerationError for what does not go together.

    `checkpoint`: a step folder, or a training's folder for its latest. `prompts`: see `prompt.parse_prompts`. `out`: the
    PNG, or with `interleaved` the new folder, to write (numbered where there are several); None continues the text. `n`
    results a prompt, the i-th with seed `settings.seed` + i − 1; `batch` of them go through the model beside each other
    (with `interleaved` one). `preview`: folder or PNG for images after each scale. Tokenizers: folder of the vision
    tokenizer, tokenizer.json (or its folder); None takes those that the training's train.json names. `device` and `threads`
    as in TrainConfig.
    """

    checkpoint: Path
    prompts: tuple[Prompt, ...]
    out: Path | None = None
    settings: GenerateConfig = field(default_factory=GenerateConfig)
    interleaved: bool = False
    n: int = 1
    batch: int = 4
    preview: Path | None = None
    text_tokenizer: Path | None = None
    vision_tokenizer: Path | None = None
    device: str = "auto"
    threads: int = 1

    def __post_init__(self) -> None:
        if not self.prompts or self.n < 1 or self.batch < 1:
            raise GenerationError("give at least one prompt, one result of each (n), and one at a time (batch)")
        if self.interleaved and self.out is None:
            raise GenerationError("text with images is written to a folder: say which (out)")
        if self.out is not None and not self.out.name:
            raise GenerationError(f"{self.out} is there: name what is to be written (out)")
        if self.preview is not None and not self.draws:
            raise GenerationError("previews show an image after each scale: ask for one (out), not interleaved with text")
        if not self.draws and not all(prompt.parts for prompt in self.prompts):
            raise GenerationError(NO_PROMPT)

    @property
    def draws(self) -> bool:
        """Whether each result is one image."""
        return self.out is not None and not self.interleaved

    @property
    def places(self) -> list[Path]:
        """Where each result goes that is a file or folder."""
        count = self.n * len(self.prompts)
        return [] if self.out is None else [numbered(self.out, number, count) for number in range(1, count + 1)]


@dataclass(frozen=True)
class Job:
    """One result to be: of prompt number `prompt`, drawn with `seed`; its image or images have `schedule`."""

    prompt: int
    seed: int
    schedule: tuple[Grid, ...]


@dataclass(frozen=True)
class GenerationPlan:
    """A request that can be met: the checkpoint's folder and state, its tokenizers, the prompts as parts of documents."""

    request: Request
    step: Path
    state: CheckpointState
    text: TextTokenizer
    vision: VisionTokenizer | None
    pictures: dict[Path, Picture]
    prompts: list[list[Part]]
    jobs: list[Job]

    def batches(self) -> Iterator[list[Job]]:
        """Neighbouring jobs of one schedule, as many as go beside each other."""
        together: list[Job] = []
        for job in self.jobs:
            if together and (job.schedule != together[0].schedule or len(together) == self.request.batch):
                yield together
                together = []
            together.append(job)
        yield together

    def metadata(self, job: Job) -> dict[str, str]:
        """What the files of a result say of themselves."""
        prompt, settings = self.request.prompts[job.prompt], self.request.settings
        hashes = [self.pictures[path].sha256 for path in prompt.images]
        return {
            "checkpoint": hashlib.sha256((self.step / "manifest.json").read_bytes()).hexdigest(),
            "step": str(self.state.step),
            "text_tokenizer": self.state.text_tokenizer,
            "vision_tokenizer": self.state.vision_tokenizer,
            "prompt": prompt.text,
            "settings": settings.model_copy(update={"seed": job.seed}).model_dump_json(),
            **({"prompt_images": json.dumps(hashes)} if hashes else {}),
        }


def plan(request: Request) -> GenerationPlan:
    """Checks everything that can be checked without the model, and sets up the device where a prompt's images need it.

    Raises GenerationError, CheckpointError, ValueError or FileNotFoundError with what is wrong.
    """
    settings = request.settings
    step = step_folder(request.checkpoint)
    _require_places(request)
    pictures = read_pictures(request.prompts)
    state = read_manifest(step).state
    path = request.text_tokenizer or named_path(step, "text_tokenizer")
    text = open_text_tokenizer(path, settings.end_of_text, state)
    prompt_level = settings.prompt_level or settings.level
    folder = None
    if pictures or request.out is not None:
        require_images(state)
        folder = request.vision_tokenizer or named_path(step, "vision_tokenizer")
        require_same("vision tokenizer", folder, identity(folder), state.vision_tokenizer)
        for level, asked in ((prompt_level, pictures), (settings.level, request.out)):
            if asked:
                require_level(level, folder, state)
    prompts = [plan_parts(prompt, text, pictures, prompt_level) for prompt in request.prompts]
    jobs = []
    for number, (prompt, parts) in enumerate(zip(request.prompts, prompts, strict=True)):
        schedule = () if request.out is None else _schedule(prompt, pictures, settings)
        image = image_slots(schedule)
        ask = image if request.draws else settings.max_tokens
        if request.interleaved:
            ask = 1 + (image if settings.max_images else 0)
        slots = sum(part.slots for part in parts)
        if not (slots or request.draws):
            raise GenerationError(NO_PROMPT)
        require_room(slots + ask, state)
        jobs += [Job(number, settings.seed + i, schedule) for i in range(request.n)]
    vision = None
    if folder is not None:
        from nextflow_tokenize.vision.model import VisionTokenizer

        from megatron_nextflow.runtime.device import setup

        vision = VisionTokenizer.load(folder, setup(request.device, request.threads))
        prompts = [encode_parts(p, parts, pictures, vision) for p, parts in zip(request.prompts, prompts, strict=True)]
    return GenerationPlan(request, step, state, text, vision, pictures, prompts, jobs)


def _require_places(request: Request) -> None:
    for place in request.places:
        if request.draws:
            require_png(place)
        else:
            require_folder(place, new=True)
    if request.preview is None:
        return
    if request.preview in request.places:
        raise GenerationError(f"{request.preview} is where the image itself goes: name another place for its previews")
    if is_png(request.preview):
        require_png(request.preview)
    else:
        require_folder(request.preview, new=False)


def _schedule(prompt: Prompt, pictures: dict[Path, Picture], settings: GenerateConfig) -> tuple[Grid, ...]:
    if settings.aspect is None and prompt.images:
        return picture_grids(pictures[prompt.images[-1]], settings.level)
    return image_grids_of(settings.level, settings.aspect or 1.0)
