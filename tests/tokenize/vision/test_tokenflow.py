"""TokenFlow's checkpoints: a converted one gives what the published definition (`tokenflow_reference.py`) gives."""

import argparse
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from nextflow_tokenize.vision import tokenflow
from nextflow_tokenize.vision.identity import identity, load_codebook, vision_info
from nextflow_tokenize.vision.model import VisionTokenizer

_spec = importlib.util.spec_from_file_location("tokenflow_reference", Path(__file__).with_name("tokenflow_reference.py"))
reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reference)
Reference, SMALL, SIDES, IMAGE = reference.Reference, reference.SMALL, reference.SIDES, reference.IMAGE
SIZES = {
    "sides": SIDES, "image_side": IMAGE, "siglip_heads": reference.SIGLIP_HEADS, "semantic_heads": reference.HEADS,
}  # fmt: skip


@pytest.fixture(scope="module")
def weights():
    return reference.random_weights()


def written(path, weights, **more):
    content = {"model": weights, "optimizer": {"state": {}}, "steps": 5, "args": argparse.Namespace(lr=1e-4, teacher="x")}
    torch.save(content | more, path)
    return path


@pytest.fixture(scope="module")
def folder(weights, tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenflow")
    out = directory / "converted"
    assert tokenflow.convert(written(directory / "tokenflow_siglip_32k.pt", weights), out, **SIZES) == identity(out)
    return out


def images(count=3):
    # Beyond [−1, 1] too: the reference clamps what SigLIP sees and not what the CNN sees.
    return torch.randn(count, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(7)) * 0.6


def test_a_converted_tokenizer_encodes_and_decodes_as_the_reference(weights, folder):
    published, tokenizer = Reference(weights), VisionTokenizer.load(folder)
    schedule = tokenizer.fixed_schedule
    assert schedule == tuple((side, side) for side in SIDES)
    codes, total = published.encode(images().double())
    assert len(codes.unique()) > 16
    with torch.no_grad():
        torch.testing.assert_close(
            tokenizer.features(images()).double(), published.features(images().double()), atol=1e-4, rtol=1e-4
        )
    ours = tokenizer.encode(images(), schedule)
    assert torch.equal(ours.target, codes)
    torch.testing.assert_close(tokenizer.quantizer.features(codes, schedule).double(), total, atol=1e-5, rtol=0)
    image, semantic = published.decode(total)
    assert image.abs().max() > 0.3
    torch.testing.assert_close(tokenizer.decode(codes, schedule).double(), image.clamp(-1, 1), atol=1e-4, rtol=0)
    torch.testing.assert_close(tokenizer.decode_semantic(codes, schedule).double(), semantic, atol=1e-4, rtol=1e-4)


def test_codes_do_not_depend_on_the_batch(folder):
    tokenizer = VisionTokenizer.load(folder)
    whole = tokenizer.encode(images(3), tokenizer.fixed_schedule).target
    assert torch.equal(tokenizer.encode(images(3)[1:2], tokenizer.fixed_schedule).target, whole[1:2])


def test_what_is_written_needs_no_teacher_and_names_no_path(weights, folder):
    model = json.loads((folder / "config.json").read_text())["model"]
    assert "teacher_path" not in model and "path" not in model and "training" not in model
    assert model["siglip"]["num_hidden_layers"] == SMALL["layers"]
    assert model["levels"] == [] and model["image_side"] == IMAGE and model["w_dis"] == 1.0
    assert vision_info(folder)["sides"] == list(SIDES)
    book = torch.from_numpy(load_codebook(folder))
    expected = torch.cat(Reference(weights).codebook(), dim=1).float()
    torch.testing.assert_close(book, expected, atol=1e-6, rtol=0)
    tokenizer = VisionTokenizer.load(folder)
    assert not any("layers.2" in name or "post_layernorm" in name for name in tokenizer.state_dict() if "tower" in name)
    assert not tokenizer.can_teach
    with pytest.raises(ValueError, match="teacher_path"):
        tokenizer.teach(images())
    with pytest.raises(ValueError, match="one schedule"):
        tokenizer.encode(images(), ((1, 1), (5, 5)))
    with pytest.raises(ValueError, match="one schedule"):
        tokenizer.decode(torch.zeros(1, 1, dtype=torch.long), ((1, 1),))
    with pytest.raises(ValueError, match="resize to"):
        tokenizer.encode(torch.zeros(1, 3, 80, 80), tokenizer.fixed_schedule)


def test_averaged_weights_are_preferred(weights, folder, tmp_path):
    other = reference.random_weights(1)
    name = tokenflow.convert(written(tmp_path / "a.pt", other, ema=weights), tmp_path / "out", **SIZES)
    assert name == identity(folder)


def test_names_of_newer_transformers_and_safetensors_are_read_too(weights, folder, tmp_path):
    from safetensors.torch import save_file

    newer = {name.replace("encoder_vqkd.vision_model.", "encoder_vqkd."): tensor for name, tensor in weights.items()}
    save_file(newer, tmp_path / "a.safetensors")
    assert tokenflow.convert(tmp_path / "a.safetensors", tmp_path / "out", **SIZES) == identity(folder)


@pytest.mark.parametrize(
    ("drop", "add", "says"),
    [
        ("decoder.mid.1.q.bias", None, r"missing pixel_decoder\.mid\.1\.q\.bias"),
        ("encoder_vqkd.vision_model.post_layernorm.weight", None, "post_layernorm"),
        ("quant_conv.weight", None, "no tensor quant_conv"),
        (None, ("vqkd_quant_resi.qresi_ls.0.weight", torch.zeros(3)), "unknown vqkd_quant_resi"),
        (None, ("decode_task_layer.2.bias", torch.zeros(3)), "shape"),
        (None, ("scaling_layer.scale", torch.full((1, 3, 1, 1), 0.27)), "scaling_layer"),
        (None, ("encoder.conv_in.bias", torch.full((32,), torch.nan)), "no numbers"),
    ],
)
def test_what_does_not_fit_is_named(weights, tmp_path, drop, add, says):
    changed = {name: tensor for name, tensor in weights.items() if name != drop} | dict([add] if add else [])
    with pytest.raises(ValueError, match=says):
        tokenflow.convert(written(tmp_path / "a.pt", changed), tmp_path / "out", **SIZES)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("CLIP", "encoder_vqkd.class_embedding"),
        ("ViTamin", "encoder_vqkd.stages.0.weight"),
        ("no TokenFlow", "module.weight"),
    ],
)
def test_other_variants_are_refused_by_name(weights, tmp_path, kind, name):
    other = {key: tensor for key, tensor in weights.items() if not key.startswith("encoder_vqkd.")} | {name: torch.zeros(2)}
    with pytest.raises(ValueError, match=f"{kind}.*only the SigLIP variant"):
        tokenflow.convert(written(tmp_path / "a.pt", other), tmp_path / "out", **SIZES)


