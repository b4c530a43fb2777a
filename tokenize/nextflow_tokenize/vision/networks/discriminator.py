"""The patch discriminator of adversarial training and its hinge losses.

A PatchGAN (Isola et al. 2017, arXiv 1611.07004, section 3.2) as TokenFlow and the VQGAN family use it: no decision on the
whole image but one on every patch of 70×70 pixels, so it asks for texture and leaves the layout to the other terms. Its
BatchNorm sees a whole batch: give real and made images separately, and expect noise from batches of one or two.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PatchDiscriminator(nn.Module):
    """4×4 convolutions: `layers` with stride 2, widths doubling from `channels` to at most eight times as many, then two
    with stride 1. Each logit sees 16, 34, 70, 142 … pixels a side for 1, 2, 3, 4 … layers.

    TokenFlow: channels 64, layers 3. Weights start at N(0, 0.02), as in the paper's appendix. Raises ValueError for a
    setting below 1.
    """

    def __init__(self, channels: int = 64, layers: int = 3) -> None:
        super().__init__()
        if channels < 1 or layers < 1:
            raise ValueError(f"a discriminator needs channels and layers of at least 1: got {channels} and {layers}")
        self.smallest = 3 * 2**layers
        """Least side in pixels: three positions must be left for the two convolutions without a stride."""
        body: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = channels
        for layer in range(1, layers + 1):
            target = channels * min(2**layer, 8)
            stride = 2 if layer < layers else 1
            # No bias before a BatchNorm, which has one.
            body += [nn.Conv2d(width, target, 4, stride=stride, padding=1, bias=False), nn.BatchNorm2d(target)]
            body.append(nn.LeakyReLU(0.2))
            width = target
        self.body = nn.Sequential(*body, nn.Conv2d(width, 1, 4, padding=1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)
                nn.init.zeros_(module.bias)

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] in [−1, 1] to logits [B, 1, H // 2^layers − 2, W // 2^layers − 2], high for real.

        Raises ValueError for another shape or for sides below `smallest` (24 pixels with three layers).
        """
        if pixels.dim() != 4 or pixels.shape[1] != 3 or min(pixels.shape[2:]) < self.smallest:
            raise ValueError(
                f"the discriminator takes [B, 3, H, W], sides of {self.smallest} pixels or more: got {list(pixels.shape)}"
            )
        logits: Tensor = self.body(pixels)
        return logits


def hinge_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Mean of max(0, 1 − real) and of max(0, 1 + fake), averaged; logits of any shape to one number.

    The hinge of Lim and Ye 2017 (arXiv 1705.02894), halved as VQGAN and TokenFlow do.
    """
    return (F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()) / 2


def hinge_generator_loss(fake_logits: Tensor) -> Tensor:
    """Minus the mean of the logits of made images: the generator's side of `hinge_discriminator_loss`."""
    return -torch.mean(fake_logits)
