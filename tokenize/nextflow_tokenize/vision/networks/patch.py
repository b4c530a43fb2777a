"""The networks of both branches: a convolutional pixel encoder and decoder, and small heads around the semantic teacher.

The pixel branch has the shape of TokenFlow's (the VQGAN family: residual blocks, stride-2 convolutions, optional attention
at the lowest resolution), with two settings of our own for CPUs: a space-to-depth patch before the first convolution, so
that no convolution runs at full resolution, and a linear patch projection beside the network that can be started at the
principal components. The semantic encoder reads the teacher's features, as TokenFlow's trainable encoder starts as its
frozen teacher. The published networks themselves are `vqgan` and `siglip`.
"""

from __future__ import annotations

from collections import OrderedDict
from math import gcd

from torch import Tensor, nn
from torch.nn import functional as F

from nextflow_tokenize.config.vision import VisionTokenizerConfig
from nextflow_tokenize.schedule import PIXELS_PER_TOKEN


def branch_side(config: VisionTokenizerConfig) -> int | None:
    """Pixels a side that the pixel branch works on where images have another size (`image_side`), else None."""
    return PIXELS_PER_TOKEN * config.sides[-1] if config.image_side is not None and config.sides else None


def resized(pixels: Tensor, side: int | None) -> Tensor:
    """[B, C, h, w] resized to `side` by `side` pixels, bicubic without antialiasing as TokenFlow does; None: as it is."""
    if side is None or pixels.shape[-2:] == (side, side):
        return pixels
    return F.interpolate(pixels, size=(side, side), mode="bicubic")


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(gcd(32, channels), channels, eps=1e-6)


class ResBlock(nn.Module):
    """Norm, SiLU, convolution, twice, around a skip; [B, C_in, H, W] to [B, C_out, H, W]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2, self.conv2 = _norm(outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C_in, H, W] to [B, C_out, H, W]."""
        return self.skip(x) + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


class Attention(nn.Module):
    """Single-head self-attention over all positions, around a skip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = (
            _norm(channels),
            nn.Conv2d(channels, 3 * channels, 1),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same."""
        q, k, v = (part.flatten(2).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, dim=1))
        mixed = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(mixed.transpose(1, 2).view_as(x))


def _middle(channels: int, attention: bool) -> nn.Sequential:
    layers: list[nn.Module] = [ResBlock(channels, channels)]
    if attention:
        layers += [Attention(channels), ResBlock(channels, channels)]
    return nn.Sequential(*layers)


class PixelEncoder(nn.Module):
    """[B, 3, 16·H, 16·W] in [−1, 1], or [B, 3, S, S] with an `image_side` S, to [B, pixel_dim, H, W]."""

    def __init__(self, config: VisionTokenizerConfig) -> None:
        super().__init__()
        self.side = branch_side(config)
        widths = [config.channels * m for m in config.channel_mult]
        layers: list[nn.Module] = [nn.PixelUnshuffle(config.patch), nn.Conv2d(3 * config.patch**2, widths[0], 3, padding=1)]
        width = widths[0]
        for level, target in enumerate(widths):
            if level:
                layers.append(nn.Conv2d(width, target, 3, stride=2, padding=1))
                width = target
            layers += [ResBlock(width, width) for _ in range(config.res_blocks)]
        last = nn.Conv2d(width, config.pixel_dim, 1)
        layers += [_middle(width, config.attention), _norm(width), nn.SiLU(), last]
        self.body = nn.Sequential(*layers)
        self.linear = (
            nn.Conv2d(3, config.pixel_dim, PIXELS_PER_TOKEN, stride=PIXELS_PER_TOKEN) if config.linear_skip else None
        )
        if self.linear is not None:
            nn.init.zeros_(last.weight)  # the network starts as a correction of nothing
            nn.init.zeros_(last.bias)  # type: ignore[arg-type]

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, 16·H, 16·W] to [B, pixel_dim, H, W]."""
        pixels = resized(pixels, self.side)
        out: Tensor = self.body(pixels)
        return out if self.linear is None else out + self.linear(pixels)


class PixelDecoder(nn.Module):
    """[B, pixel_dim, H, W] to [B, 3, 16·H, 16·W], or [B, 3, S, S] with an `image_side` S, about [−1, 1] (not clamped)."""

    def __init__(self, config: VisionTokenizerConfig) -> None:
        super().__init__()
        self.image_side = config.image_side
        widths = [config.decoder_channels * m for m in config.channel_mult]
        width = widths[-1]
        layers: dict[str, nn.Module] = {
            "first": nn.Conv2d(config.pixel_dim, width, 3, padding=1),
            "middle": _middle(width, config.attention),
        }
        # Named and not numbered, so that a deeper decoder finds a shallower one's weights under the same names.
        for level in reversed(range(len(widths))):
            layers |= {f"level{level}_block{n}": ResBlock(width, width) for n in range(config.decoder_res_blocks)}
            if level:
                target = widths[level - 1]
                # A 1×1 convolution and depth-to-space: as many weights as it needs and no checkerboard of a strided one.
                layers |= {f"level{level}_up": nn.Conv2d(width, 4 * target, 1), f"level{level}_shuffle": nn.PixelShuffle(2)}
                width = target
        last = nn.Conv2d(width, 3 * config.patch**2, 3, padding=1)
        layers |= {"norm": _norm(width), "act": nn.SiLU(), "last": last, "shuffle": nn.PixelShuffle(config.patch)}
        self.body = nn.Sequential(OrderedDict(layers))
        side = PIXELS_PER_TOKEN
        self.linear = nn.ConvTranspose2d(config.pixel_dim, 3, side, stride=side) if config.linear_skip else None
        if self.linear is not None:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> Tensor:
        """[B, pixel_dim, H, W] to [B, 3, 16·H, 16·W]."""
        out: Tensor = self.body(features)
        return resized(out if self.linear is None else out + self.linear(features), self.image_side)


class SemanticEncoder(nn.Module):
    """Teacher features to semantic features: a residual block, then TokenFlow's Linear–Tanh–Linear head, all by position."""

    def __init__(self, teacher_dim: int, config: VisionTokenizerConfig) -> None:
        super().__init__()
        width = config.semantic_channels
        self.inputs, self.block = nn.Conv2d(teacher_dim, width, 1), ResBlock(width, width)
        self.head = nn.Sequential(nn.Conv2d(width, width, 1), nn.Tanh(), nn.Conv2d(width, config.semantic_dim, 1))

    def forward(self, features: Tensor) -> Tensor:
        """[B, teacher_dim, H, W] to [B, semantic_dim, H, W]."""
        out: Tensor = self.head(self.block(self.inputs(features)))
        return out


class SemanticDecoder(nn.Module):
    """Quantised features of `inputs` channels back to the teacher's, where the cosine loss is taken."""

    def __init__(self, inputs: int, teacher_dim: int, config: VisionTokenizerConfig) -> None:
        super().__init__()
        width = config.semantic_channels
        self.inputs, self.block = nn.Conv2d(inputs, width, 1), ResBlock(width, width)
        self.head = nn.Sequential(nn.Conv2d(width, width, 1), nn.Tanh(), nn.Conv2d(width, teacher_dim, 1))

    def forward(self, features: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, teacher_dim, H, W]."""
        out: Tensor = self.head(self.block(self.inputs(features)))
        return out
