"""The model's inputs, head and initial values, on one process."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nextflow_tokenize.shards.reader import ShardSet
from torch.nn import functional as F

from megatron_nextflow.config.model import ModelConfig, ParallelConfig
from megatron_nextflow.config.train import FeedConfig, TrainConfig
from megatron_nextflow.feeding.feed import Feed, Share
from megatron_nextflow.model.embedding import sinusoid
from megatron_nextflow.sequence.upsample import bicubic_taps
from megatron_nextflow.sequence.vocabulary import Vocabulary

VOCABULARY = Vocabulary(61, 48)
MODEL = ModelConfig(hidden_size=32, layers=2, heads=4, query_groups=2, ffn_size=48, max_length=192, max_scales=6)


@pytest.fixture(scope="module", autouse=True)
def parallel() -> None:
    from megatron_nextflow.step.process_groups import start_parallel

    start_parallel(TrainConfig(model=MODEL))


def _model(model: ModelConfig = MODEL, precision: str = "float32"):  # type: ignore[no-untyped-def]
    from megatron_nextflow.model.initialise import initialise
    from megatron_nextflow.model.layer_spec import transformer_config
    from megatron_nextflow.model.nextflow import NextFlowModel

    codes = torch.randn(VOCABULARY.codes, 10, generator=torch.Generator().manual_seed(0))
    config = transformer_config(TrainConfig(model=model, precision=precision))  # type: ignore[arg-type]
    built = NextFlowModel(config, model, VOCABULARY, F.normalize(codes, dim=1))
    initialise(built.sharded_state_dict(), model)
    return built


@given(st.tuples(*[st.integers(1, 12)] * 4))
@settings(deadline=None)
def test_taps_are_bicubic_interpolation(sides: tuple[int, int, int, int]) -> None:
    source, target = sides[:2], sides[2:]
    values = torch.randn(1, 3, *source, dtype=torch.float64)
    index, weight = bicubic_taps(source, target)
    flat = values[0].flatten(1).T
    ours = (flat[torch.tensor(index)] * torch.tensor(weight)[..., None].double()).sum(1)
    expected = F.interpolate(values, size=target, mode="bicubic")[0].flatten(1).T
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    assert not index.flags.writeable and not weight.flags.writeable


def test_the_vocabulary_lies_as_the_layout_needs_it() -> None:
    v = Vocabulary(text=1000, codes=4096)
    assert (v.boi, v.eoi, v.code_offset, v.size) == (1000, 1001, 1002, 5098)
    assert v.padded == 5120 and v.padded_words == 1024
    assert Vocabulary(text=126, codes=128).padded == 256
    with pytest.raises(ValueError, match="at least one"):
        Vocabulary(text=0, codes=5)


def test_rows_that_tensor_parallelism_cannot_split_are_refused_with_the_shards(training_data) -> None:  # type: ignore[no-untyped-def]
    from megatron_nextflow.feeding.inputs import vocabulary_of

    folder = str(training_data.shards)
    manifest = ShardSet.open(folder).manifest
    model = MODEL.model_copy(update={"hidden_size": 48, "heads": 3, "query_groups": 3})
    assert vocabulary_of(TrainConfig(model=model), folder, manifest).padded == 128
    with pytest.raises(ValueError, match=r"output head's 128 rows are not divisible by parallel\.tp 3: take a"):
        vocabulary_of(TrainConfig(model=model, parallel=ParallelConfig(tp=3)), folder, manifest)


def test_the_sinusoid_is_the_published_one() -> None:
    """Vaswani et al., §3.5, by hand for a width of 4: rates 1 and 1/100."""
    row = sinusoid(torch.tensor([8]), 4)[0]
    expected = [np.sin(8), np.sin(0.08), np.cos(8), np.cos(0.08)]
    np.testing.assert_allclose(row.numpy(), expected, rtol=1e-5)


def test_inputs_are_words_or_connected_code_vectors(training_data) -> None:  # type: ignore[no-untyped-def]
    """Each slot's input against a computation of its own: one image, one slot at a time, interpolated by torch."""
    model = _model()
    config = TrainConfig(model=MODEL, data=FeedConfig(global_batch_size=2, micro_batch_size=2))
    batch = next(Feed(ShardSet.open(training_data.shards), config, VOCABULARY, Share()).next_batch())
    embedding = model.embedding
    found = embedding(batch).transpose(0, 1)
    expected = embedding.word_embeddings.weight[batch.token_ids].clone()
    vision: list[torch.Tensor] = []
    for image in batch.images:
        start = 0
        for k, (here, after) in enumerate(zip(image.grids, image.grids[1:], strict=False), start=2):
            n = here[0] * here[1]
            vectors = embedding.codebook[torch.from_numpy(image.codes[start : start + n])]
            up = F.interpolate(vectors.T.reshape(1, -1, *here), size=after, mode="bicubic")[0].flatten(1).T
            hidden = embedding.connector.fc2(F.gelu(embedding.connector.fc1(up)))
            count = sinusoid(torch.tensor(len(image.grids)), MODEL.hidden_size)
            vision.append(hidden + embedding.scale_embeddings[k - 1] + MODEL.init_std * count)
            start += n
    expected[batch.is_vision] = torch.cat(vision)
    assert batch.is_vision.any()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_padding_rows_of_the_head_get_neither_probability_nor_gradient(training_data) -> None:  # type: ignore[no-untyped-def]
    from megatron_nextflow.model.attention import BlockRangeParams

    model = _model()
    config = TrainConfig(model=MODEL, data=FeedConfig(global_batch_size=1))
    batch = next(Feed(ShardSet.open(training_data.shards), config, VOCABULARY, Share()).next_batch())
    logits = model(batch, BlockRangeParams.of(batch.visible))
    assert logits.shape == (192, 1, VOCABULARY.padded)
    assert (logits[..., VOCABULARY.size :] == -torch.inf).all()
    assert logits[..., : VOCABULARY.size].isfinite().all()
    logits.softmax(-1)[..., VOCABULARY.code_offset].sum().backward()
    gradient = model.output_layer.weight.grad
    assert (gradient[VOCABULARY.size :] == 0).all() and (gradient[: VOCABULARY.size] != 0).any()


