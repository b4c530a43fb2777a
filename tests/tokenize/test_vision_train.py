"""Training on drawn pictures: it improves, it repeats itself, it survives bad images and being cut off."""

import dataclasses
import io
import json

import numpy as np
import pytest
import torch
from nextflow_tokenize.config import VisionTokenizerConfig, VisionTrainingConfig
from nextflow_tokenize.schedule import grids
from nextflow_tokenize.vision.codebook import RunningMeans, place
from nextflow_tokenize.vision.dataset import CropSampler, EncodedImage, load_pool
from nextflow_tokenize.vision.evaluate import evaluate
from nextflow_tokenize.vision.metrics import psnr
from nextflow_tokenize.vision.perceptual import gradient_distance
from nextflow_tokenize.vision.sheets import contact_sheet, preview, preview_scales
from nextflow_tokenize.vision.identity import identity
from nextflow_tokenize.vision.model import VisionTokenizer
from nextflow_tokenize.vision.quantizer import MultiScaleQuantizer
from nextflow_tokenize.vision.train import NoImages, train
from PIL import Image, ImageDraw


def drawing(seed, size=(180, 140)):
    """A picture with a gradient, boxes and lines, as PNG."""
    random = np.random.default_rng(seed)
    ramp = np.linspace(random.uniform(0, 120, 3), random.uniform(120, 255, 3), size[0])
    image = Image.fromarray(np.broadcast_to(ramp[None], (size[1], size[0], 3)).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(5):
        x, y, w, h = random.integers(0, 120, 4)
        draw.rectangle((x, y, x + w // 2, y + h // 2), fill=tuple(int(c) for c in random.integers(0, 255, 3)))
        draw.line((y, x, w, h), fill=(0, 0, 0), width=3)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def broken():
    raise OSError("the file is gone")


SIZES = [(180, 140), (140, 180), (400, 120), (150, 150)]
IMAGES = [EncodedImage.of(drawing(i, SIZES[i % 4])) for i in range(12)]
BAD = [EncodedImage.of(b"not an image"), EncodedImage("ab" * 32, broken), EncodedImage.of(drawing(90, (20, 20)))]


def settings(**training):
    defaults = {
        "steps": 25,
        "learning_rate": 4e-3,
        "batch_tokens": 512,
        "held_out": 0.2,
        "warmup_steps": 3,
        "threads": 1,
        "precision": "float32",
    }
    return VisionTokenizerConfig(
        levels=(128,), codebook_size=256, semantic_dim=4, pixel_dim=12, patch=8, channels=16, decoder_channels=16,
        channel_mult=(1, 2), semantic_channels=16, training=VisionTrainingConfig(**{**defaults, **training}),
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("train") / "tokenizer"
    seen = []
    report = train([*IMAGES, *BAD], settings(), out, lambda done, steps, metrics: seen.append((done, steps, metrics)))
    return out, report, seen


def test_training_improves_on_its_start(trained, tmp_path):
    _, report, _ = trained
    started = train(IMAGES, settings(steps=0), tmp_path / "start")
    assert report.psnr_training > started.psnr_training + 0.5
    assert report.psnr_held_out > started.psnr_held_out
    assert report.semantic_cosine > started.semantic_cosine + 0.15


def test_the_report_and_the_files(trained):
    out, report, seen = trained
    assert report.identity == identity(out)
    assert (report.training_images, report.held_out_images, report.steps, report.stopped_early) == (10, 2, 25, False)
    assert [done for done, _, _ in seen] == [10, 20, 25]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("step") for line in lines] == [10, 20, 25, None]
    assert lines[-1]["final"]["identity"] == report.identity
    assert all(0 < line["usage"] <= 1 and line["l2"] > 0 for line in lines[:-1])
    scores = json.loads((out / "evaluation.json").read_text())
    assert len(scores["images"]) == 2 and len(scores["scales"]) == 8
    assert Image.open(out / "held_out.png").width > 160 * 4
    assert not out.with_name("tokenizer.partial").exists()


def test_bad_images_are_left_out_with_a_reason(trained):
    failed = trained[1].failed
    assert set(failed) == {image.sha256 for image in BAD}
    assert "the file is gone" in failed["ab" * 32]
    assert "too few" in failed[BAD[2].sha256]


def test_the_same_run_gives_the_same_files(trained, tmp_path):
    before = torch.get_num_threads()
    torch.manual_seed(99)
    train([*reversed(BAD), *reversed(IMAGES)], settings(), tmp_path / "again")
    for name in ("config.json", "weights.safetensors", "metrics.jsonl", "evaluation.json", "held_out.png"):
        assert (tmp_path / "again" / name).read_bytes() == (trained[0] / name).read_bytes(), name
    assert torch.get_num_threads() == before


def test_another_seed_gives_another_tokenizer(trained, tmp_path):
    assert train(IMAGES, settings(seed=1), tmp_path / "other").identity != trained[1].identity


def test_cut_off_it_leaves_nothing_that_looks_done(trained, tmp_path):
    def stop(done, steps, metrics):
        raise KeyboardInterrupt

    out = tmp_path / "tokenizer"
    with pytest.raises(KeyboardInterrupt):
        train([*IMAGES, *BAD], settings(), out, stop)
    assert not out.exists()
    assert train([*IMAGES, *BAD], settings(), out).identity == trained[1].identity
    with pytest.raises(FileExistsError, match="never overwritten"):
        train(IMAGES, settings(), out)


def test_nothing_to_train_on(tmp_path):
    with pytest.raises(NoImages, match="none of 3 images"):
        train(BAD, settings(), tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


def test_networks_without_linear_projections_or_kmeans_train_in_bfloat16(tmp_path):
    config = settings(steps=3, kmeans_iterations=0, precision="bfloat16").model_copy(update={"linear_skip": False})
    report = train(IMAGES, config, tmp_path / "plain")
    assert np.isfinite(report.psnr_training)


def test_evaluation_of_any_images(trained):
    tokenizer = VisionTokenizer.load(trained[0])
    report = evaluate(tokenizer, [*IMAGES[:3], *BAD])
    assert len(report.images) == 3 and set(report.failed) == {image.sha256 for image in BAD}
    assert report.psnr == pytest.approx(np.mean([score.psnr for score in report.images]))
    assert report.dead == round((1 - report.usage) * 256)
    assert [use.scale for use in report.scales] == list(range(1, 9))
    for use in report.scales:
        assert 1 <= use.perplexity <= use.distinct + 1e-9 <= use.tokens + 1e-9
    with pytest.raises(ValueError, match="none of 3"):
        evaluate(tokenizer, BAD)


def test_sheets_and_previews(trained):
    tokenizer = VisionTokenizer.load(trained[0])
    picture = Image.open(io.BytesIO(drawing(3)))
    shown = preview(tokenizer, picture)
    assert preview_scales(8) == [1, 2, 4, 8] and preview_scales(12) == [1, 2, 4, 8, 12] and preview_scales(1) == [1]
    assert shown.width == 5 * 260 + 4
    assert contact_sheet(tokenizer, [(picture, grids((64, 64), 8))] * 2, cell=80).height > 160
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet(tokenizer, [])


# --- parts ---


def test_the_split_depends_on_hashes_alone():
    one = load_pool([*IMAGES, *IMAGES[:2]], (128,), 0.25, 100, 0)
    other = load_pool(IMAGES[::-1], (128,), 0.25, 100, 0)
    assert [p.sha256 for p in one.held_out] == [p.sha256 for p in other.held_out]
    assert [p.sha256 for p in one.training] == [p.sha256 for p in other.training]
    assert (len(one.held_out), len(one.training)) == (3, 9)
    assert len(load_pool(IMAGES, (128,), 0.25, 4, 0).training) == 3
    assert load_pool(IMAGES, (128,), 0.0, 100, 0).held_out == []


def test_crops_fill_the_batch_and_are_not_enlarged_too_much():
    pool = load_pool(IMAGES, (128,), 0, 100, 0)
    sampler = CropSampler(pool.training, (128, 256), 600, 0.5, 0)
    assert sampler.levels == [128]  # no image is large enough for 256
    seen = set()
    for _ in range(20):
        schedule, arrays = sampler.draw(number)
        h, w = schedule[-1]
        seen.add((h, w))
        assert len(arrays) == max(1, 600 // (h * w))
        assert all(array.shape == (16 * h, 16 * w, 3) for array in arrays)
    assert len(seen) >= 3


def test_kmeans_and_running_means_find_directions():
    """Residuals along eight known directions a branch: eight codes must land on them, from any start."""
    generator = torch.Generator().manual_seed(0)
    angle = torch.arange(8) * torch.pi / 4 + 0.1
    directions = torch.stack([angle.cos(), angle.sin()], dim=1)
    which = torch.randint(8, (2, 40, 40), generator=generator)
    batch = torch.cat([directions[which], directions[which]], dim=-1).permute(0, 3, 1, 2) * 5
    torch.manual_seed(3)
    quantizer = MultiScaleQuantizer(8, 2, 2, 1.0)
    one_scale = ((40, 40),)
    place(quantizer, [(batch, one_scale)], 10, generator)
    means = RunningMeans(quantizer, 0.5, 0.05, generator)
    for _ in range(30):
        means.update(quantizer.trace(batch, one_scale))
    similarity = quantizer.semantic @ directions.t()
    assert similarity.max(dim=0).values.min() > 0.999
    assert means.usage() == 1.0


def test_dead_codes_start_again_on_residuals():
    generator = torch.Generator().manual_seed(0)
    quantizer = MultiScaleQuantizer(4, 2, 2, 1.0)
    far = torch.tensor([-1.0, 0.0])
    quantizer.semantic.copy_(torch.tensor([[1.0, 0.0]] + [[-1.0, 0.0]] * 3))
    quantizer.pixel.copy_(quantizer.semantic)
    means = RunningMeans(quantizer, 0.5, 0.1, generator)
    batch = torch.tensor([1.0, 0.2, 1.0, 0.2]).view(1, 4, 1, 1).expand(1, 4, 8, 8)
    for _ in range(4):
        means.update(quantizer.trace(batch, ((8, 8),)))
    assert (quantizer.semantic @ far).max() < 0
    torch.testing.assert_close(quantizer.semantic.norm(dim=1), torch.ones(4))


def test_psnr_and_gradient_distance_by_hand():
    black = torch.full((1, 3, 16, 16), -1.0)
    assert psnr(black, black + 2 * 10 / 255) == pytest.approx(20 * np.log10(255 / 10))
    assert float(gradient_distance(black, black + 1)) == 0
    ramp = torch.arange(16.0).view(1, 1, 1, 16).expand(1, 3, 16, 16) / 10
    # Horizontal slope 0.1, 0.2, 0.4 at three octaves, none vertically, over six terms.
    assert float(gradient_distance(ramp, torch.zeros_like(ramp))) == pytest.approx(0.7 / 6, rel=1e-5)


def test_encoded_images_carry_their_hash():
    image = EncodedImage.of(b"abc")
    assert image.sha256.startswith("ba7816bf8f01cfea") and image.load() == b"abc"
    assert dataclasses.is_dataclass(image)
