"""Perceptual distances and the discriminator: LPIPS against plain functions, its files and their faults, hinge losses."""

import os
import pickle
import zipfile
from argparse import Namespace

import pytest
import torch
from nextflow_tokenize.vision.networks.discriminator import (
    PatchDiscriminator,
    hinge_discriminator_loss,
    hinge_generator_loss,
)
from nextflow_tokenize.vision.scores.perceptual import Lpips, gradient_distance
from nextflow_tokenize.vision.tensor_files import load_tensors, state_dict_of
from safetensors.torch import save_file
from torch.nn import functional as F

# VGG16, configuration D: torchvision's number and the widths of each convolution, by block.
BLOCKS = [
    [(0, 3, 64), (2, 64, 64)],
    [(5, 64, 128), (7, 128, 128)],
    [(10, 128, 256), (12, 256, 256), (14, 256, 256)],
    [(17, 256, 512), (19, 512, 512), (21, 512, 512)],
    [(24, 512, 512), (26, 512, 512), (28, 512, 512)],
]


def images(batch, height=32, width=48, seed=0):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def trunk():
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for number, inputs, outputs in (convolution for block in BLOCKS for convolution in block):
        spread = (2 / (9 * inputs)) ** 0.5
        tensors[f"features.{number}.weight"] = torch.randn(outputs, inputs, 3, 3, generator=generator) * spread
        tensors[f"features.{number}.bias"] = torch.randn(outputs, generator=generator) * 0.1
    tensors["classifier.6.bias"] = torch.zeros(1000)
    return tensors


@pytest.fixture(scope="module")
def linear():
    generator = torch.Generator().manual_seed(2)
    return [torch.rand(1, width, 1, 1, generator=generator) for width in (64, 128, 256, 512, 512)]


@pytest.fixture(scope="module")
def folder(trunk, linear, tmp_path_factory):
    path = tmp_path_factory.mktemp("torch")
    torch.save(trunk, path / "vgg16.pth")
    torch.save({f"lin{i}.model.1.weight": weight for i, weight in enumerate(linear)}, path / "lpips_vgg.pth")
    return path


@pytest.fixture(scope="module")
def lpips(folder):
    return Lpips.load(folder)


def by_hand(trunk, linear, a, b):
    """LPIPS of the paper's equation 1, function by function, in float64."""
    shift = torch.tensor([-0.030, -0.088, -0.188], dtype=torch.float64).view(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450], dtype=torch.float64).view(1, 3, 1, 1)
    x, y = ((image.double() - shift) / scale for image in (a, b))
    total = torch.zeros(len(a), dtype=torch.float64)
    for block, weight in zip(BLOCKS, linear, strict=True):
        if block[0][0]:
            x, y = (F.max_pool2d(z, kernel_size=2, stride=2) for z in (x, y))
        for number, _, _ in block:
            kernel, bias = (trunk[f"features.{number}.{kind}"].double() for kind in ("weight", "bias"))
            x, y = (torch.relu(F.conv2d(z, kernel, bias, padding=1)) for z in (x, y))
        u, v = (z / (torch.sqrt((z * z).sum(1, keepdim=True)) + 1e-10) for z in (x, y))
        total += (weight.double() * (u - v) ** 2).sum(1).mean((1, 2))
    return total


# --- LPIPS ---


def test_lpips_is_the_published_formula(lpips, trunk, linear):
    a, b = images(2), images(2, seed=1)
    distance = lpips(a, b)
    assert distance.shape == (2,) and distance.dtype == torch.float32
    torch.testing.assert_close(distance.double(), by_hand(trunk, linear, a, b), rtol=1e-4, atol=0)


