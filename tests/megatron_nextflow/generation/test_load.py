"""One process reads what several have written, in the precision that is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nextflow_tokenize.schedule import canonical_final, grids, token_count

from megatron_nextflow.config.model import ParallelConfig
from megatron_nextflow.config.train import TrainConfig
from megatron_nextflow.generation.generator import load_model
from megatron_nextflow.generation.growing_document import ImagePart, TextPart, layout_of
from megatron_nextflow.launching.launcher import launch
from megatron_nextflow.model.attention import BlockRangeParams
from megatron_nextflow.runtime.training_folder import latest
from megatron_nextflow.sequence.batch import collate
from megatron_nextflow.training.loop import train

Config = Callable[..., TrainConfig]
SCHEDULE = grids(canonical_final((64, 64), 4), 4)
CODES = np.arange(token_count(SCHEDULE)) % 48
DOCUMENT = [TextPart((3, 1, 4)), ImagePart(SCHEDULE, CODES), TextPart((5, 9))]


@pytest.fixture(scope="module")
def alone(make_config: Config, training_data: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps in one process."""
    output = tmp_path_factory.mktemp("alone")
    assert train(make_config(training_data, output, steps=2), torch.device("cpu")) == 2
    return output


def step(output: Path) -> Path:
    path = latest(output)
    assert path is not None
    return path


@torch.no_grad()
def logits(output: Path, precision: str = "auto") -> torch.Tensor:
    model, _ = load_model(step(output), "cpu", precision=precision)
    batch = collate([layout_of(DOCUMENT, model.vocabulary, 64.0)])
    return model(batch, BlockRangeParams.of(batch.visible))[..., : model.vocabulary.size]


def test_weights_come_in_the_precision_that_is_asked_for(alone: Path) -> None:
    exact, _ = load_model(step(alone), "cpu")
    rounded, _ = load_model(step(alone), "cpu", precision="bf16")
    assert {p.dtype for p in exact.parameters()} == {torch.float32}
    for name, parameter in rounded.named_parameters():
        assert torch.equal(parameter, exact.get_parameter(name).bfloat16()), name
    # bf16 has 8 bits: logits of two layouts of rounding agree to a few parts in a hundred.
    found, expected = logits(alone, "bf16"), logits(alone)
    assert found.dtype == torch.bfloat16 and 0 < (found.float() - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.slow
def test_a_checkpoint_of_four_processes_is_read_by_one(
    alone: Path, make_config: Config, training_data: Any, tmp_path: Path
) -> None:
    """TP 2 × PP 2: the same logits as from the training in one process, within what their losses are equal to."""
    config = make_config(training_data, tmp_path, steps=2, parallel=ParallelConfig(tp=2, pp=2))
    assert launch(config, tmp_path, 4) == 0
    torch.testing.assert_close(logits(tmp_path), logits(alone), atol=1e-4, rtol=1e-4)
