"""The vision tokenizer as a whole: shapes, batch independence, saving, identity, the classical teacher, settings."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from nextflow_tokenize.config.vision import SelfCorrectionConfig, VisionTokenizerConfig
from nextflow_tokenize.schedule import FINAL_GRIDS, grids, token_count
from nextflow_tokenize.vision.identity import identity, load_codebook, vision_info
from nextflow_tokenize.vision.model import VisionTokenizer
from nextflow_tokenize.vision.networks.teacher import ClassicalTeacher
from pydantic import ValidationError

SMALL = VisionTokenizerConfig(
    levels=(128, 256), codebook_size=128, semantic_dim=4, pixel_dim=6, patch=8, channels=16, decoder_channels=16,
    channel_mult=(1, 2), semantic_channels=16,
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    return VisionTokenizer(SMALL).eval()


def pixels(batch, grid, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, grid[0] * 16, grid[1] * 16, generator=generator) * 2 - 1


@pytest.mark.parametrize("final", [(64, 64), (32, 128), (84, 44)])
@pytest.mark.parametrize("scales", [8, 12])
def test_codes_do_not_depend_on_the_batch_or_the_threads(tokenizer, final, scales):
    schedule = grids(final, scales)
    images = pixels(7, schedule[-1])
    seeds = [11, 5, 8, 13, 2, 7, 1]
    setting = SelfCorrectionConfig()
    whole = tokenizer.encode(images, schedule, seeds, setting)
    assert whole.input.shape == whole.target.shape == (7, token_count(schedule))
    assert not torch.equal(whole.input, whole.target)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for part in ([0], [3], [6, 2], [5, 1, 4]):
                codes = tokenizer.encode(images[part], schedule, [seeds[i] for i in part], setting)
                assert torch.equal(codes.input, whole.input[part])
                assert torch.equal(codes.target, whole.target[part])
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_without_self_correction_input_is_target(tokenizer):
    schedule = grids((64, 64), 8)
    codes = tokenizer.encode(pixels(2, schedule[-1]), schedule)
    assert torch.equal(codes.input, codes.target)


def test_decode_of_all_and_of_the_first_scales(tokenizer):
    schedule = grids((32, 128), 8)
    codes = tokenizer.encode(pixels(2, schedule[-1]), schedule).target
    h, w = schedule[-1]
    full = tokenizer.decode(codes, schedule)
    assert full.shape == (2, 3, h * 16, w * 16)
    assert full.abs().max() <= 1
    first = tokenizer.decode(codes[:, : token_count(schedule[:3])], schedule)
    assert first.shape == full.shape
    assert not torch.equal(first, full)
    with pytest.raises(ValueError, match="whole scales"):
        tokenizer.decode(codes[:, :2], schedule)


def test_what_does_not_fit_is_refused(tokenizer):
    schedule = grids((64, 64), 8)
    with pytest.raises(ValueError, match="resize to"):
        tokenizer.encode(pixels(1, (4, 4)), schedule)
    with pytest.raises(ValueError, match="seed"):
        tokenizer.encode(pixels(2, schedule[-1]), schedule, [1], SelfCorrectionConfig())


def test_saved_and_loaded_it_is_the_same(tokenizer, tmp_path):
    name = tokenizer.save(tmp_path / "a")
    assert tokenizer.save(tmp_path / "b") == name
    files = [hashlib.sha256((tmp_path / "a" / f).read_bytes()).hexdigest() for f in ("config.json", "weights.safetensors")]
    assert name == identity(tmp_path / "a") == hashlib.sha256(f"{files[0]}\n{files[1]}\n".encode()).hexdigest()
    loaded = VisionTokenizer.load(tmp_path / "a")
    assert loaded.identity == name
    assert loaded.save(tmp_path / "c") == name
    schedule = grids((64, 64), 8)
    images = pixels(2, schedule[-1])
    codes = tokenizer.encode(images, schedule).target
    assert torch.equal(loaded.encode(images, schedule).target, codes)
    assert torch.equal(loaded.decode(codes, schedule), tokenizer.decode(codes, schedule))


def test_one_flipped_byte_is_another_identity(tokenizer, tmp_path):
    name = tokenizer.save(tmp_path)
    weights = bytearray((tmp_path / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "weights.safetensors").write_bytes(weights)
    assert identity(tmp_path) != name


def test_the_codebook_without_torch(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    book = load_codebook(tmp_path)
    assert book.shape == (128, 10) and book.dtype == np.float32
    assert np.array_equal(book, tokenizer.codebook.numpy())
    np.testing.assert_allclose(np.linalg.norm(book[:, :4], axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(book[:, 4:], axis=1), 1, atol=1e-6)
    info = vision_info(tmp_path)
    assert (info["codebook_size"], info["semantic_dim"], info["pixel_dim"], info["width"]) == (128, 4, 6, 10)
    script = (
        "import sys; from nextflow_tokenize.vision.identity import *;"
        "path = sys.argv[1]; print(identity(path), load_codebook(path).shape,"
        "vision_info(path)['width'], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [identity(tmp_path), "(128,", "10)", "10", "False"]


def test_broken_folders_are_named(tokenizer, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        identity(tmp_path)
    tokenizer.save(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content["model"]["codebook_size"] = 64
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="two tokenizers"):
        VisionTokenizer.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        vision_info(tmp_path)
    (tmp_path / "config.json").write_text('{"format": 99, "model": {}}')
    with pytest.raises(ValueError, match="another version"):
        vision_info(tmp_path)


def test_training_settings_are_not_part_of_the_identity(tmp_path):
    names = set()
    for steps in (1, 2):
        torch.manual_seed(0)
        config = SMALL.model_copy(update={"training": SMALL.training.model_copy(update={"steps": steps})})
        names.add(VisionTokenizer(config).save(tmp_path / str(steps)))
    assert len(names) == 1


def test_paths_are_not_part_of_the_identity(tmp_path):
    names = set()
    for place in (None, "somewhere"):
        torch.manual_seed(0)
        names.add(VisionTokenizer(SMALL.model_copy(update={"teacher_path": place})).save(tmp_path / str(place)))
    assert len(names) == 1


def test_one_branch_chooses_by_the_pixel_distance_alone(tokenizer, tmp_path):
    torch.manual_seed(0)
    single = VisionTokenizer(SMALL.model_copy(update={"branches": "pixel"})).eval()
    assert not any(name.startswith("semantic_encoder") for name in single.state_dict())
    schedule = grids((64, 64), 8)
    images = pixels(2, schedule[-1])
    codes = single.encode(images, schedule).target
    # One scale by hand: the nearest pixel code of the mean of the pixel features, whatever the semantic codes are.
    with torch.no_grad():
        mean = torch.nn.functional.normalize(single.pixel_encoder(images).mean((2, 3)), dim=1)
    assert torch.equal(codes[:, 0], torch.cdist(mean, single.quantizer.pixel).argmin(1))
    decoded = single.decode_semantic(codes, schedule)
    assert decoded.shape == single.teach(images).shape
    features = single.quantizer.features(codes, schedule)
    assert torch.equal(decoded, single.semantic_decoder(features[:, 4:].contiguous()))
    single.save(tmp_path)
    loaded = VisionTokenizer.load(tmp_path)
    loaded.quantizer.semantic.copy_(loaded.quantizer.semantic.roll(1, 0))
    assert torch.equal(loaded.encode(images, schedule).target, codes)
    dual = tokenizer.encode(images, schedule).target
    assert torch.equal(
        tokenizer.decode_semantic(dual, schedule),
        tokenizer.semantic_decoder(tokenizer.quantizer.features(dual, schedule)[:, :4].contiguous()),
    )


def test_a_tokenizer_of_one_schedule():
    torch.manual_seed(0)
    fixed = VisionTokenizer(SMALL.model_copy(update={"levels": (), "sides": (1, 2, 5)})).eval()
    assert fixed.fixed_schedule == ((1, 1), (2, 2), (5, 5)) and fixed.image_shape((5, 5)) == (80, 80)
    codes = fixed.encode(pixels(2, (5, 5)), fixed.fixed_schedule).target
    assert codes.shape == (2, 30)
    assert fixed.decode(codes[:, :5], fixed.fixed_schedule).shape == (2, 3, 80, 80)
    with pytest.raises(ValueError, match="one schedule"):
        fixed.encode(pixels(2, (8, 8)), grids((64, 64), 8))
    with pytest.raises(ValueError, match="image_side"):
        VisionTokenizer(SMALL.model_copy(update={"image_side": 90}))


def test_published_widths_are_a_matter_of_settings():
    """TokenFlow's pixel branch: base 128, factors 1 1 2 2 4, two blocks, attention, 32 + 8 dims (a small codebook here)."""
    config = VisionTokenizerConfig(
        codebook_size=64, semantic_dim=32, pixel_dim=8, patch=1, channels=32, decoder_channels=32,
        channel_mult=(1, 1, 2, 2, 4), res_blocks=2, decoder_res_blocks=3, attention=True, linear_skip=False,
    )  # fmt: skip
    tokenizer = VisionTokenizer(config).eval()
    schedule = grids((32, 128), 8)
    codes = tokenizer.encode(pixels(1, schedule[-1]), schedule).target
    assert tokenizer.decode(codes, schedule).shape == (1, 3, 64, 256)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"patch": 4}, "must be 16"),
        ({"levels": (100,)}, "levels"),
        ({"channel_mult": ()}, "positive"),
        ({"codebok_size": 4}, "codebok"),
    ],
)
def test_wrong_settings_are_refused_with_the_reason(wrong, says):
    with pytest.raises(ValidationError, match=says):
        VisionTokenizerConfig(**wrong)