def test_the_safetensors_layout_is_preferred_and_the_same(lpips, folder, trunk, linear, tmp_path):
    save_file(trunk, tmp_path / "vgg16.safetensors")
    names = {f"lins.{i}.model.0.weight": weight for i, weight in enumerate(linear)}
    save_file(names, tmp_path / "lpips_vgg.safetensors")
    (tmp_path / "vgg16.pth").write_bytes(b"not read")
    a, b = images(1), images(1, seed=1)
    assert torch.equal(Lpips.load(tmp_path)(a, b), lpips(a, b))


def test_equal_images_are_at_zero_and_others_pull(lpips):
    a, b = images(1), images(1, seed=1)
    assert float(lpips(a, a)) == 0
    for start in (a.clone(), torch.zeros_like(a)):
        image = start.requires_grad_()
        distance = lpips(image, b)
        distance.sum().backward()
        assert float(distance.detach()) > 0 and torch.isfinite(image.grad).all() and image.grad.abs().max() > 0
    assert not lpips.training and not any(p.requires_grad for p in lpips.parameters())
    assert float(lpips(a + 0.1 * (b - a), a)) < float(lpips(b, a))


def test_a_position_without_features_has_a_finite_gradient(trunk, linear, tmp_path):
    """Biases far below zero: every feature is zero, where the norm has no derivative."""
    dark = {name: value - 1e3 if name == "features.0.bias" else value for name, value in trunk.items()}
    dark = {name: torch.zeros_like(value) if "bias" in name and ".0." not in name else value for name, value in dark.items()}
    torch.save(dark, tmp_path / "vgg16.pth")
    torch.save({f"lin{i}.model.1.weight": weight for i, weight in enumerate(linear)}, tmp_path / "lpips_vgg.pth")
    image = images(1).requires_grad_()
    Lpips.load(tmp_path)(image, images(1, seed=1)).sum().backward()
    assert torch.equal(image.grad, torch.zeros_like(image))


@pytest.mark.parametrize("shapes", [((1, 3, 32, 32), (1, 3, 32, 48)), ((1, 1, 32, 32),) * 2, ((1, 3, 8, 32),) * 2])
def test_lpips_refuses_other_shapes(lpips, shapes):
    with pytest.raises(ValueError, match="of one shape"):
        lpips(*(torch.zeros(shape) for shape in shapes))


