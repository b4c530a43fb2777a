"""What is minimised: the `loss` part of a training recipe, from which a pack's weights are laid out and its terms added up.

A label's weight is decided by these settings alone (`sequence.pack_layout` applies them), and what is made of it by the
terms (`loss_terms`). Needs no torch.
"""

from __future__ import annotations

from typing import Any

from nextflow_data.common.section import Section, operational
from pydantic import Field, SerializeAsAny, ValidationError, field_validator

from megatron_nextflow.loss_terms.term import LossTerm, loss_terms

ALWAYS = ("text", "image")
"""Terms that are there whether or not a recipe names them."""


class LossConfig(Section):
    """NextFlow §3.3: scale k of an image weighs 1/(h·w)^alpha a token, such that an image keeps its total weight."""

    alpha: float = Field(default=0.9, ge=0, le=2)
    """The paper's, from its 512 stage on; 0 is uniform."""
    vision_weight: float = Field(default=1.0, ge=0)
    """Weight of an image token beside a text token; unpublished, 1 is our choice."""
    predict_boi: bool = True
    """Whether the text token before an image is trained to predict ⟨boi⟩. Our choice: without it a model can draw an image
    when told to, but never begin one within interleaved output. ⟨eoi⟩ before another image predicts nothing either way."""
    responses_only: bool = False
    """For supervised fine-tuning: refuse a pack that marks nothing as given. Segments marked `loss: false` in the shards are
    never learnt; this makes sure that the marks are there."""
    chunk: int = operational(1024, ge=1)
    """Labels whose logits are held at one time; the whole of them never is."""
    terms: dict[str, SerializeAsAny[LossTerm]] = Field(default_factory=dict)
    """What is added to the cross-entropy, by name, each with its settings, as in {z_loss: {weight: 1e-4}}."""

    def all_terms(self) -> dict[str, LossTerm]:
        """What the objective is the sum of, by the names that metrics have."""
        return {name: loss_terms.get(name)() for name in ALWAYS} | self.terms

    @field_validator("terms", mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        return {name: _made(name, settings) for name, settings in given.items()} if isinstance(given, dict) else given


def _made(name: str, settings: Any) -> LossTerm:
    if isinstance(settings, LossTerm):
        return settings
    try:
        return loss_terms.get(name).model_validate({} if settings is None else settings)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, (name, *first["loc"])))
        raise ValueError(f"{place}: {first['msg'].removeprefix('Value error, ')}") from None
