"""SigLIP as teacher and encoder: the same features as transformers' own models give, from folders that it wrote."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from nextflow_tokenize.config.vision import SiglipShape, VisionTokenizerConfig
from nextflow_tokenize.schedule import grids
from nextflow_tokenize.vision.model import VisionTokenizer
from nextflow_tokenize.vision.networks.siglip import (
    SiglipSemanticDecoder,
    SiglipSemanticEncoder,
    SiglipTeacher,
    SiglipTower,
    patches_of,
    shape_of,
)

transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 2}
CONFIG = {
    "levels": (128,), "codebook_size": 64, "semantic_dim": 6, "pixel_dim": 6, "channels": 16, "decoder_channels": 16,
    "teacher": "siglip", "semantic_depth": 1, "semantic_heads": 3, "semantic_grid": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def own():
    """transformers' model of a SigLIP 2 for 4×4 patches and any other grid."""
    torch.manual_seed(0)
    return transformers.Siglip2VisionModel(transformers.Siglip2VisionConfig(num_patches=16, **SIZES)).eval()


@pytest.fixture(scope="module")
def folder(own, tmp_path_factory):
    path = tmp_path_factory.mktemp("siglip2")
    own.save_pretrained(path)
    return path


def images(grid, batch=2, patch=16):
    generator = torch.Generator().manual_seed(grid[0])
    return torch.rand(batch, 3, grid[0] * patch, grid[1] * patch, generator=generator) * 2.2 - 1.1


