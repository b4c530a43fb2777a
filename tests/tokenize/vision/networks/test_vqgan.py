"""TokenFlow's CNN in the tokenizer: sizes, grids, batches. What it computes is checked in test_vision_tokenflow."""

import pytest
import torch
from nextflow_tokenize.config.vision import VisionTokenizerConfig
from nextflow_tokenize.schedule import grids
from nextflow_tokenize.vision.model import VisionTokenizer
from nextflow_tokenize.vision.networks.vqgan import Downsample, VqganDecoder, VqganEncoder

CNN = {"network": "vqgan", "channel_mult": (1, 1, 2, 2, 4)}
SMALL = VisionTokenizerConfig(
    codebook_size=64, semantic_dim=4, pixel_dim=6, channels=32, decoder_channels=32, z_channels=16, semantic_channels=16,
    **CNN,
)  # fmt: skip
PUBLISHED = {"pixel_dim": 8, "channels": 128, "decoder_channels": 128, "res_blocks": 2, "decoder_res_blocks": 2}


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    return VisionTokenizer(SMALL).eval()


def pixels(batch, grid):
    generator = torch.Generator().manual_seed(batch)
    return torch.rand(batch, 3, grid[0] * 16, grid[1] * 16, generator=generator) * 2 - 1


def test_published_sizes():
    """LlamaGen (its README, vq_ds16) gives 72M parameters for a tokenizer with this CNN and 16,384 codes of width 8."""
    with torch.device("meta"):
        config = VisionTokenizerConfig(**CNN, **PUBLISHED)
        encoder, decoder = VqganEncoder(config), VqganDecoder(config)
        doubled = VqganDecoder(config.model_copy(update={"decoder_channels": 256, "decoder_res_blocks": 4}))
    total = sum(p.numel() for network in (encoder, decoder) for p in network.parameters()) + 16384 * 8
    assert round(total / 1e6) == 72
    assert doubled.stages[0].res[4].conv1.weight.shape == (1024, 1024, 3, 3)
    assert [len(stage.res) for stage in decoder.stages] == [3] * 5 and [len(stage.res) for stage in encoder.stages] == [
        2
    ] * 5
    assert [len(stage.attn) for stage in decoder.stages] == [3, 0, 0, 0, 0]
    assert [len(stage.attn) for stage in encoder.stages] == [0, 0, 0, 0, 2]


def test_it_takes_every_grid_and_codes_do_not_depend_on_the_batch(tokenizer):
    for final in ((64, 64), (32, 128)):
        schedule = grids(final, 8)
        images = pixels(3, schedule[-1])
        codes = tokenizer.encode(images, schedule).target
        assert torch.equal(tokenizer.encode(images[2:], schedule).target, codes[2:])
        assert tokenizer.decode(codes, schedule).shape == images.shape


def test_every_parameter_gets_a_gradient(tokenizer):
    images = pixels(1, (2, 3))
    tokenizer.pixel_decoder(tokenizer.pixel_encoder(images)).square().mean().backward()
    for part in (tokenizer.pixel_encoder, tokenizer.pixel_decoder):
        assert part.linear is None
        assert all(p.grad is not None and p.grad.isfinite().all() for p in part.parameters())
    tokenizer.zero_grad(set_to_none=True)


def test_downsampling_pads_below_and_on_the_right():
    layer = Downsample(1)
    torch.nn.init.zeros_(layer.conv.bias)
    with torch.no_grad():
        layer.conv.weight.copy_(torch.arange(9.0).view(1, 1, 3, 3))
    image = torch.zeros(1, 1, 4, 4)
    image[0, 0, 3, 3] = 1  # the middle of the last window that starts at (2, 2): weight 4
    assert torch.equal(layer(image), torch.tensor([[[[0.0, 0.0], [0.0, 4.0]]]]))


def test_saved_and_loaded_it_gives_the_same_codes(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    schedule = grids((64, 64), 8)
    images = pixels(1, schedule[-1])
    codes = tokenizer.encode(images, schedule).target
    assert torch.equal(VisionTokenizer.load(tmp_path).encode(images, schedule).target, codes)


@pytest.mark.parametrize("network", [CNN, {"network": "patch", "channel_mult": (1, 2)}])
def test_images_of_another_size_than_sixteen_pixels_a_token(network):
    """The pixel branch sees them resized to 48 pixels; what it decodes is resized back."""
    torch.manual_seed(0)
    config = VisionTokenizerConfig.model_validate(
        SMALL.model_dump() | network | {"levels": (), "sides": (1, 3), "image_side": 40}
    )
    branch = VisionTokenizer(config).eval()
    images = torch.rand(2, 3, 40, 40) * 2 - 1
    large = torch.nn.functional.interpolate(images, size=(48, 48), mode="bicubic")
    features = branch.pixel_encoder(images)
    assert features.shape == (2, 6, 3, 3)
    torch.testing.assert_close(features, branch.pixel_encoder(large))
    assert branch.pixel_decoder(features).shape == (2, 3, 40, 40)
    assert branch.image_shape((3, 3)) == (40, 40)
    codes = branch.encode(images, branch.fixed_schedule).target
    assert branch.decode(codes, branch.fixed_schedule).shape == (2, 3, 40, 40)
    assert branch.decode_semantic(codes, branch.fixed_schedule).shape == branch.teach(images).shape


def test_widths_need_residual_blocks():
    with pytest.raises(ValueError, match="res_blocks"):
        VisionTokenizer(SMALL.model_copy(update={"res_blocks": 0}))