def test_initial_values_follow_their_rules() -> None:
    model = _model()
    state = dict(model.named_parameters())
    assert (state["decoder.final_layernorm.weight"] == 1).all()
    assert (state["decoder.layers.0.self_attention.linear_qkv.bias"] == 0).all()
    assert float(state["output_layer.weight"].std()) == pytest.approx(MODEL.init_std, rel=0.05)
    assert float(state["decoder.layers.1.mlp.linear_fc2.weight"].std()) == pytest.approx(MODEL.init_std / 2, rel=0.1)
    norms = state["embedding.codebook"].norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms))
    layers = [state[f"decoder.layers.{i}.mlp.linear_fc1.weight"] for i in range(2)]
    assert not torch.equal(*layers)
    again = dict(_model().named_parameters())
    assert all(torch.equal(state[name], again[name]) for name in state)
    other = dict(_model(MODEL.model_copy(update={"seed": 9})).named_parameters())
    assert not torch.equal(state["output_layer.weight"], other["output_layer.weight"])


def test_a_frozen_codebook_gets_no_gradient(training_data) -> None:  # type: ignore[no-untyped-def]
    from megatron_nextflow.model.attention import BlockRangeParams

    config = TrainConfig(model=MODEL, data=FeedConfig(global_batch_size=1))
    batch = next(Feed(ShardSet.open(training_data.shards), config, VOCABULARY, Share()).next_batch())
    for trained in (True, False):
        model = _model(MODEL.model_copy(update={"train_codebook": trained}))
        model(batch, BlockRangeParams.of(batch.visible))[..., : VOCABULARY.size].square().sum().backward()
        assert (model.embedding.codebook.grad is not None) == trained
        assert model.embedding.connector.fc1.weight.grad is not None


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"parallel": ParallelConfig(tp=3)}, "model.heads 4 is not divisible by parallel.tp 3"),
        ({"parallel": ParallelConfig(tp=4)}, "model.query_groups 2 is not divisible by parallel.tp 4"),
        ({"parallel": ParallelConfig(pp=3)}, "model.layers 4 is not divisible by parallel.pp 3"),
        ({"fp8": "tensorwise"}, "fp8 needs precision: bf16"),
        ({"steps": 5}, "warmup_steps 10 must be below the 5 steps"),
        ({"data": FeedConfig(global_batch_size=5, micro_batch_size=2)}, "not divisible by data.micro_batch_size 2"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings_: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings_)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"hidden_size": 130}, "hidden_size 130 is not divisible by heads 4"),
        ({"hidden_size": 100}, "must be even"),
        ({"query_groups": 3}, "heads 4 is not divisible by query_groups 3"),
        ({"rope_sections": (4, 4, 4)}, r"must sum to hidden_size / heads / 2 = 16"),
    ],
)
def test_models_that_cannot_work_are_refused(settings_: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(**settings_)


def test_qwen_proportions_of_the_rotary_sections() -> None:
    """Qwen2.5-VL-7B: mrope_section [16, 24, 24] for heads of 128 channels."""
    assert ModelConfig(hidden_size=3584, heads=28, query_groups=4, ffn_size=18944).sections == (16, 24, 24)


def test_what_depends_on_processes_and_machine_is_refused_at_the_start() -> None:
    data = FeedConfig(shards="somewhere", global_batch_size=6)
    config = TrainConfig(data=data, parallel=ParallelConfig(tp=2))
    assert config.check(4) == 2
    with pytest.raises(ValueError, match=r"3 processes cannot hold copies of parallel.tp 2 = 2"):
        config.check(3)
    with pytest.raises(ValueError, match="global_batch_size 6 is not divisible by 4 data-parallel copies"):
        config.check(8)
    with pytest.raises(ValueError, match=r"data\.shards is not set"):
        TrainConfig().check(1)


def test_fp8_is_refused_without_transformer_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Megatron itself would train on in bf16 and not say so."""
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    config = TrainConfig(data=FeedConfig(shards="somewhere"), precision="bf16", fp8="delayed")
    with pytest.raises(ValueError, match="fp8: delayed needs Transformer Engine, which is not installed"):
        config.check(1)
