"""The Inception network that FID is defined by, in plain torch.

FID's numbers belong to one set of weights: Inception v3 (Szegedy et al. 2015, arXiv 1512.00567) as TensorFlow published it
on 2015-12-05, in the layout of pytorch-fid's file (pt_inception-2015-12-05-6726825d.pth). It differs from torchvision's
network of the same names in its weights and its pooling: average pools do not count the padding, and the last block has a
max pool where the paper has an average. The layers stand in a table, since little but their sizes differs. The cost of FID's
definition is a resize to 299×299 without antialiasing, which aliases the detail of larger images.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from nextflow_data.common.errors import RequestError
from torch import Tensor, nn
from torch.nn import functional as F

from nextflow_tokenize.vision.tensor_files import fill, state_dict_of

DIM = 2048
SIDE = 299
"""Pixels a side that the network was trained on."""
CLASSES = 1008
"""Outputs of the port's classifier; torchvision's network has 1000."""
EXPECTED = "pytorch-fid's weights (pt_inception-2015-12-05-6726825d.pth)"


class _Layer(NamedTuple):
    """A convolution with BatchNorm and ReLU. With stride 1 it keeps the size; with stride 2 it has no padding."""

    outputs: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    fork: bool = False
    """Two convolutions side by side, 1×3 and 3×1, joined by channel."""


class _Block(NamedTuple):
    """Branches over one input, joined by channel in this order, the pooled one last."""

    branches: dict[str, tuple[_Layer, ...]]
    pool: str
    """average or max: then a 1×1 convolution to `pooled` channels; reduce: a max pool with stride 2 and nothing after."""
    pooled: int = 0


def _five(pooled: int) -> _Block:
    three = _Layer(96, (3, 3))
    branches = {
        "branch1x1": (_Layer(64),),
        "branch5x5": (_Layer(48), _Layer(64, (5, 5))),
        "branch3x3dbl": (_Layer(64), three, three),
    }
    return _Block(branches, "average", pooled)


def _six(width: int) -> _Block:
    row, column = _Layer(width, (1, 7)), _Layer(width, (7, 1))
    branches = {
        "branch1x1": (_Layer(192),),
        "branch7x7": (_Layer(width), row, _Layer(192, (7, 1))),
        "branch7x7dbl": (_Layer(width), column, row, column, _Layer(192, (1, 7))),
    }
    return _Block(branches, "average", 192)


def _seven(pool: str) -> _Block:
    branches = {
        "branch1x1": (_Layer(320),),
        "branch3x3": (_Layer(384), _Layer(384, fork=True)),
        "branch3x3dbl": (_Layer(448), _Layer(384, (3, 3)), _Layer(384, fork=True)),
    }
    return _Block(branches, pool, 192)


_REDUCE_TO_17 = _Block(
    {
        "branch3x3": (_Layer(384, (3, 3), 2),),
        "branch3x3dbl": (_Layer(64), _Layer(96, (3, 3)), _Layer(96, (3, 3), 2)),
    },
    "reduce",
)
_REDUCE_TO_8 = _Block(
    {
        "branch3x3": (_Layer(192), _Layer(320, (3, 3), 2)),
        "branch7x7x3": (_Layer(192), _Layer(192, (1, 7)), _Layer(192, (7, 1)), _Layer(192, (3, 3), 2)),
    },
    "reduce",
)
_BLOCKS = {
    "Mixed_5b": _five(32),
    "Mixed_5c": _five(64),
    "Mixed_5d": _five(64),
    "Mixed_6a": _REDUCE_TO_17,
    "Mixed_6b": _six(128),
    "Mixed_6c": _six(160),
    "Mixed_6d": _six(160),
    "Mixed_6e": _six(192),
    "Mixed_7a": _REDUCE_TO_8,
    "Mixed_7b": _seven("average"),
    "Mixed_7c": _seven("max"),
}


class _Conv(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int], stride: int, padding: tuple[int, int]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class _Mixed(nn.Module):
    def __init__(self, inputs: int, block: _Block) -> None:
        super().__init__()
        self.pool = block.pool
        self.routes: list[list[tuple[str, ...]]] = []
        """For each branch its steps, each the names of the convolutions side by side."""
        self.outputs = block.pooled or inputs
        for branch, layers in block.branches.items():
            width, route = inputs, []
            for number, layer in enumerate(layers, 1):
                stem = f"{branch}_{number}" if len(layers) > 1 else branch
                kernels = {stem + "a": (1, 3), stem + "b": (3, 1)} if layer.fork else {stem: layer.kernel}
                for name, (h, w) in kernels.items():
                    padding = (h // 2, w // 2) if layer.stride == 1 else (0, 0)
                    self.add_module(name, _Conv(width, layer.outputs, (h, w), layer.stride, padding))
                width = layer.outputs * len(kernels)
                route.append(tuple(kernels))
            self.routes.append(route)
            self.outputs += width
        if block.pooled:
            self.add_module("branch_pool", _Conv(inputs, block.pooled, (1, 1), 1, (0, 0)))

    def forward(self, x: Tensor) -> Tensor:
        found: list[Tensor] = []
        for route in self.routes:
            out = x
            for names in route:
                out = torch.cat([self.get_submodule(name)(out) for name in names], dim=1)
            found.append(out)
        if self.pool == "reduce":
            found.append(F.max_pool2d(x, 3, stride=2))
        elif self.pool == "max":
            found.append(self.get_submodule("branch_pool")(F.max_pool2d(x, 3, stride=1, padding=1)))
        else:
            pooled = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
            found.append(self.get_submodule("branch_pool")(pooled))
        return torch.cat(found, dim=1)


class InceptionFeatures(nn.Module):
    """The 2048 numbers of FID's Inception after its last average pool ("pool_3"). Frozen; made by `load`."""

    dim = DIM

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, 32, (3, 3), 2, (0, 0))
        self.Conv2d_2a_3x3 = _Conv(32, 32, (3, 3), 1, (0, 0))
        self.Conv2d_2b_3x3 = _Conv(32, 64, (3, 3), 1, (1, 1))
        self.Conv2d_3b_1x1 = _Conv(64, 80, (1, 1), 1, (0, 0))
        self.Conv2d_4a_3x3 = _Conv(80, 192, (3, 3), 1, (0, 0))
        width = 192
        for name, block in _BLOCKS.items():
            mixed = _Mixed(width, block)
            self.add_module(name, mixed)
            width = mixed.outputs
        self.requires_grad_(False).eval()

    @classmethod
    def load(cls, path: Path) -> InceptionFeatures:
        """Read pytorch-fid's weights, .pth or .safetensors.

        The classifier is not used, but must be there: its 1008 outputs tell these weights from torchvision's, which have the
        same names and would give another distance. Raises FileNotFoundError for a missing file and ValueError, naming the
        key, for one that is not these weights.
        """
        tensors = state_dict_of(path)
        classifier = tensors.get("fc.weight")
        if classifier is None or classifier.shape != (CLASSES, DIM):
            found = "missing" if classifier is None else str(list(classifier.shape))
            raise RequestError(f"{path}: fc.weight is {found}, not [{CLASSES}, {DIM}]: these are not FID's; give {EXPECTED}")
        model = cls()
        fill(model, tensors, path, EXPECTED)
        return model

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] in [−1, 1] to float32 [B, 2048], without a gradient. Raises ValueError for another shape.

        Resized to 299×299 by bilinear interpolation without antialiasing, as pytorch-fid does. Pixels are taken as they are:
        published distances were measured on files, so round to 8 bits first to compare with them.
        """
        if pixels.dim() != 4 or pixels.shape[1] != 3:
            raise ValueError(f"Inception takes [B, 3, H, W], got {list(pixels.shape)}")
        with torch.autocast(pixels.device.type, enabled=False):
            x = F.interpolate(pixels.float(), size=(SIDE, SIDE), mode="bilinear", align_corners=False)
            x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
            x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
            x = F.max_pool2d(x, 3, stride=2)
            for name in _BLOCKS:
                x = self.get_submodule(name)(x)
            return x.mean(dim=(2, 3))