def test_sizes_that_no_tensor_shows_must_be_given(weights, tmp_path):
    path = written(tmp_path / "a.pt", weights)
    with pytest.raises(ValueError, match="siglip_heads"):
        tokenflow.convert(path, tmp_path / "out", sides=SIDES, image_side=IMAGE)
    with pytest.raises(ValueError, match="5×5 patches of 4 pixels"):
        tokenflow.convert(path, tmp_path / "out", siglip_heads=2)
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError):
        tokenflow.convert(path, tmp_path / "out", **SIZES)


@pytest.mark.parametrize("enhanced", [False, True])
def test_the_published_sizes(enhanced):
    """Names and shapes of the real checkpoint, without its numbers: everything is read off and fits."""
    sizes = reference.PUBLISHED | ({"decoder_channels": 256, "decoder_blocks": 4} if enhanced else {})
    weights = {name: torch.empty(shape, device="meta") for name, shape in reference.reference_shapes(sizes).items()}
    config = tokenflow._config(Path("x.pt"), weights, tokenflow.SIDES, tokenflow.IMAGE_SIDE, None, 12)
    assert (config.channels, config.channel_mult, config.res_blocks, config.z_channels) == (128, (1, 1, 2, 2, 4), 2, 256)
    assert (config.decoder_channels, config.decoder_res_blocks) == ((256, 4) if enhanced else (128, 2))
    assert (config.codebook_size, config.semantic_dim, config.pixel_dim) == (32768, 32, 8)
    assert (config.siglip.num_attention_heads, config.siglip.num_hidden_layers, config.siglip.num_patches) == (16, 27, 729)
    assert (config.semantic_depth, config.semantic_grid, config.image_side) == (3, 27, 384)
    with torch.device("meta"):
        own = VisionTokenizer(config).state_dict()
    renamed = tokenflow._renamed(weights, 26)
    assert {name: tensor.shape for name, tensor in renamed.items()} == {name: tensor.shape for name, tensor in own.items()}
