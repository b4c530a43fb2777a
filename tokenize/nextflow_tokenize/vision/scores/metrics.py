"""How alike images are, one by one (SSIM) and as sets (Fréchet distance).

SSIM is scikit-image's with the window of the paper. TokenFlow's script measures with scikit-image's other default, a uniform
window of 7×7, so its published SSIM is not the same number. The Fréchet distance takes features of any kind: with
`InceptionFeatures` it is FID. It needs no sample in memory, but is biased upwards for few of them: compare only distances of
equally many images, and no fewer than the features have numbers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def psnr(image: Tensor, target: Tensor) -> float:
    """Peak signal to noise ratio in dB of images in [−1, 1] (peak 2), both rounded to 8 bits as a viewer sees them."""
    levels = [((x + 1) * 127.5).round().clamp(0, 255) for x in (image, target)]
    error = float((levels[0] - levels[1]).square().mean())
    return 10 * math.log10(255**2 / max(error, 1e-10))


def ssim(image: Tensor, target: Tensor) -> float:
    """Structural similarity of two images, [3, H, W] or [1, 3, H, W] in [−1, 1], sides of 11 or more; 1 for equal ones.

    Both are rounded to 8 bits first, as in `psnr`. Wang et al. 2004, section III-C: a Gaussian window of 11×11 with σ = 1.5
    and population covariances, K1 = 0.01, K2 = 0.03, data range 255; by channel of RGB, the mean of the three, over the
    positions whose window lies in the image. Raises ValueError for other shapes.
    """
    from skimage.metrics import structural_similarity

    planes = [x[0] if x.dim() == 4 and len(x) == 1 else x for x in (image, target)]
    if planes[0].shape != planes[1].shape or planes[0].dim() != 3 or len(planes[0]) != 3 or min(planes[0].shape[1:]) < 11:
        raise ValueError(
            f"SSIM compares two images [3, H, W] of one shape, sides of 11 or more: got {list(image.shape)} and "
            f"{list(target.shape)}"
        )
    levels = [((x.detach().cpu().double() + 1) * 127.5).round().clamp(0, 255).numpy() for x in planes]
    value = structural_similarity(
        *levels,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
        channel_axis=0,
        K1=0.01,
        K2=0.03,
    )
    return float(value)


class Statistics:
    """Count, mean and covariance of features [N, dim] that come in batches, in float64 on the CPU.

    The centred sums of two parts are joined by the formula of Chan, Golub and LeVeque 1979, so that nothing is lost where
    the mean is far larger than the deviation, and the order of batches does not matter but for rounding.
    """

    def __init__(self, dim: int) -> None:
        if dim < 1:
            raise ValueError(f"features have at least one number each: dim is {dim}")
        self.dim, self.count = dim, 0
        self.mean = torch.zeros(dim, dtype=torch.float64)
        """[dim], zeros before the first sample."""
        self._centred = torch.zeros(dim, dim, dtype=torch.float64)

    def add(self, features: Tensor) -> None:
        """Take in [N, dim]; none is allowed. Raises ValueError for another shape and for values that are not finite."""
        if features.dim() != 2 or features.shape[1] != self.dim:
            raise ValueError(f"expected features [N, {self.dim}], got {list(features.shape)}")
        rows = features.detach().cpu().double()
        if not bool(torch.isfinite(rows).all()):
            raise ValueError("features that are not finite cannot be averaged: look for the image that gives them")
        if len(rows):
            mean = rows.mean(0)
            rows = rows - mean
            self._join(len(rows), mean, rows.t() @ rows)

    def merge(self, other: Statistics) -> None:
        """Take in all samples of `other`, which stays as it is. Raises ValueError for another dim."""
        if other.dim != self.dim:
            raise ValueError(f"statistics of {other.dim} numbers do not merge with those of {self.dim}")
        if other.count:
            self._join(other.count, other.mean, other._centred)

    def covariance(self) -> Tensor:
        """Sample covariance [dim, dim], over count − 1 as numpy.cov and FID have it. Raises ValueError below 2 samples."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 samples, there are {self.count}: give more images")
        return self._centred / (self.count - 1)

    def _join(self, count: int, mean: Tensor, centred: Tensor) -> None:
        total = self.count + count
        shift = mean - self.mean
        self.mean = self.mean + shift * (count / total)
        self._centred = self._centred + centred + torch.outer(shift, shift) * (self.count * count / total)
        self.count = total


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """‖μ_a − μ_b‖² + Tr(C_a + C_b − 2 (C_a C_b)^½), the squared Fréchet distance of two Gaussians (Heusel et al. 2017,
    arXiv 1706.08500); with Inception's features, FID.

    The trace of the root is the sum of the singular values of C_a^½ C_b^½, which exists and is exact to rounding where fewer
    samples than numbers leave the covariances singular; the usual root of the product needs an offset there. Raises
    ValueError below 2 samples on either side and for features of different sizes.
    """
    if a.dim != b.dim:
        raise ValueError(f"features of {a.dim} and of {b.dim} numbers cannot be compared: use one network for both sets")
    first, second = a.covariance(), b.covariance()
    root_trace = torch.linalg.svdvals(_root(first) @ _root(second)).sum()
    distance = (a.mean - b.mean).square().sum() + first.trace() + second.trace() - 2 * root_trace
    return max(float(distance), 0.0)


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.t()
