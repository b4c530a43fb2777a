"""The quantiser against a plain float64 transcription of the papers' formulas, and the properties of self-correction."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nextflow_tokenize.config.vision import SelfCorrectionConfig
from nextflow_tokenize.schedule import FINAL_GRIDS, LEVEL_SCALES, grids, token_count
from nextflow_tokenize.vision.codes import nearest
from nextflow_tokenize.vision.codes.quantizer import MultiScaleQuantizer, draws, scales_of, seed_of

SQUARE = grids((64, 64), 6)
WIDE = grids((32, 128), 7)


def quantizer(size=64, semantic=3, pixel=5, w_dis=1.0, seed=0):
    torch.manual_seed(seed)
    return MultiScaleQuantizer(size, semantic, pixel, w_dis)


def features(batch, grid, width=8, seed=1):
    return 3 * torch.randn(batch, width, *grid, generator=torch.Generator().manual_seed(seed))


# --- an independent implementation: numpy, float64, loops ---


def plain_area(image, size):
    """Mean over source cells [floor(i·H/h), ceil((i+1)·H/h)): what area interpolation is."""
    _, height, width = image.shape
    out = np.empty((image.shape[0], *size))
    for i in range(size[0]):
        for j in range(size[1]):
            rows = slice(i * height // size[0], math.ceil((i + 1) * height / size[0]))
            columns = slice(j * width // size[1], math.ceil((j + 1) * width / size[1]))
            out[:, i, j] = image[:, rows, columns].mean(axis=(1, 2))
    return out


def cubic(x, a=-0.75):
    """Keys' cubic convolution kernel."""
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def plain_bicubic(image, size):
    for axis in (1, 2):
        source, target = image.shape[axis], size[axis - 1]
        matrix = np.zeros((target, source))
        for i in range(target):
            centre = (i + 0.5) * source / target - 0.5
            for tap in range(math.floor(centre) - 1, math.floor(centre) + 3):
                matrix[i, min(max(tap, 0), source - 1)] += cubic(centre - tap)
        image = np.moveaxis(np.tensordot(matrix, image, axes=(1, axis)), 0, axis)
    return image


def plain_quantize(image, schedule, semantic, pixel, w_dis):
    """Codes and the sum of codes of one image [C, H, W]: distances written out, one position at a time."""
    residual, total = image.astype(np.float64), np.zeros(image.shape)
    split = semantic.shape[1]
    codes = []
    for h, w in schedule:
        pooled = plain_area(residual, (h, w))
        chosen = np.empty((image.shape[0], h, w))
        for i in range(h):
            for j in range(w):
                s, p = pooled[:split, i, j], pooled[split:, i, j]
                s, p = s / np.linalg.norm(s), p / np.linalg.norm(p)
                distance = ((semantic - s) ** 2).sum(1) + w_dis * ((pixel - p) ** 2).sum(1)
                code = int(distance.argmin())
                codes.append(code)
                chosen[:, i, j] = np.concatenate([semantic[code], pixel[code]])
        update = plain_bicubic(chosen, image.shape[1:])
        total += update
        residual -= update
    return codes, total


@pytest.mark.parametrize("schedule", [SQUARE, WIDE, grids((60, 68), 8)])
@pytest.mark.parametrize("w_dis", [1.0, 0.3, 4.0])
def test_codes_and_features_equal_a_plain_implementation(schedule, w_dis):
    q = quantizer(w_dis=w_dis)
    batch = features(2, schedule[-1])
    codes = q.quantize(batch, schedule)
    decoded = q.features(codes.target, schedule)
    assert torch.equal(codes.input, codes.target)
    for image, row, got in zip(batch, codes.target, decoded, strict=True):
        expected, total = plain_quantize(
            image.numpy(), schedule, q.semantic.double().numpy(), q.pixel.double().numpy(), w_dis
        )
        assert row.tolist() == expected
        np.testing.assert_allclose(got.numpy(), total, atol=2e-5)