def hidden(own, pixels, pad=0):
    """hidden_states[-2] by transformers alone, [B, N, hidden]; `pad` empty patches are masked."""
    grid = (pixels.shape[2] // 16, pixels.shape[3] // 16)
    pixels = pixels.clamp(-1, 1)
    cut = [
        pixels[:, :, 16 * i : 16 * i + 16, 16 * j : 16 * j + 16].permute(0, 2, 3, 1).flatten(1)
        for i in range(grid[0])
        for j in range(grid[1])
    ]
    patches = torch.cat([torch.stack(cut, dim=1), torch.zeros(len(pixels), pad, 768)], dim=1)
    mask = (torch.arange(patches.shape[1]) < len(cut)).long().expand(len(pixels), -1)
    shapes = torch.tensor([grid] * len(pixels))
    with torch.no_grad():
        states = own(patches, pixel_attention_mask=mask, spatial_shapes=shapes, output_hidden_states=True).hidden_states
    assert len(states) == 4
    return states[-2][:, : len(cut)]


def test_patches_are_the_image_processor_s():
    picture = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    processor = transformers.Siglip2ImageProcessorPil(do_resize=False)
    given = processor(picture, return_tensors="pt", input_data_format="channels_last")
    assert given["spatial_shapes"].tolist() == [[2, 3]]
    ours = patches_of(torch.from_numpy(picture).permute(2, 0, 1).unsqueeze(0) / 127.5 - 1, 16)
    torch.testing.assert_close(ours, given["pixel_values"][:, :6].float(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("grid", [(4, 4), (3, 7), (8, 2), (1, 1), (9, 10)])
@pytest.mark.parametrize("pad", [0, 5])
def test_features_are_transformers_own_at_every_grid(own, folder, grid, pad):
    teacher, pixels = SiglipTeacher(folder), images(grid)
    features = teacher(pixels)
    assert features.dtype == torch.float32 and features.shape == (2, teacher.dim, *grid)
    expected = hidden(own, pixels, pad).transpose(1, 2).unflatten(2, grid)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)


def test_the_fixed_grid_s_model_sees_whole_patches_only(tmp_path):
    torch.manual_seed(0)
    theirs = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(image_size=22, patch_size=4, **SIZES)).eval()
    theirs.save_pretrained(tmp_path)
    assert shape_of(tmp_path) == SiglipShape(family="siglip", patch_size=4, num_patches=25, **SIZES)
    pixels = torch.rand(2, 3, 22, 22) * 2 - 1
    with torch.no_grad():
        expected = theirs(pixels, output_hidden_states=True).hidden_states[-2]
    teacher = SiglipTeacher(tmp_path)
    torch.testing.assert_close(teacher(pixels).flatten(2).transpose(1, 2), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="5×5"):
        teacher(torch.zeros(1, 3, 24, 24))


def test_what_is_unused_is_not_there(own):
    names = set(SiglipTower(shape_of_sizes()).state_dict())
    theirs = {
        name.removeprefix("encoder.")
        for name in own.state_dict()
        if not name.startswith(("post_layernorm", "head", "encoder.layers.2"))
    }
    assert names == theirs


def shape_of_sizes():
    return SiglipShape(num_patches=16, **SIZES)


def test_the_published_model_s_names_and_shapes():
    """siglip2-so400m-patch16-naflex: our tower's tensors are the model's, by name and shape."""
    with torch.device("meta"):
        ours = SiglipTower(SiglipShape()).state_dict()
        sizes = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
        theirs = transformers.Siglip2VisionModel(transformers.Siglip2VisionConfig(**sizes)).state_dict()
    named = {name.removeprefix("encoder."): tensor.shape for name, tensor in theirs.items()}
    assert all(named[name] == tensor.shape for name, tensor in ours.items())
    assert len(ours) == 3 + 26 * 16


def test_a_whole_model_gives_its_vision_half(own, folder, tmp_path):
    text = {**SIZES, "vocab_size": 60, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 1}
    vision = own.config.to_dict()
    whole = transformers.Siglip2Model(transformers.Siglip2Config(vision_config=vision, text_config=text)).eval()
    whole.vision_model.load_state_dict(own.state_dict())
    for name, size in (("one", "1GB"), ("shards", "60KB")):
        whole.save_pretrained(tmp_path / name, max_shard_size=size)
        assert shape_of(tmp_path / name) == shape_of(folder) == shape_of_sizes()
        assert torch.equal(SiglipTeacher(tmp_path / name)(images((2, 3))), SiglipTeacher(folder)(images((2, 3))))
    assert (tmp_path / "shards" / "model.safetensors.index.json").is_file()


def test_settings_left_out_of_a_config_are_transformers_defaults(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip2", "vision_config": {"hidden_size": 1152}}))
    found = shape_of(tmp_path)
    assert (found.hidden_size, found.intermediate_size, found.num_hidden_layers, found.num_patches) == (1152, 3072, 12, 256)


def test_wrong_folders_are_refused(own, folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        SiglipTeacher(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "clip_vision_model"}')
    with pytest.raises(ValueError, match=r"type 'clip_vision_model'.*siglip2"):
        SiglipTeacher(tmp_path)
    shutil.copy(folder / "config.json", tmp_path)
    torch.save(own.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="only safetensors"):
        SiglipTeacher(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"12345678901")
    with pytest.raises(ValueError, match="cannot be read"):
        SiglipTeacher(tmp_path)
    shutil.copy(folder / "model.safetensors", tmp_path)
    content = json.loads((folder / "config.json").read_text())
    for change, says in (
        ({"num_hidden_layers": 5}, "no tensor"),
        ({"intermediate_size": 96}, "mlp"),
        ({"num_patches": 15}, "square"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(content | change))
        with pytest.raises(ValueError, match=says):
            SiglipTeacher(tmp_path)


def test_the_encoder_learns_and_the_teacher_does_not(folder):
    torch.manual_seed(0)
    tokenizer = VisionTokenizer(VisionTokenizerConfig(**CONFIG, teacher_path=str(folder)))
    with pytest.raises(ValueError, match="teacher_path"):
        tokenizer.teach(images((2, 3)))
    before = set(tokenizer.state_dict())
    tokenizer.attach_teacher(folder, initialise=True)
    assert tokenizer.can_teach and set(tokenizer.state_dict()) == before and "teacher_mean" not in before
    encoder, teacher = tokenizer.semantic_encoder, tokenizer.teacher
    assert isinstance(encoder, SiglipSemanticEncoder)
    pixels = images((2, 3))
    taught = tokenizer.teach(pixels)
    assert not taught.requires_grad
    assert torch.equal(encoder.tower(pixels).permute(0, 3, 1, 2), taught)
    features = tokenizer.features(pixels, taught)
    assert features.shape == (2, 12, 2, 3)
    decoded = tokenizer.semantic_decoder(features[:, :6])
    loss = 1 - torch.nn.functional.cosine_similarity(decoded, taught, dim=1).mean() + features[:, 6:].square().mean()
    loss.backward()
    parts = (tokenizer.semantic_encoder, tokenizer.semantic_decoder)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for part in parts for p in part.parameters() if p.ndim > 1)
    assert all(p.grad is not None for part in parts for p in part.parameters())
    kept = [p.clone() for p in teacher.tower.parameters()]
    assert not any(p.requires_grad or p.grad is not None for p in teacher.tower.parameters())
    mine = {id(p) for p in tokenizer.parameters()}
    assert not any(id(p) in mine for p in teacher.tower.parameters())
    torch.optim.SGD(tokenizer.parameters(), 0.1).step()
    assert all(torch.equal(a, b) for a, b in zip(kept, teacher.tower.parameters(), strict=True))
    assert not torch.equal(encoder.tower(pixels).permute(0, 3, 1, 2), taught)


def test_saved_it_needs_the_teacher_no_more(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "siglip")
    torch.manual_seed(0)
    tokenizer = VisionTokenizer(VisionTokenizerConfig(**CONFIG, teacher_path=str(tmp_path / "siglip"))).eval()
    tokenizer.attach_teacher(tmp_path / "siglip", initialise=True)
    name = tokenizer.save(tmp_path / "saved")
    shutil.rmtree(tmp_path / "siglip")
    assert str(tmp_path) not in (tmp_path / "saved" / "config.json").read_text()
    loaded = VisionTokenizer.load(tmp_path / "saved")
    assert loaded.identity == name == loaded.save(tmp_path / "again")
    for final in ((64, 64), (32, 128)):
        schedule = grids(final, 8)
        pixels = images(schedule[-1], 3)
        codes = tokenizer.encode(pixels, schedule).target
        assert torch.equal(loaded.encode(pixels, schedule).target, codes)
        assert torch.equal(loaded.encode(pixels[1:2], schedule).target, codes[1:2])
        assert loaded.decode_semantic(codes, schedule).shape == (3, 48, *schedule[-1])


def test_shapes_that_do_not_fit_are_refused(folder, tmp_path):
    def made(**changes):
        return VisionTokenizer(VisionTokenizerConfig.model_validate(CONFIG | changes))

    with pytest.raises(ValueError, match="needs teacher_path"):
        made()
    with pytest.raises(ValueError, match="one square grid"):
        made(siglip=SiglipShape(family="siglip", num_patches=16, **SIZES))
    with pytest.raises(ValueError, match="patches of 14 pixels"):
        made(siglip=SiglipShape(num_patches=16, patch_size=14, **SIZES))
    with pytest.raises(ValueError, match="patches of 14 pixels"):
        made(
            siglip=SiglipShape(family="siglip", num_patches=16, patch_size=14, **SIZES),
            levels=(),
            sides=(1, 5),
            image_side=75,
        )
    with pytest.raises(ValueError, match="semantic_heads"):
        made(teacher_path=str(folder), semantic_heads=5)
    with pytest.raises(ValueError, match="the tokenizer was made for"):
        made(siglip=SiglipShape(num_patches=25, **SIZES)).attach_teacher(folder)
    with pytest.raises(ValueError, match="whole patches"):
        made(teacher_path=str(folder)).semantic_encoder(torch.zeros(1, 3, 40, 40))
    with pytest.raises(ValueError, match="classical"):
        VisionTokenizer(VisionTokenizerConfig(codebook_size=8)).attach_teacher(folder)


def test_learnt_positions_follow_the_grid():
    torch.manual_seed(0)
    decoder = SiglipSemanticDecoder(6, 48, 1, 3, 4)
    assert decoder._positions(4, 4) is decoder.positions
    for grid in ((2, 8), (7, 3)):  # 2×8 has as many positions as 4×4 and is another grid
        grown = decoder._positions(*grid)
        assert grown.shape == (1, grid[0] * grid[1] + 1, 48) and torch.equal(grown[:, 0], decoder.positions[:, 0])
        square = decoder.positions[:, 1:].view(4, 4, 48).permute(2, 0, 1).unsqueeze(0)
        expected = torch.nn.functional.interpolate(square, size=grid, mode="bicubic")[0].flatten(1).t()
        torch.testing.assert_close(grown[0, 1:], expected)
    assert decoder(torch.zeros(2, 6, 3, 5)).shape == (2, 48, 3, 5)


def test_without_transformers_all_else_works(tmp_path):
    script = (
        "import sys; sys.modules['transformers'] = None\n"
        "from nextflow_tokenize.config.vision import VisionTokenizerConfig\n"
        "from nextflow_tokenize.vision.model import VisionTokenizer\n"
        "print(VisionTokenizer(VisionTokenizerConfig(codebook_size=8, channels=16, decoder_channels=16)).can_teach)\n"
        "try: VisionTokenizer(VisionTokenizerConfig(teacher='siglip', siglip={}))\n"
        "except ModuleNotFoundError as error: print(error.name)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "transformers"]
