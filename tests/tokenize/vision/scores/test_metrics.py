"""SSIM, the Fréchet distance and FID's Inception, each against an independent computation."""

import numpy as np
import pytest
import torch
from nextflow_tokenize.vision.scores.inception import InceptionFeatures
from nextflow_tokenize.vision.scores.metrics import Statistics, frechet_distance, ssim
from safetensors.torch import save_file
from torch.nn import functional as F


def image(seed, height=40, width=33):
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# --- SSIM ---


def ssim_by_hand(a, b):
    """Wang et al. 2004, equation 13, over every 11×11 window that lies in the image."""
    place = np.arange(-5, 6)
    window = np.exp(-(place[:, None] ** 2 + place[None, :] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    levels = [np.clip(np.round((x.double().numpy() + 1) * 127.5), 0, 255) for x in (a, b)]
    x, y = (np.lib.stride_tricks.sliding_window_view(plane, (11, 11), axis=(1, 2)) for plane in levels)
    mx, my = ((z * window).sum((-2, -1)) for z in (x, y))
    vx, vy, vxy = ((p * q * window).sum((-2, -1)) - m for p, q, m in ((x, x, mx * mx), (y, y, my * my), (x, y, mx * my)))
    return float(np.mean((2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))))


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_ssim_is_the_papers(share):
    a = image(0)
    b = a + share * (image(1) - a)
    assert ssim(a, b) == pytest.approx(ssim_by_hand(a, b), abs=1e-9)
    assert ssim(a[None], b[None]) == ssim(a, b) == pytest.approx(ssim(b, a), abs=1e-12)


def test_ssim_of_equal_images_and_of_what_eight_bits_cannot_tell():
    a = image(0)
    assert ssim(a, a) == pytest.approx(1, abs=1e-12)
    levels = ((a + 1) * 127.5).round() / 127.5 - 1
    assert ssim(levels, levels + 0.4 / 127.5) == pytest.approx(1, abs=1e-12)
    white = torch.ones(3, 11, 11)
    assert ssim(white, white + 5) == pytest.approx(1, abs=1e-12)
    # Flat black against flat white: no variance, so luminance alone is left: C1 / (255² + C1).
    assert ssim(-white, white) == pytest.approx(2.55**2 / (255**2 + 2.55**2), rel=1e-9)


@pytest.mark.parametrize(
    "shapes", [((3, 20, 20), (3, 20, 21)), ((1, 20, 20),) * 2, ((2, 3, 20, 20),) * 2, ((3, 10, 20),) * 2]
)
def test_ssim_refuses_other_shapes(shapes):
    with pytest.raises(ValueError, match="of one shape"):
        ssim(*(torch.zeros(shape) for shape in shapes))


# --- statistics and the Fréchet distance ---


def statistics(rows):
    rows = torch.as_tensor(rows)
    found = Statistics(rows.shape[1])
    found.add(rows)
    return found


def exactly(mean, root):
    """Samples whose mean is `mean` and whose covariance is root rootᵀ: two along each column, opposite each other."""
    mean, root = (np.asarray(x, dtype=np.float64) for x in (mean, root))
    dim = len(mean)
    steps = root.T * np.sqrt((2 * dim - 1) / 2)
    return statistics(np.concatenate([mean + steps, mean - steps]))


def test_batches_and_merges_are_numpys_mean_and_covariance():
    random = np.random.default_rng(0)
    # A mean 10⁷ times the deviation: sums of squares would have lost the covariance.
    rows = random.normal(size=(200, 5)) @ random.normal(size=(5, 5)) + 1e7
    one, other = Statistics(5), Statistics(5)
    for part in np.split(rows[:120], [1, 3, 3, 50]):
        one.add(torch.from_numpy(part))
    other.merge(Statistics(5))
    other.merge(statistics(rows[120:170]))
    other.add(torch.from_numpy(rows[170:]))
    kept = other.mean.clone()
    one.merge(other)
    assert one.count == 200 and other.count == 80 and torch.equal(other.mean, kept)
    np.testing.assert_allclose(one.mean.numpy(), rows.mean(0), rtol=1e-14)
    np.testing.assert_allclose(one.covariance().numpy(), np.cov(rows, rowvar=False), rtol=1e-6, atol=1e-7)


def test_diagonal_gaussians_have_a_closed_form():
    mean_a, mean_b = np.array([1.0, -2.0, 0.5]), np.array([0.0, 3.0, 0.5])
    spread_a, spread_b = np.array([1.0, 2.0, 3.0]), np.array([4.0, 0.5, 3.0])
    expected = ((mean_a - mean_b) ** 2).sum() + ((spread_a - spread_b) ** 2).sum()
    a, b = exactly(mean_a, np.diag(spread_a)), exactly(mean_b, np.diag(spread_b))
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-12)