# --- the classical teacher ---


def test_the_teacher_sees_orientation_and_colour():
    teacher = ClassicalTeacher()
    column = torch.arange(64, dtype=torch.float32)
    stripes = torch.sin(column * 2 * torch.pi / 8).view(1, 1, 1, 64).expand(1, 3, 64, 64)
    vertical, horizontal = teacher(stripes), teacher(stripes.transpose(2, 3))
    assert vertical.shape == (1, teacher.dim, 4, 4)
    # Gradients across vertical stripes point along x: bin 0 of nine; across horizontal stripes 90°: between bins 4 and 5.
    assert vertical[0, :9, 1, 1].argmax() == 0
    assert horizontal[0, :9, 1, 1].argmax() in (4, 5)
    red = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    features = teacher(red)[0, :, 0, 0]
    luma = 0.299 - 0.587 - 0.114
    expected = torch.tensor([luma, 0.564 * (-1 - luma), 0.713 * (1 - luma)])
    torch.testing.assert_close(features[9:12], expected, atol=1e-5, rtol=0)
    assert features[:9].abs().max() < 1e-3
    assert torch.isfinite(teacher(torch.zeros(1, 3, 32, 32))).all()


def test_all_grids_of_the_lowest_level_encode(tokenizer):
    for final in FINAL_GRIDS[::5]:
        schedule = grids(final, 8)
        codes = tokenizer.encode(pixels(1, schedule[-1]), schedule).target
        assert codes.shape == (1, token_count(schedule))