def test_every_prefix_of_scales_decodes_to_the_partial_sum():
    q = quantizer()
    batch = features(2, SQUARE[-1])
    trace = q.trace(batch, SQUARE)
    codes = q.quantize(batch, SQUARE).target
    for shown in range(1, len(SQUARE) + 1):
        part = q.features(codes[:, : token_count(SQUARE[:shown])], SQUARE)
        torch.testing.assert_close(part, trace.partial[shown - 1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("level", [128, 256])
def test_codes_do_not_depend_on_the_tiles(level, monkeypatch):
    q = quantizer(size=1000)
    schedule = grids((64, 64), LEVEL_SCALES[level])
    batch = features(2, schedule[-1])
    codes = [q.quantize(batch, schedule).target]
    for rows, tile, block in ((64, 64, 16), (128, 512, 128)):
        monkeypatch.setattr(nearest, "ROWS", rows)
        monkeypatch.setattr(nearest, "TILE", tile)
        monkeypatch.setattr(nearest, "BLOCK", block)
        codes.append(q.quantize(batch, schedule).target)
    assert torch.equal(codes[1], codes[0]) and torch.equal(codes[2], codes[0])


def test_distances_are_squared_and_ascending():
    q = quantizer(w_dis=2.0)
    rows = features(1, (4, 4))[0].flatten(1).t()
    distance, index = q.nearest(rows, 5)
    semantic, pixel = (torch.nn.functional.normalize(part, dim=1) for part in rows.double().split(q.dims, dim=1))
    full = torch.cdist(semantic, q.semantic.double()).square() + 2 * torch.cdist(pixel, q.pixel.double()).square()
    expected = full.sort(dim=1)
    torch.testing.assert_close(distance.double(), expected.values[:, :5], atol=1e-5, rtol=1e-5)
    assert torch.equal(index, expected.indices[:, :5])


def test_codes_are_float32_under_autocast():
    q = quantizer()
    batch = features(2, SQUARE[-1])
    plain = q.quantize(batch, SQUARE).target
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(q.quantize(batch, SQUARE).target, plain)


# --- self-correction ---


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 12), st.sampled_from([None, 0.1]))
def test_targets_are_nearest_given_the_residual_of_drawn_codes(seed, top_k, temperature):
    """Replays the walk with the drawn codes: at each scale the target must be the nearest, the input among the k nearest."""
    q = quantizer()
    batch = features(1, WIDE[-1], seed=seed)
    setting = SelfCorrectionConfig(tokens=0.6, top_k=top_k, temperature=temperature)
    codes = q.quantize(batch, WIDE, draws([seed], token_count(WIDE), setting))
    offset = 0
    for scale, (h, w) in enumerate(WIDE):
        done = q.features(codes.input[:, :offset], WIDE[:]) if scale else torch.zeros_like(batch)
        rows = torch.from_numpy(plain_area((batch - done)[0].double().numpy(), (h, w))).flatten(1).t()
        semantic, pixel = (torch.nn.functional.normalize(part, dim=1) for part in rows.split(q.dims, dim=1))
        distance = torch.cdist(semantic, q.semantic.double()).square() + torch.cdist(pixel, q.pixel.double()).square()
        best = distance.sort(dim=1).values
        target, fed = (part[0, offset : offset + h * w, None] for part in (codes.target, codes.input))
        assert torch.all(distance.gather(1, target)[:, 0] <= best[:, 0] + 1e-4)
        assert torch.all(distance.gather(1, fed)[:, 0] <= best[:, top_k - 1] + 1e-4)
        offset += h * w


def test_share_of_changed_tokens():
    q = quantizer(size=512)
    schedule = grids((64, 64), 12)
    batch = features(8, schedule[-1])
    codes = q.quantize(batch, schedule, draws(range(8), token_count(schedule), SelfCorrectionConfig(tokens=0.6, top_k=10)))
    changed = (codes.input != codes.target).double().mean().item()
    # 60 % are drawn, and one draw of ten is the nearest again: 0.54, standard error 0.006 over 7,200 tokens.
    assert changed == pytest.approx(0.6 * 0.9, abs=0.03)


def test_share_of_changed_images():
    drawn = draws(range(400), 50, SelfCorrectionConfig(samples=0.25, tokens=1.0))
    touched = drawn.replace.any(dim=1)
    assert torch.equal(touched, drawn.replace.all(dim=1))
    assert touched.double().mean().item() == pytest.approx(0.25, abs=0.09)


def test_a_low_temperature_takes_the_nearest_and_uniform_draws_all_k():
    q = quantizer(size=256)
    batch = features(4, SQUARE[-1])
    count = token_count(SQUARE)
    cold = q.quantize(batch, SQUARE, draws(range(4), count, SelfCorrectionConfig(tokens=1.0, top_k=8, temperature=1e-6)))
    assert torch.equal(cold.input, cold.target)
    drawn = draws(range(100), 10, SelfCorrectionConfig(tokens=1.0, top_k=8))
    share = torch.bincount(drawn.noise.argmax(-1).flatten(), minlength=8).double() / 1000
    assert share.min() > 0.08 and share.max() < 0.17


def test_draws_depend_on_the_seed_alone():
    setting = SelfCorrectionConfig()
    together = draws([3, 8, 5], 40, setting)
    for row, seed in enumerate([3, 8, 5]):
        alone = draws([seed], 40, setting)
        assert torch.equal(alone.replace[0], together.replace[row])
        assert torch.equal(alone.noise[0], together.noise[row])
    assert not torch.equal(together.noise[0], together.noise[1])


def test_more_neighbours_than_codes():
    q = quantizer(size=4)
    codes = q.quantize(features(1, SQUARE[-1]), SQUARE, draws([1], token_count(SQUARE), SelfCorrectionConfig(top_k=50)))
    assert int(codes.input.max()) < 4


def test_an_images_seed_comes_from_its_hash():
    assert seed_of("00000000000000f" + "a" * 49) == 15
    assert seed_of("f" * 64) < 2**63


# --- refusals ---


def test_codes_that_end_inside_a_scale_are_refused():
    assert scales_of(14, SQUARE) == 3
    with pytest.raises(ValueError, match="whole scales"):
        scales_of(13, SQUARE)


def test_codes_outside_the_codebook_are_refused():
    q = quantizer()
    with pytest.raises(ValueError, match="another tokenizer"):
        q.features(torch.tensor([[64]]), SQUARE)
    with pytest.raises(ValueError, match="another tokenizer"):
        q.features(torch.tensor([[-1]]), SQUARE)


def test_features_of_another_grid_are_refused():
    with pytest.raises(ValueError, match="do not fit"):
        quantizer().quantize(features(1, (5, 5)), SQUARE)


@pytest.mark.parametrize("final", FINAL_GRIDS)
def test_every_ratio_at_every_level(final):
    q = quantizer(size=16, semantic=2, pixel=2)
    for scales in LEVEL_SCALES.values():
        schedule = grids(final, scales)
        codes = q.quantize(features(1, schedule[-1], 4), schedule)
        assert codes.target.shape == (1, token_count(schedule))
        assert q.features(codes.target, schedule).shape == (1, 4, *schedule[-1])