def test_covariances_that_do_not_commute():
    """For 2×2 matrices the trace of a root is √(trace + 2 √determinant)."""
    root_a, root_b = np.array([[2.0, 0.0], [1.0, 0.5]]), np.array([[0.3, -1.0], [1.5, 0.7]])
    a, b = root_a @ root_a.T, root_b @ root_b.T
    root_trace = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
    expected = np.trace(a) + np.trace(b) - 2 * root_trace
    assert frechet_distance(exactly([0, 0], root_a), exactly([0, 0], root_b)) == pytest.approx(expected, rel=1e-10)


def test_fewer_samples_than_numbers_give_no_noise():
    """Two samples each: covariances u uᵀ and v vᵀ, whose product's root has the trace |u·v|."""
    random = np.random.default_rng(0)
    u, v = random.normal(size=(2, 64))
    a, b = statistics(np.stack([u, -u]) / np.sqrt(2)), statistics(np.stack([v, -v]) / np.sqrt(2))
    assert frechet_distance(a, b) == pytest.approx(u @ u + v @ v - 2 * abs(u @ v), rel=1e-10)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-10)


def test_statistics_refuse_what_has_no_covariance():
    one = statistics(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="at least 2 samples, there are 1"):
        frechet_distance(one, statistics(np.zeros((2, 3))))
    with pytest.raises(ValueError, match="of 3 and of 4 numbers"):
        frechet_distance(one, Statistics(4))
    with pytest.raises(ValueError, match="do not merge"):
        one.merge(Statistics(4))
    with pytest.raises(ValueError, match=r"expected features \[N, 3\], got \[2, 4\]"):
        one.add(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="not finite"):
        one.add(torch.tensor([[0.0, torch.nan, 0.0]]))
    assert one.count == 1


# --- Inception ---

# Kind of block: "name inputs outputs height width" of its convolutions; i is the block's input, w and p its own widths.
FIVE = """branch1x1 i 64 1 1; branch5x5_1 i 48 1 1; branch5x5_2 48 64 5 5; branch3x3dbl_1 i 64 1 1;
    branch3x3dbl_2 64 96 3 3; branch3x3dbl_3 96 96 3 3; branch_pool i p 1 1"""
TO_17 = "branch3x3 i 384 3 3; branch3x3dbl_1 i 64 1 1; branch3x3dbl_2 64 96 3 3; branch3x3dbl_3 96 96 3 3"
SIX = """branch1x1 i 192 1 1; branch7x7_1 i w 1 1; branch7x7_2 w w 1 7; branch7x7_3 w 192 7 1;
    branch7x7dbl_1 i w 1 1; branch7x7dbl_2 w w 7 1; branch7x7dbl_3 w w 1 7; branch7x7dbl_4 w w 7 1; branch7x7dbl_5 w 192 1 7;
    branch_pool i 192 1 1"""
TO_8 = """branch3x3_1 i 192 1 1; branch3x3_2 192 320 3 3; branch7x7x3_1 i 192 1 1; branch7x7x3_2 192 192 1 7;
    branch7x7x3_3 192 192 7 1; branch7x7x3_4 192 192 3 3"""
SEVEN = """branch1x1 i 320 1 1; branch3x3_1 i 384 1 1; branch3x3_2a 384 384 1 3; branch3x3_2b 384 384 3 1;
    branch3x3dbl_1 i 448 1 1; branch3x3dbl_2 448 384 3 3; branch3x3dbl_3a 384 384 1 3; branch3x3dbl_3b 384 384 3 1;
    branch_pool i 192 1 1"""
