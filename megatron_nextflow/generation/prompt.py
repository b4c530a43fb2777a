"""A prompt: texts and images in order, from a command line to the parts of a document.

Images stand where `<image>` stands in the text. Each is resized to its own ratio's grid at one level, enlarged if need be,
and enters as its nearest codes; training's self-correction disturbs only what is to be predicted from. Between a text and an
image no spaces are kept, as documents of training have none there. The cost: a prompt cannot spell the word `<image>`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from nextflow_data.config import IngestConfig
from nextflow_data.images.measure import ImageRejected, open_rgb
from nextflow_tokenize.documents.text_tokenizer import TextTokenizer
from nextflow_tokenize.schedule import Grid, choose_grids, token_count
from PIL import Image

from megatron_nextflow.config.generate import GenerationError
from megatron_nextflow.generation.growing_document import ImagePart, Part, TextPart

if TYPE_CHECKING:
    from nextflow_tokenize.vision.model import VisionTokenizer

PLACEHOLDER = "<image>"


@dataclass(frozen=True)
class Prompt:
    """Texts and paths of images, in order; a text is never empty."""

    parts: tuple[str | Path, ...]

    @property
    def text(self) -> str:
        """The whole as text, `<image>` for each image."""
        return "".join(part if isinstance(part, str) else PLACEHOLDER for part in self.parts)

    @property
    def images(self) -> tuple[Path, ...]:
        """The images' files, in the order in which the prompt has them."""
        return tuple(part for part in self.parts if isinstance(part, Path))


@dataclass(frozen=True)
class Picture:
    """An image of a prompt: upright RGB pixels, and the sha256 of its file."""

    image: Image.Image
    sha256: str


def parse_prompts(texts: Sequence[str], images: Sequence[Path] = ()) -> tuple[Prompt, ...]:
    """Prompts from texts; `images` take the places of `<image>` in the order of the texts. Raises GenerationError."""
    for text in texts:
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise GenerationError(f"the prompt {text!r} is not in UTF-8: set the terminal, or the file it is from, to that")
    places = sum(text.count(PLACEHOLDER) for text in texts)
    if places != len(images):
        raise GenerationError(
            f"the prompts have {places} {PLACEHOLDER} for {len(images)} images: write {PLACEHOLDER} where each is to go"
        )
    rest = iter(images)
    prompts = []
    for text in texts:
        pieces = text.split(PLACEHOLDER)
        parts: list[str | Path] = []
        for number, piece in enumerate(pieces):
            if number:
                parts.append(next(rest))
            piece = piece.lstrip() if number else piece
            piece = piece.rstrip() if number < len(pieces) - 1 else piece
            parts += [piece] * bool(piece)
        prompts.append(Prompt(tuple(parts)))
    return tuple(prompts)


def read_pictures(prompts: Sequence[Prompt]) -> dict[Path, Picture]:
    """Every image of the prompts, opened with the limits of ingestion. Raises GenerationError, naming the file."""
    found, limits = {}, IngestConfig()
    for path in dict.fromkeys(path for prompt in prompts for path in prompt.images):
        try:
            with path.open("rb") as stream:
                content = stream.read(limits.max_image_bytes + 1)  # more is refused
            found[path] = Picture(open_rgb(content, limits), hashlib.sha256(content).hexdigest())
        except (OSError, ImageRejected) as error:
            raise GenerationError(f"the prompt's image {path} cannot be read: {error}") from None
    return found


def plan_parts(prompt: Prompt, text: TextTokenizer, pictures: Mapping[Path, Picture], level: int) -> list[Part]:
    """The prompt's parts as a document has them, codes still zeros: enough to know its slots."""
    parts: list[Part] = []
    for part in prompt.parts:
        if isinstance(part, str):
            parts.append(TextPart(tuple(text.encode(part))))
        else:
            schedule = picture_grids(pictures[part], level)
            parts.append(ImagePart(schedule, np.zeros(token_count(schedule), np.int64)))
    return parts


def picture_grids(picture: Picture, level: int) -> tuple[Grid, ...]:
    """The schedule of a prompt's image at `level`: that of the ratio nearest to its own, as training chooses it."""
    schedule = choose_grids(picture.image.height, picture.image.width, (level,), math.inf)
    assert schedule is not None
    return schedule


def encode_parts(
    prompt: Prompt, parts: Sequence[Part], pictures: Mapping[Path, Picture], tokenizer: VisionTokenizer
) -> list[Part]:
    """The parts that `plan_parts` gave, with the codes of `tokenizer`."""
    from nextflow_tokenize.vision.scores.sheets import pixels_for

    encoded: list[Part] = []
    for source, part in zip(prompt.parts, parts, strict=True):
        if isinstance(source, Path) and isinstance(part, ImagePart):
            pixels = pixels_for(tokenizer, pictures[source].image, part.grids)
            part = ImagePart(part.grids, tokenizer.encode(pixels, part.grids).target[0].cpu().numpy())
        encoded.append(part)
    return encoded
