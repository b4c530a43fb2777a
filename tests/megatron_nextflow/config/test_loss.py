"""What a recipe may say of the loss's terms."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from megatron_nextflow.config.train import TrainConfig
from megatron_nextflow.loss_terms.z_loss import ZLoss


def test_terms_are_named_in_the_recipe_and_stay_what_they_are() -> None:
    config = TrainConfig.model_validate({"loss": {"terms": {"z_loss": {"weight": 1e-4}}}})
    assert config.loss.terms == {"z_loss": ZLoss(weight=1e-4)}
    assert list(config.loss.all_terms()) == ["text", "image", "z_loss"]
    assert TrainConfig.model_validate_json(config.model_dump_json()) == config
    assert list(TrainConfig().loss.all_terms()) == ["text", "image"]


@pytest.mark.parametrize(
    ("terms", "reason"),
    [
        ({"zloss": {}}, "no term of the loss 'zloss'; did you mean 'z_loss'? known: image, text, z_loss"),
        ({"z_loss": {"weight": -1}}, "z_loss.weight: Input should be greater than or equal to 0"),
        ({"z_loss": {"wieght": 1}}, "z_loss.wieght: Extra inputs are not permitted"),
        ({"text": {"weight": 2}}, "text.weight: Extra inputs are not permitted"),
    ],
)
def test_what_is_not_known_is_refused(terms: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError) as error:
        TrainConfig.model_validate({"loss": {"terms": terms}})
    assert reason in str(error.value)
