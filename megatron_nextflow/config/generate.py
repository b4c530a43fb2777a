"""How images and text are sampled: the `generate` part of a recipe.

Everything is a number that a person may want to turn; what the paper leaves open is said field by field. Coarse scales
decide what an image shows and fine ones how sharp it is, so temperature, top-k and top-p may differ by scale. The cost: a
list is as long as the level has scales at most, so a list and a level belong together. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from nextflow_data.common.errors import RequestError
from nextflow_data.common.section import Section
from nextflow_tokenize.schedule import LEVEL_SCALES
from pydantic import BeforeValidator, Field, PlainSerializer, ValidationError, field_validator, model_validator

NO_PROMPT = "text needs a prompt, at least a word or an image: no slot predicts a document's first token"

N = TypeVar("N", int, float)


def _listed(value: Any) -> Any:
    """One number for all scales is a list of one; on a command line a list is written with commas."""
    if isinstance(value, str):
        return value.split(",")
    if isinstance(value, list | tuple) and not value:
        raise ValueError("a list by scale needs at least one number")
    return value if isinstance(value, list | tuple) else (value,)


def _short(values: tuple[Any, ...]) -> Any:
    return values[0] if len(values) == 1 else values


def _at(values: tuple[N, ...], scale: int) -> N:
    return values[min(scale, len(values)) - 1]


Level = Literal[128, 256, 512, 1024]
Temperature = Annotated[float, Field(gt=0)]
TopK = Annotated[int, Field(ge=0)]
TopP = Annotated[float, Field(gt=0, le=1)]
_BY_SCALE = (BeforeValidator(_listed), PlainSerializer(_short))


class GenerationError(RequestError):
    """A request that cannot be met; the message says why and what to do."""


class Sampling(NamedTuple):
    """How one draw is made: `top_k` 0 and `top_p` 1 leave nothing out."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


class GenerateConfig(Section):
    """How `mnf generate` samples. The paper publishes no sampling settings; VAR-RL's (guidance 5, top-k 2, top-p 0.9) follow
    VAR. The defaults are ours, wider, for small models that are far from converged.

    `temperature`, `top_k` and `top_p` are one number for all scales, or a list from the first scale on, whose last number
    holds for the rest.
    """

    guidance: float = Field(default=2.0, ge=0)
    """Strength of classifier-free guidance of images; 0 switches it off. What is guided against is the image after no prompt
    at all, texts and images left out alike (our choice: training has seen it, as an image that opens a document)."""
    guidance_schedule: Literal["rising", "constant"] = "rising"
    """rising: linear over the scales from 0 to `guidance` at the last (VAR); constant: `guidance` at each."""
    temperature: Annotated[tuple[Temperature, ...], *_BY_SCALE] = (1.0,)
    """Divides the logits before one is drawn: below 1 the likelier are likelier still, above 1 less so."""
    top_k: Annotated[tuple[TopK, ...], *_BY_SCALE] = (0,)
    """Most probable codes or words that are drawn from; 0 means all."""
    top_p: Annotated[tuple[TopP, ...], *_BY_SCALE] = (0.95,)
    """Smallest set of codes or words that holds this probability."""
    text_temperature: Temperature | None = None
    """For words; None takes the first scale's `temperature`. The next two likewise."""
    text_top_k: TopK | None = None
    """For words; None takes the first scale's `top_k`."""
    text_top_p: TopP | None = None
    """For words; None takes the first scale's `top_p`."""
    level: Level = 128
    """Resolution level of the image, which fixes the number of scales."""
    prompt_level: Level | None = None
    """Level at which images in prompts are encoded, enlarged if need be; None takes `level`."""
    aspect: float | None = Field(default=None, gt=0)
    """Height over width of the image, or the text "16:9" (width to height); the nearest of the schedule's 41 ratios is
    taken. None: the ratio of the prompt's last image, or square."""
    max_tokens: int = Field(default=64, ge=1)
    """Text tokens of a continuation, or of a text with images."""
    end_of_text: str = "<|endoftext|>"
    """Token at which a text ends: the text tokenizer's own; a model of dialogues may end its responses with another."""
    max_images: int = Field(default=4, ge=0)
    """Images of a text with images; where no room is left for one, none is begun."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """Of weights and activations; auto: bf16 on a GPU, float32 on a CPU."""
    seed: int = Field(default=0, ge=0)
    """Of a prompt's first result; the i-th has `seed` + i − 1, so it can be made again alone."""

    @classmethod
    def of(cls, values: Mapping[str, object]) -> GenerateConfig:
        """`model_validate`, raising GenerationError in one line that names the setting."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            message = first["msg"].removeprefix("Value error, ")
            raise GenerationError(f"{first['loc'][0]}: {message}" if first["loc"] else message) from None

    @field_validator("aspect", mode="before")
    @classmethod
    def _width_to_height(cls, value: Any) -> Any:
        if isinstance(value, int | float) and not 0.05 <= value <= 20:
            raise ValueError(f"{value} is no height over width, about 0.25 to 4; 16:9 needs quotes in YAML")
        if not isinstance(value, str) or ":" not in value:
            return value
        width, height = (part.strip() for part in value.split(":", 1))
        if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
            raise ValueError(f"{value!r} is not a ratio: write width:height, as 16:9, or height over width as a number")
        return int(height) / int(width)

    @model_validator(mode="after")
    def _within_scales(self) -> GenerateConfig:
        scales = LEVEL_SCALES[self.level]
        for name in ("temperature", "top_k", "top_p"):
            if (count := len(getattr(self, name))) > scales:
                raise ValueError(f"{name} lists {count} numbers, an image of level {self.level} has {scales} scales")
        return self

    def sampling(self, scale: int) -> Sampling:
        """How the codes of `scale`, counted from 1, are drawn."""
        return Sampling(_at(self.temperature, scale), _at(self.top_k, scale), _at(self.top_p, scale))

    @property
    def text_sampling(self) -> Sampling:
        """How words are drawn."""
        first = self.sampling(1)
        return Sampling(
            first.temperature if self.text_temperature is None else self.text_temperature,
            first.top_k if self.text_top_k is None else self.text_top_k,
            first.top_p if self.text_top_p is None else self.text_top_p,
        )

    def strength(self, scale: int, scales: int) -> float:
        """Guidance at `scale`, counted from 1, of `scales`; a rising one is 0 where there is a single scale."""
        return self.guidance if self.guidance_schedule == "constant" else self.guidance * (scale - 1) / max(scales - 1, 1)
