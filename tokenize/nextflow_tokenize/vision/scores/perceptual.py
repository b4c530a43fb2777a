"""Perceptual distances: LPIPS, and the distance of image gradients that stands in for it without its weights.

LPIPS (Zhang et al. 2018, arXiv 1801.03924, version 0.1, VGG16) is TokenFlow's reconstruction term beside L2. It is written
here in plain torch and reads the two published files, so that neither torchvision nor the lpips package is needed. Its
weights need a download of half a gigabyte; the cost of doing without is sharpness of texture, which the stand-in does not
ask for.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from nextflow_data.common.errors import RequestError
from torch import Tensor, nn
from torch.nn import functional as F

from nextflow_tokenize.vision.tensor_files import fill, state_dict_of

SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
"""LPIPS's own mean and deviation of ImageNet's channels, for pixels in [−1, 1]."""

WIDTHS = (64, 128, 256, 512, 512)
"""Channels of VGG16's five blocks (Simonyan and Zisserman 2014, configuration D), which hold CONVOLUTIONS 3×3 each."""
CONVOLUTIONS = (2, 2, 3, 3, 3)

TRUNK_FILE = "vgg16"
LINEAR_FILE = "lpips_vgg"
SUFFIXES = (".safetensors", ".pth")
TRUNK_EXPECTED = "torchvision's VGG16 state dict (vgg16-397923af.pth)"
LINEAR_EXPECTED = "LPIPS's linear weights of version 0.1 for VGG (lpips/weights/v0.1/vgg.pth)"


class Lpips(nn.Module):
    """LPIPS with VGG16: squared differences of unit-length features at five depths, weighted by channel, averaged by place,
    summed. Frozen; made by `load`, as it means nothing without the published weights."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1), persistent=False)
        layers: list[nn.Module] = []
        taps: set[int] = set()
        width = 3
        for block, (target, count) in enumerate(zip(WIDTHS, CONVOLUTIONS, strict=True)):
            if block:
                layers.append(nn.MaxPool2d(2))
            for _ in range(count):
                layers += [nn.Conv2d(width, target, 3, padding=1), nn.ReLU()]
                width = target
            taps.add(len(layers) - 1)
        self.taps = frozenset(taps)
        # One Sequential, so that the layers have torchvision's numbers and its state dict fits by name.
        self.features = nn.Sequential(*layers)
        self.lins = nn.ModuleList(nn.Conv2d(channels, 1, 1, bias=False) for channels in WIDTHS)
        self.requires_grad_(False).eval()

    @classmethod
    def load(cls, path: Path) -> Lpips:
        """Read the weights from a folder with `vgg16` (torchvision's state dict; its classifier is not used) and `lpips_vgg`
        (LPIPS's linear weights), each as .safetensors, which is preferred, or .pth.

        Raises FileNotFoundError for a missing file; ValueError, naming the file and the key, for one that is not what it
        should be.
        """
        trunk, linear = _file(path, TRUNK_FILE, TRUNK_EXPECTED), _file(path, LINEAR_FILE, LINEAR_EXPECTED)
        model = cls()
        fill(nn.ModuleDict({"features": model.features}), state_dict_of(trunk), trunk, TRUNK_EXPECTED)
        weights = state_dict_of(linear)
        fill(model.lins, weights, linear, LINEAR_EXPECTED, _linear_keys(weights, linear))
        return model

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        """Distances of two batches, each [B, 3, H, W] in [−1, 1] with H and W of 16 or more: float32 [B], 0 for equal
        images. `image` gets a gradient, `target` none. Raises ValueError for other shapes."""
        if image.shape != target.shape or image.dim() != 4 or image.shape[1] != 3 or min(image.shape[2:]) < 16:
            raise ValueError(
                f"LPIPS compares two batches [B, 3, H, W] of one shape, sides of 16 or more: got {list(image.shape)} and "
                f"{list(target.shape)}"
            )
        with torch.no_grad():
            theirs = self._unit_features(target)
        distance = torch.zeros(len(image), device=image.device)
        for lin, a, b in zip(self.lins, self._unit_features(image), theirs, strict=True):
            distance = distance + lin((a - b).square()).mean(dim=(1, 2, 3))
        return distance

    def _unit_features(self, pixels: Tensor) -> list[Tensor]:
        """Features after the last ReLU of each block, each position's vector of unit length."""
        x = (pixels - self.shift) / self.scale
        found: list[Tensor] = []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self.taps:
                # Half precision has neither the range for the squares nor the digits for their difference. The norm's
                # gradient at a vector of zeros is zero, where a root's would be infinite.
                whole = x.float()
                found.append(whole / (torch.linalg.vector_norm(whole, dim=1, keepdim=True) + 1e-10))
        return found


def gradient_distance(image: Tensor, target: Tensor) -> Tensor:
    """L1 distance of horizontal and vertical differences at three octaves: edges in their place, whatever their contrast.

    [B, 3, H, W] each, H and W of 8 or more, to one number, the mean. Our choice, for runs without LPIPS's weights: it needs
    nothing learned, and asks for edges, which L2 alone blurs.
    """
    total = image.new_zeros(())
    for octave in range(3):
        if octave:
            image, target = F.avg_pool2d(image, 2), F.avg_pool2d(target, 2)
        total = total + (image.diff(dim=3) - target.diff(dim=3)).abs().mean()
        total = total + (image.diff(dim=2) - target.diff(dim=2)).abs().mean()
    return total / 6


def _file(folder: Path, stem: str, expected: str) -> Path:
    for suffix in SUFFIXES:
        path = folder / (stem + suffix)
        if path.is_file():
            return path
    names = " or ".join(stem + suffix for suffix in SUFFIXES)
    raise FileNotFoundError(f"{folder} has no {names}: put {expected} there under that name")


def _linear_keys(weights: Mapping[str, Tensor], path: Path) -> dict[str, str]:
    """The file's key for each weight of `lins`. Published files differ in the list's name and in whether a dropout, which
    does nothing here, comes first."""
    keys: dict[str, str] = {}
    for i in range(len(WIDTHS)):
        names = [f"{form}.model.{place}.weight" for form in (f"lin{i}", f"lins.{i}") for place in (1, 0)]
        name = next((name for name in names if name in weights), None)
        if name is None:
            some = ", ".join(list(weights)[:3])
            raise RequestError(f"{path} has no tensor {' or '.join(names)} (it starts with {some}): give {LINEAR_EXPECTED}")
        keys[f"{i}.weight"] = name
    return keys
