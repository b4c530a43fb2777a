"""The tokenizer on a GPU: it encodes what a CPU encodes, but for near ties, and trains in bfloat16, compiled."""

import io

import numpy as np
import pytest
import torch
from nextflow_tokenize.config.vision import VisionTokenizerConfig
from nextflow_tokenize.schedule import grids
from nextflow_tokenize.vision.images.dataset import EncodedImage
from nextflow_tokenize.vision.model import VisionTokenizer
from nextflow_tokenize.vision.training.training_stage import train_one_stage
from PIL import Image

pytestmark = pytest.mark.gpu
CONFIG = {"levels": (128, 256), "codebook_size": 4096}


def test_codes_are_those_of_the_cpu_but_for_near_ties():
    torch.manual_seed(0)
    tokenizer = VisionTokenizer(VisionTokenizerConfig.model_validate(CONFIG)).eval()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    schedule = grids((64, 64), 12)
    features = torch.randn(8, 16, 16, 16)
    on_cpu = tokenizer.quantizer.quantize(features, schedule).target
    on_gpu = tokenizer.quantizer.to("cuda").quantize(features.cuda(), schedule).target.cpu()
    # Scale 1 sees identical features: what differs there is a near tie, and it changes the scales after it.
    assert (on_cpu[:, :1] == on_gpu[:, :1]).float().mean() > 0.8
    assert (on_cpu == on_gpu).float().mean() > 0.8


def test_it_trains_in_bfloat16_compiled(tmp_path):
    images = []
    for seed in range(6):
        coarse = np.random.default_rng(seed).integers(0, 255, (5, 5, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(coarse).resize((280, 270), Image.Resampling.BICUBIC).save(stream, "PNG")
        images.append(EncodedImage.of(stream.getvalue()))
    config = VisionTokenizerConfig.model_validate(
        CONFIG
        | {
            "training": {"steps": 20, "precision": "bfloat16", "compile": True, "adversarial_weight": 0.1}
            | {"adversarial_start": 5, "held_out": 0.2}
        }
    )
    report = train_one_stage(images, config, tmp_path / "out", device="cuda")
    started = train_one_stage(
        images,
        config.model_copy(update={"training": config.training.model_copy(update={"steps": 0})}),
        tmp_path / "start",
        device="cuda",
    )
    assert report.psnr_training > started.psnr_training
