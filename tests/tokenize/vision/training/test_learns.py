"""A minute's version of benchmarks/bench_overfit.py: real photographs, both branches, drawn codes.

The photographs are those that ship in scikit-image. Thresholds stand well below what was measured, so that another
processor's rounding cannot fail them, and well above a start without learning (measured in the same test).
"""

import importlib.util
import sys
from pathlib import Path

import pytest
import skimage
import torch
from nextflow_tokenize.config.vision import SelfCorrectionConfig, VisionTokenizerConfig
from nextflow_tokenize.vision.images.dataset import EncodedImage, load_pool
from nextflow_tokenize.vision.model import VisionTokenizer
from nextflow_tokenize.vision.scores.evaluate import evaluate_pictures
from nextflow_tokenize.vision.scores.sheets import pixels_for, schedule_for
from nextflow_tokenize.vision.training.training_stage import train_one_stage

pytestmark = pytest.mark.slow
NAMES = (
    "astronaut", "brick", "camera", "cell", "chelsea", "coffee", "coins", "color", "grass", "gravel", "horse", "ihc", "moon",
    "motorcycle_left", "page", "text",
)  # fmt: skip


def config(branches="dual", **training):
    defaults = {
        "held_out": 0.25, "batch_tokens": 256, "learning_rate": 1e-3, "l1_weight": 0.0, "perceptual_weight": 0.03,
        "semantic_weight": 0.1, "scale_drop": 0.0, "crop": 1.0, "flip": False, "precision": "float32",
        "checkpoint_interval": 0,
    }  # fmt: skip
    return VisionTokenizerConfig.model_validate(
        {"levels": (256,), "codebook_size": 1024, "branches": branches, "training": defaults | training}
    )


@pytest.fixture(scope="module")
def images():
    folder = Path(skimage.__file__).parent / "data"
    return [EncodedImage.of((folder / f"{name}.png").read_bytes()) for name in NAMES]


@pytest.fixture(scope="module")
def tokenizers(images, tmp_path_factory):
    """By name: both branches after joint training, a single branch after as much, and the start of both."""
    root = tmp_path_factory.mktemp("learns")
    train_one_stage(images, config(steps=120), root / "dual")
    train_one_stage(images, config("pixel", steps=120), root / "single")
    train_one_stage(images, config(steps=0), root / "start")
    train_one_stage(images, config(stage="decoder", steps=300), root / "decoder", init=root / "dual")
    return {path.name: VisionTokenizer.load(path) for path in root.iterdir() if path.is_dir()}


@pytest.fixture(scope="module")
def pool(images):
    settings = config().training
    return load_pool(images, (256,), settings.held_out, settings.max_images, settings.seed)


@pytest.fixture(scope="module")
def scores(tokenizers, pool):
    return {
        name: (evaluate_pictures(tokenizer, pool.training), evaluate_pictures(tokenizer, pool.held_out))
        for name, tokenizer in tokenizers.items()
    }


def test_it_learns_photographs(scores):
    (start, _), (seen, held) = scores["start"], scores["decoder"]
    assert seen.psnr > start.psnr + 1.0
    assert seen.psnr > 21 and held.psnr > 17
    assert seen.usage > 0.6 and seen.ssim > start.ssim


def test_two_branches_agree_better_with_the_teacher_than_one(scores):
    for dual, single in zip(scores["dual"], scores["single"], strict=True):
        assert dual.semantic_cosine > single.semantic_cosine + 0.05
        assert dual.psnr > single.psnr - 1.5


def test_drawn_codes_cost_little_where_the_residual_follows_them(tokenizers, pool):
    spec = importlib.util.spec_from_file_location("bench", Path(__file__).parents[4] / "benchmarks" / "self_correction.py")
    assert spec is not None and spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    sys.modules["bench"] = bench  # dataclasses look their module up
    spec.loader.exec_module(bench)
    tokenizer = tokenizers["decoder"]
    images = []
    for picture in pool.training[:6]:
        schedule = schedule_for(tokenizer, picture.size)
        images.append((pixels_for(tokenizer, picture.image, schedule), schedule))
    loss = bench.measure(tokenizer, images, SelfCorrectionConfig(top_k=10))
    # One draw of ten is the nearest again: 0.6 · 0.9 of the codes change.
    assert loss.changed == pytest.approx(0.54, abs=0.04)
    assert loss.nearest - loss.drawn < 0.5 * (loss.nearest - loss.naive)
    nothing = bench.measure(tokenizer, images[:1], SelfCorrectionConfig(tokens=0.0))
    assert nothing.nearest == nothing.drawn == nothing.naive


def test_previews_grow_sharper_with_scales(tokenizers, pool):
    tokenizer = tokenizers["decoder"]
    picture = pool.training[0]
    schedule = schedule_for(tokenizer, picture.size)
    pixels = pixels_for(tokenizer, picture.image, schedule)
    codes = tokenizer.encode(pixels, schedule).target
    errors = []
    for scales in (1, 4, 8, 12):
        shown = sum(h * w for h, w in schedule[:scales])
        errors.append(float(torch.nn.functional.mse_loss(tokenizer.decode(codes[:, :shown], schedule), pixels)))
    assert errors == sorted(errors, reverse=True)