STEM = {"1a_3x3": (3, 32, 3), "2a_3x3": (32, 32, 3), "2b_3x3": (32, 64, 3), "3b_1x1": (64, 80, 1), "4a_3x3": (80, 192, 3)}
BLOCKS = {
    "5b": (FIVE, 192, 0, 32), "5c": (FIVE, 256, 0, 64), "5d": (FIVE, 288, 0, 64), "6a": (TO_17, 288, 0, 0),
    "6b": (SIX, 768, 128, 0), "6c": (SIX, 768, 160, 0), "6d": (SIX, 768, 160, 0), "6e": (SIX, 768, 192, 0),
    "7a": (TO_8, 768, 0, 0), "7b": (SEVEN, 1280, 0, 0), "7c": (SEVEN, 2048, 0, 0),
}  # fmt: skip


def kernel_shapes():
    shapes = {f"Conv2d_{name}": (outputs, inputs, side, side) for name, (inputs, outputs, side) in STEM.items()}
    for block, (rows, i, w, p) in BLOCKS.items():
        for row in rows.split(";"):
            name, *sizes = row.split()
            inputs, outputs, height, width = (int({"i": i, "w": w, "p": p}.get(size, size)) for size in sizes)
            shapes[f"Mixed_{block}.{name}"] = (outputs, inputs, height, width)
    return shapes


@pytest.fixture(scope="module")
def published():
    """A state dict of the published names and shapes with random values."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in kernel_shapes().items():
        tensors[name + ".conv.weight"] = torch.randn(shape, generator=generator) * (2 / np.prod(shape[1:])) ** 0.5
        for kind, low, high in (
            ("weight", 0.8, 1.2),
            ("bias", -0.1, 0.1),
            ("running_mean", -0.1, 0.1),
            ("running_var", 0.7, 1.4),
        ):
            tensors[f"{name}.bn.{kind}"] = torch.rand(shape[0], generator=generator) * (high - low) + low
    tensors["fc.weight"], tensors["fc.bias"] = torch.zeros(1008, 2048), torch.zeros(1008)
    return tensors


@pytest.fixture(scope="module")
def inception(published, tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    torch.save(published, path)
    return InceptionFeatures.load(path)


def inception_by_hand(tensors, x):
    """The network written out call by call; the widths are in the weights."""

    def c(name, x, stride=1, padding=(0, 0)):
        mean, variance, weight, bias = (
            tensors[f"{name}.bn.{kind}"].view(1, -1, 1, 1) for kind in ("running_mean", "running_var", "weight", "bias")
        )
        x = F.conv2d(x, tensors[name + ".conv.weight"], stride=stride, padding=padding)
        return torch.relu((x - mean) / torch.sqrt(variance + 0.001) * weight + bias)

    def average(x):
        ones = torch.ones_like(x[:, :1])
        return F.avg_pool2d(x, 3, 1, 1) / F.avg_pool2d(ones, 3, 1, 1)

    row3, column3, row7, column7 = (0, 1), (1, 0), (0, 3), (3, 0)
    x = c("Conv2d_2b_3x3", c("Conv2d_2a_3x3", c("Conv2d_1a_3x3", x, 2)), 1, (1, 1))
    x = c("Conv2d_4a_3x3", c("Conv2d_3b_1x1", F.max_pool2d(x, 3, 2)))
    x = F.max_pool2d(x, 3, 2)
    for block, (kind, *_) in BLOCKS.items():
        b = f"Mixed_{block}.branch"
        if kind is FIVE:
            five = c(b + "5x5_2", c(b + "5x5_1", x), 1, (2, 2))
            three = c(b + "3x3dbl_3", c(b + "3x3dbl_2", c(b + "3x3dbl_1", x), 1, (1, 1)), 1, (1, 1))
            parts = [c(b + "1x1", x), five, three, c(b + "_pool", average(x))]
        elif kind is TO_17:
            three = c(b + "3x3dbl_3", c(b + "3x3dbl_2", c(b + "3x3dbl_1", x), 1, (1, 1)), 2)
            parts = [c(b + "3x3", x, 2), three, F.max_pool2d(x, 3, 2)]
        elif kind is SIX:
            seven = c(b + "7x7_3", c(b + "7x7_2", c(b + "7x7_1", x), 1, row7), 1, column7)
            twice = c(b + "7x7dbl_3", c(b + "7x7dbl_2", c(b + "7x7dbl_1", x), 1, column7), 1, row7)
            twice = c(b + "7x7dbl_5", c(b + "7x7dbl_4", twice, 1, column7), 1, row7)
            parts = [c(b + "1x1", x), seven, twice, c(b + "_pool", average(x))]
        elif kind is TO_8:
            seven = c(b + "7x7x3_3", c(b + "7x7x3_2", c(b + "7x7x3_1", x), 1, row7), 1, column7)
            parts = [c(b + "3x3_2", c(b + "3x3_1", x), 2), c(b + "7x7x3_4", seven, 2), F.max_pool2d(x, 3, 2)]
        else:
            three = c(b + "3x3_1", x)
            twice = c(b + "3x3dbl_2", c(b + "3x3dbl_1", x), 1, (1, 1))
            pooled = F.max_pool2d(x, 3, 1, 1) if block == "7c" else average(x)
            parts = [c(b + "1x1", x), c(b + "3x3_2a", three, 1, row3), c(b + "3x3_2b", three, 1, column3)]
            parts += [c(b + "3x3dbl_3a", twice, 1, row3), c(b + "3x3dbl_3b", twice, 1, column3), c(b + "_pool", pooled)]
        x = torch.cat(parts, 1)
    return x.mean((2, 3))


def test_inception_is_the_published_network(inception, published):
    pixels = torch.rand(3, 3, 299, 299, generator=torch.Generator().manual_seed(1)) * 2 - 1
    features = inception(pixels)
    assert features.shape == (3, 2048) and features.dtype == torch.float32 and not features.requires_grad
    torch.testing.assert_close(features, inception_by_hand(published, pixels), rtol=1e-3, atol=1e-3)
    one_by_one = torch.cat([inception(pixels[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(features, one_by_one, rtol=1e-4, atol=1e-4)
    assert features.std(0).mean() > 1e-3


def test_inception_resizes_without_antialiasing(inception):
    small = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(2)) * 2 - 1
    resized = F.interpolate(small, size=(299, 299), mode="bilinear", align_corners=False, antialias=False)
    torch.testing.assert_close(inception(small), inception(resized))


def test_inceptions_size(inception):
    """torchvision gives 27,161,264 parameters for its network of the same trunk, of which a classifier of 1000 and the
    auxiliary one (convolutions 768→128 and, 5×5, 128→768, and a classifier) are not the trunk's."""
    classifier = 2048 * 1000 + 1000
    auxiliary = (768 * 128 + 2 * 128) + (25 * 128 * 768 + 2 * 768) + (768 * 1000 + 1000)
    trunk = sum(int(np.prod(shape)) + 2 * shape[0] for shape in kernel_shapes().values())
    assert trunk == 27_161_264 - classifier - auxiliary == 21_785_568
    assert sum(p.numel() for p in inception.parameters()) == trunk
    assert not inception.training and not any(p.requires_grad for p in inception.parameters())