def test_faults_in_lpips_files_name_file_and_key(folder, trunk, linear, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no vgg16\.safetensors or vgg16\.pth: put torchvision's VGG16"):
        Lpips.load(tmp_path)
    (tmp_path / "vgg16.pth").symlink_to(folder / "vgg16.pth")
    with pytest.raises(FileNotFoundError, match=r"no lpips_vgg\.safetensors or lpips_vgg\.pth: put LPIPS's linear"):
        Lpips.load(tmp_path)
    good = {f"lin{i}.model.1.weight": weight for i, weight in enumerate(linear)}
    without = {name: weight for name, weight in good.items() if name != "lin3.model.1.weight"}
    torch.save(without, tmp_path / "lpips_vgg.pth")
    with pytest.raises(ValueError, match=r"lpips_vgg\.pth has no tensor lin3\.model\.1\.weight or .*: give LPIPS's linear"):
        Lpips.load(tmp_path)
    torch.save({**good, "lin1.model.1.weight": torch.zeros(1, 192, 1, 1)}, tmp_path / "lpips_vgg.pth")  # AlexNet's width
    with pytest.raises(
        ValueError, match=r"lpips_vgg\.pth: lin1\.model\.1\.weight is \[1, 192, 1, 1\], not \[1, 128, 1, 1\]"
    ):
        Lpips.load(tmp_path)
    torch.save({**good, "lin1.model.1.weight": torch.full((1, 128, 1, 1), torch.nan)}, tmp_path / "lpips_vgg.pth")
    with pytest.raises(ValueError, match=r"lin1\.model\.1\.weight is not finite"):
        Lpips.load(tmp_path)
    (tmp_path / "vgg16.pth").unlink()
    torch.save(good, tmp_path / "vgg16.pth")
    with pytest.raises(
        ValueError, match=r"vgg16\.pth has no tensor 'features\.0\.weight' .*lin0.*: give torchvision's VGG16"
    ):
        Lpips.load(tmp_path)


def test_gradient_distance_by_hand():
    black = torch.full((1, 3, 16, 16), -1.0)
    assert float(gradient_distance(black, black + 1)) == 0
    ramp = torch.arange(16.0).view(1, 1, 1, 16).expand(1, 3, 16, 16) / 10
    # Horizontal slope 0.1, 0.2, 0.4 at three octaves, none vertically, over six terms.
    assert float(gradient_distance(ramp, torch.zeros_like(ramp))) == pytest.approx(0.7 / 6, rel=1e-5)
    assert float(gradient_distance(ramp.transpose(2, 3), torch.zeros_like(ramp))) == pytest.approx(0.7 / 6, rel=1e-5)


# --- files of tensors ---


class Making:
    """Unpickles by making a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_is_refused_and_not_run(tmp_path):
    path, made = tmp_path / "bad.pth", tmp_path / "made"
    torch.save({"weight": torch.zeros(1), "also": Making(made)}, path)
    with pytest.raises(ValueError, match=r"bad\.pth is refused because it holds code .*mkdir.*get the weights alone"):
        load_tensors(path)
    path.write_bytes(pickle.dumps(Making(made), protocol=2))
    with pytest.raises(ValueError, match=r"refused because it holds code .*mkdir"):
        load_tensors(path)
    path.write_bytes(pickle.dumps(Making(made), protocol=5))  # torch stops at the first instruction it does not know
    with pytest.raises(ValueError, match="not a file that torch can read"):
        load_tensors(path)
    assert not made.exists()


def test_checkpoints_are_unwrapped(tmp_path):
    weights, other = {"a.weight": torch.arange(3.0)}, {"a.weight": torch.ones(3)}
    path = tmp_path / "checkpoint.pt"
    torch.save({"model": weights, "ema": other, "steps": 7, "args": Namespace(lr=1e-4)}, path)
    assert torch.equal(state_dict_of(path)["a.weight"], weights["a.weight"])
    assert torch.equal(state_dict_of(path, "ema")["a.weight"], other["a.weight"])
    with pytest.raises(ValueError, match="not a state dict: it holds a dict of model, ema, steps, args"):
        load_tensors(path)
    with pytest.raises(ValueError, match="no key 'generator': it holds a dict of model, ema, steps, args"):
        state_dict_of(path, "generator")
    with pytest.raises(ValueError, match="under 'steps' a int, not a state dict"):
        state_dict_of(path, "steps")
    torch.save({"model": weights, "state_dict": other}, path)
    with pytest.raises(ValueError, match=r"under each of .*name the key"):
        state_dict_of(path)
    torch.save({"ema": weights}, path)
    with pytest.raises(ValueError, match=r"no weights under any of .*it holds a dict of ema"):
        state_dict_of(path)


def test_plain_files_load_in_each_format(tmp_path):
    weights = {"a": torch.arange(4, dtype=torch.float16), "b": torch.zeros(2, 2)}
    save_file(weights, tmp_path / "w.safetensors")
    torch.save({name: torch.nn.Parameter(tensor) for name, tensor in weights.items()}, tmp_path / "w.pt")
    torch.save(weights, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("w.safetensors", "w.pt", "old.pth"):
        loaded = load_tensors(tmp_path / name)
        assert loaded.keys() == weights.keys() and loaded["a"].dtype == torch.float16
        assert all(torch.equal(loaded[key], weights[key]) and not loaded[key].requires_grad for key in weights)
        assert state_dict_of(tmp_path / name).keys() == weights.keys()


def test_files_that_are_none_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.pth does not exist"):
        load_tensors(tmp_path / "gone.pth")
    with pytest.raises(ValueError, match=r"by its suffix: give one of \.safetensors, \.pth, \.pt"):
        load_tensors(tmp_path / "weights.bin")
    for name, content in (("w.pth", b"<html>Not found</html>"), ("w.safetensors", b"<html>Not found</html>"), ("e.pt", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name.replace(".", r"\.") + ".*get it again"):
            load_tensors(tmp_path / name)
    torch.save({"a": torch.zeros(1000)}, tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"cut\.pth.*get it again"):
        load_tensors(tmp_path / "cut.pth")
    with (
        zipfile.ZipFile(tmp_path / "whole.pth") as whole,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in whole.namelist():
            bomb.writestr(name, whole.read(name))
    with pytest.raises(ValueError, match="because it is compressed"):
        load_tensors(tmp_path / "bomb.pth")
    for content in ({}, [torch.zeros(1)], {"a": 1}, {1: torch.zeros(1)}):
        torch.save(content, tmp_path / "other.pth")
        with pytest.raises(ValueError, match="not a state dict"):
            load_tensors(tmp_path / "other.pth")


# --- the discriminator ---


@pytest.mark.parametrize(("side", "logits"), [((256, 256), (30, 30)), ((64, 200), (6, 23)), ((24, 31), (1, 1))])
def test_one_logit_a_patch(side, logits):
    torch.manual_seed(0)
    assert PatchDiscriminator(channels=4)(torch.zeros(2, 3, *side)).shape == (2, 1, *logits)


def test_published_widths_and_start():
    torch.manual_seed(0)
    weights = PatchDiscriminator().state_dict()
    kernels = [value for value in weights.values() if value.dim() == 4]
    # Isola et al. 2017: C64-C128-C256-C512, then one channel; all 4×4.
    assert [tuple(kernel.shape) for kernel in kernels] == [
        (64, 3, 4, 4), (128, 64, 4, 4), (256, 128, 4, 4), (512, 256, 4, 4), (1, 512, 4, 4),
    ]  # fmt: skip
    for kernel in kernels[1:]:
        assert abs(float(kernel.mean())) < 2e-3 and float(kernel.std()) == pytest.approx(0.02, rel=0.05)
    # Parameters of that network: kernels, a bias for the first and last, two numbers a channel for each BatchNorm.
    counted = 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512) + 64 + 1 + 2 * (128 + 256 + 512)
    assert sum(p.numel() for p in PatchDiscriminator().parameters()) == counted


@pytest.mark.parametrize(("layers", "field"), [(1, 16), (2, 34), (3, 70)])
def test_each_logit_sees_its_patch_and_no_more(layers, field):
    torch.manual_seed(0)
    model = PatchDiscriminator(channels=4, layers=layers).double().eval()
    pixels = torch.randn(1, 3, 160, 160, dtype=torch.float64, requires_grad=True)
    logits = model(pixels)
    middle = logits.shape[2] // 2
    (gradient,) = torch.autograd.grad(logits[0, 0, middle, middle], pixels)
    seen = gradient[0].abs().sum(0) > 0
    for axis in (0, 1):
        places = seen.any(dim=axis).nonzero().flatten()
        assert int(places[-1] - places[0]) + 1 == len(places) == field


def test_the_discriminator_refuses_what_it_cannot_take():
    with pytest.raises(ValueError, match="sides of 24 pixels or more"):
        PatchDiscriminator(channels=4)(torch.zeros(1, 3, 16, 64))
    with pytest.raises(ValueError, match="at least 1"):
        PatchDiscriminator(layers=0)


def test_hinge_losses_by_hand():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, -0.25, 1.0, 0.0])
    # Real: 0, 0.5, 2 → 5/6. Fake: 0, 0.75, 2, 1 → 3.75/4. Half their sum.
    assert float(hinge_discriminator_loss(real, fake)) == pytest.approx((2.5 / 3 + 3.75 / 4) / 2)
    assert float(hinge_generator_loss(fake)) == pytest.approx(2.25 / 4)
    assert float(hinge_discriminator_loss(torch.ones(3), -torch.ones(3))) == 0
