"""TokenFlow's pixel encoder and decoder: the VQGAN family's CNN, parameter for parameter.

Written from the published definitions (Esser et al. 2021, arXiv 2012.09841; TokenFlow 2412.03069 and its code): residual
blocks, attention after each block of the lowest resolution, residual–attention–residual in the middle, GroupNorm of 32
groups. It is kept apart from `patch`, whose CNN is shaped for CPUs, so that published weights are a renaming away
(`tokenflow`). The cost of being exact is its first stage: convolutions at full resolution, most of the time and memory.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from nextflow_tokenize.config.vision import VisionTokenizerConfig
from nextflow_tokenize.vision.networks.patch import ResBlock, branch_side, resized

GROUPS = 32


class Attention(nn.Module):
    """Single-head self-attention over all positions, around a skip; [B, C, H, W] to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels, eps=1e-6)
        self.q, self.k = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)
        self.v, self.proj_out = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same."""
        normed = self.norm(x)
        q, k, v = (part(normed).flatten(2).transpose(1, 2).unsqueeze(1) for part in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v).squeeze(1)
        out: Tensor = x + self.proj_out(mixed.transpose(1, 2).reshape(x.shape))
        return out


class Downsample(nn.Module):
    """Stride-2 convolution on an image padded below and on the right only; [B, C, H, W] to [B, C, H/2, W/2]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C, H/2, W/2]."""
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return out


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a convolution; [B, C, H, W] to [B, C, 2H, 2W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C, 2H, 2W]."""
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class Stage(nn.Module):
    """The blocks of one resolution and the step to the next."""

    def __init__(self, inputs: int, outputs: int, blocks: int, attention: bool, resample: nn.Module) -> None:
        super().__init__()
        self.res = nn.ModuleList(ResBlock(outputs if i else inputs, outputs) for i in range(blocks))
        self.attn = nn.ModuleList(Attention(outputs) for _ in range(blocks if attention else 0))
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        """[B, C_in, H, W] to [B, C_out, H', W']."""
        for index, block in enumerate(self.res):
            x = block(x)
            if len(self.attn):
                x = self.attn[index](x)
        out: Tensor = self.resample(x)
        return out


def _middle(width: int) -> nn.Sequential:
    return nn.Sequential(ResBlock(width, width), Attention(width), ResBlock(width, width))


class VqganEncoder(nn.Module):
    """[B, 3, 16·H, 16·W] in [−1, 1], or [B, 3, S, S] with an `image_side` S, to [B, pixel_dim, H, W].

    Raises ValueError for settings without residual blocks: widths change in them alone.
    """

    linear: nn.Conv2d | None = None

    def __init__(self, config: VisionTokenizerConfig) -> None:
        super().__init__()
        if config.res_blocks < 1:
            raise ValueError("network: vqgan changes widths in its residual blocks: res_blocks must be at least 1, not 0")
        self.side = branch_side(config)
        widths = [config.channels * factor for factor in config.channel_mult]
        self.conv_in = nn.Conv2d(3, config.channels, 3, padding=1)
        stages = []
        for level, (inputs, outputs) in enumerate(zip([config.channels, *widths], widths, strict=False)):
            lowest = level == len(widths) - 1
            resample = nn.Identity() if lowest else Downsample(outputs)
            stages.append(Stage(inputs, outputs, config.res_blocks, lowest, resample))
        self.stages = nn.Sequential(*stages)
        self.mid = _middle(widths[-1])
        self.norm_out = nn.GroupNorm(GROUPS, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], config.z_channels, 3, padding=1)
        self.quant_conv = nn.Conv2d(config.z_channels, config.pixel_dim, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, 16·H, 16·W] to [B, pixel_dim, H, W]."""
        x = self.mid(self.stages(self.conv_in(resized(pixels, self.side))))
        out: Tensor = self.quant_conv(self.conv_out(F.silu(self.norm_out(x))))
        return out


class VqganDecoder(nn.Module):
    """[B, pixel_dim, H, W] to [B, 3, 16·H, 16·W], or [B, 3, S, S] with an `image_side` S, about [−1, 1] (not clamped).

    It has one residual block a resolution more than `decoder_res_blocks`, as the published ones have. TokenFlow's enhanced
    decoder, NextFlow's third stage: decoder_channels 256 and decoder_res_blocks 4.
    """

    linear: nn.ConvTranspose2d | None = None

    def __init__(self, config: VisionTokenizerConfig) -> None:
        super().__init__()
        self.side = config.image_side
        widths: Sequence[int] = [config.decoder_channels * factor for factor in config.channel_mult][::-1]
        self.post_quant_conv = nn.Conv2d(config.pixel_dim, config.z_channels, 1)
        self.conv_in = nn.Conv2d(config.z_channels, widths[0], 3, padding=1)
        self.mid = _middle(widths[0])
        stages = []
        for level, (inputs, outputs) in enumerate(zip([widths[0], *widths], widths, strict=False)):
            resample = nn.Identity() if level == len(widths) - 1 else Upsample(outputs)
            stages.append(Stage(inputs, outputs, config.decoder_res_blocks + 1, level == 0, resample))
        self.stages = nn.Sequential(*stages)
        self.norm_out = nn.GroupNorm(GROUPS, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """[B, pixel_dim, H, W] to [B, 3, 16·H, 16·W]."""
        x = self.stages(self.mid(self.conv_in(self.post_quant_conv(features))))
        return resized(self.conv_out(F.silu(self.norm_out(x))), self.side)
