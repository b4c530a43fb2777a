"""recipes/tokenizer_nextflow.yaml for real, made small: every part of the published training, in three stages, in one run.

Widths, depths, counts and steps are cut; what is trained, by which losses, in which order, is the recipe's.
"""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from nextflow_tokenize.config.vision_recipe import TokenizerRecipe
from nextflow_tokenize.schedule import grids
from nextflow_tokenize.vision.images.image_index import encoded_images, index
from nextflow_tokenize.vision.model import VisionTokenizer
from nextflow_tokenize.vision.scores.evaluate import Judges, evaluate
from nextflow_tokenize.vision.scores.inception import InceptionFeatures
from nextflow_tokenize.vision.scores.perceptual import Lpips
from nextflow_tokenize.vision.training.whole_training import train_by_recipe
from PIL import Image

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow
RECIPE = Path(__file__).parents[3] / "recipes" / "tokenizer_nextflow.yaml"


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    path = tmp_path_factory.mktemp("siglip2")
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    transformers.Siglip2VisionModel(transformers.Siglip2VisionConfig(num_patches=16, **sizes)).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def lpips(tmp_path_factory):
    """LPIPS's two files with random weights."""
    path = tmp_path_factory.mktemp("lpips")
    torch.manual_seed(0)
    torch.save(vgg(), path / "vgg16.pth")
    widths = (64, 128, 256, 512, 512)
    torch.save({f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate(widths)}, path / "lpips_vgg.pth")
    return path


def vgg():
    widths = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    numbers = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    tensors = {}
    for number, inputs, outputs in zip(numbers, widths, widths[1:], strict=False):
        tensors[f"features.{number}.weight"] = torch.randn(outputs, inputs, 3, 3) * (2 / (9 * inputs)) ** 0.5
        tensors[f"features.{number}.bias"] = torch.zeros(outputs)
    return tensors


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for seed in range(5):
        coarse = Image.fromarray(np.random.default_rng(seed).integers(0, 255, (5, 5, 3), dtype=np.uint8))
        stream = io.BytesIO()
        coarse.resize([(140, 130), (300, 110)][seed % 2], Image.Resampling.BICUBIC).save(stream, "PNG")
        (folder / f"{seed}.png").write_bytes(stream.getvalue())
    return folder


@pytest.fixture(scope="module")
def trained(siglip, lpips, images, tmp_path_factory):
    content = yaml.safe_load(RECIPE.read_text())
    content |= {"output": str(tmp_path_factory.mktemp("out") / "run"), "images": str(images)}
    content["vision_tokenizer"] |= {
        "levels": [128], "codebook_size": 64, "semantic_dim": 6, "pixel_dim": 4, "channels": 32, "decoder_channels": 32,
        "res_blocks": 1, "decoder_res_blocks": 1, "z_channels": 16, "channel_mult": [1, 1, 1, 1, 2], "semantic_depth": 1,
        "semantic_heads": 3, "semantic_grid": 8, "teacher_path": str(siglip),
    }  # fmt: skip
    content["vision_tokenizer"]["training"] |= {
        "batch_tokens": 64, "micro_batches": 2, "warmup_steps": 1, "lpips_path": str(lpips), "adversarial_start": 2,
        "discriminator_channels": 8, "held_out": 0.2, "workers": 0, "compile": False, "kmeans_iterations": 2,
        "picture_interval": 4,
    }  # fmt: skip
    for stage in content["stages"]:
        stage["vision_tokenizer"]["training"]["steps"] = 4
    content["stages"][2]["vision_tokenizer"] |= {"decoder_channels": 64, "decoder_res_blocks": 2}
    recipe = TokenizerRecipe.model_validate(content)
    return recipe, train_by_recipe(recipe, device="cpu")


def test_every_stage_gives_a_tokenizer(trained):
    _, outcomes = trained
    assert [outcome.report.steps for outcome in outcomes] == [4, 4, 4]
    tokenizers = [VisionTokenizer.load(outcome.tokenizer) for outcome in outcomes]
    assert [tokenizer.config.branches for tokenizer in tokenizers] == ["pixel", "dual", "dual"]
    assert tokenizers[2].config.decoder_channels == 64 and tokenizers[2].config.network == "vqgan"
    schedule = grids((64, 64), 8)
    pixels = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(1)) * 2 - 1
    codes = [tokenizer.encode(pixels, schedule).target for tokenizer in tokenizers]
    assert torch.equal(codes[1], codes[2])  # the last stage trains the decoder alone
    assert tokenizers[2].decode(codes[2], schedule).shape == (1, 3, 128, 128)
    lines = (outcomes[1].tokenizer / "metrics.jsonl").read_text()
    for term in ("l2", "perceptual", "semantic", "commitment", "adversarial", "discriminator"):
        assert f'"{term}"' in lines
    assert '"semantic"' not in (outcomes[0].tokenizer / "metrics.jsonl").read_text()


def test_the_joint_stage_starts_from_siglip_and_the_pixel_stage_and_moves_both(trained, siglip):
    _, outcomes = trained
    first, second = (VisionTokenizer.load(outcome.tokenizer).state_dict() for outcome in outcomes[:2])
    teacher = VisionTokenizer(VisionTokenizer.load(outcomes[1].tokenizer).config)
    teacher.attach_teacher(siglip, initialise=True)
    for name, began in ((n, first[n]) for n in first if n.startswith("pixel_encoder.")):
        # Four steps of a running mean of 0.999: close to the start, and not the start.
        assert (second[name] - began).abs().max() < 0.01, name
    moved = [
        n for n in second if n.startswith("semantic_encoder.tower") and not torch.equal(second[n], teacher.state_dict()[n])
    ]
    near = max(float((second[n] - teacher.state_dict()[n]).abs().max()) for n in moved)
    assert moved and near < 0.01


def test_scores_with_the_judges_weights(trained, lpips, images, siglip, tmp_path):
    """LPIPS and rFID are there where their weights are, and the teacher's agreement where the teacher is."""
    _, outcomes = trained
    torch.manual_seed(0)
    state = InceptionFeatures().state_dict() | {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    torch.save(state, tmp_path / "inception.pth")
    judges = Judges(Lpips.load(lpips), InceptionFeatures.load(tmp_path / "inception.pth"))
    tokenizer = VisionTokenizer.load(outcomes[2].tokenizer)
    found = encoded_images(index([str(images)], tmp_path / "index.parquet"))
    without = evaluate(tokenizer, found)
    assert without.lpips is without.rfid is without.semantic_cosine is None
    tokenizer.attach_teacher(siglip)
    full = evaluate(tokenizer, found, judges=judges)
    assert full.lpips > 0 and full.rfid > 0 and -1 <= full.semantic_cosine <= 1
    assert full.psnr == without.psnr