def test_inception_reads_safetensors(inception, published, tmp_path):
    save_file(published, tmp_path / "inception.safetensors")
    loaded = InceptionFeatures.load(tmp_path / "inception.safetensors").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in inception.state_dict().items())


def test_other_weights_are_refused(published, inception, tmp_path):
    path = tmp_path / "other.pth"
    with pytest.raises(FileNotFoundError, match="does not exist"):
        InceptionFeatures.load(path)
    small = {name: value for name, value in published.items() if name.startswith(("fc", "Conv2d_1a"))}
    torch.save({**small, "fc.weight": torch.zeros(1000, 2048)}, path)
    with pytest.raises(ValueError, match=r"fc\.weight is \[1000, 2048\], not \[1008, 2048\].*give pytorch-fid's weights"):
        InceptionFeatures.load(path)
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, path)
    with pytest.raises(ValueError, match=r"fc\.weight is missing"):
        InceptionFeatures.load(path)
    torch.save(small, path)
    with pytest.raises(ValueError, match=r"other\.pth has no tensor 'Conv2d_2a_3x3\.conv\.weight'"):
        InceptionFeatures.load(path)
    torch.save({**small, "Conv2d_1a_3x3.conv.weight": torch.zeros(32, 3, 5, 5)}, path)
    with pytest.raises(ValueError, match=r"Conv2d_1a_3x3\.conv\.weight is \[32, 3, 5, 5\], not \[32, 3, 3, 3\]"):
        InceptionFeatures.load(path)
    with pytest.raises(ValueError, match=r"takes \[B, 3, H, W\]"):
        inception(torch.zeros(3, 32, 32))
