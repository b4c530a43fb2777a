"""SigLIP as semantic encoder and teacher, and the transformer that decodes semantic codes to its features.

NextFlow §3.1: siglip2-so400m-patch16-naflex, any grid; TokenFlow: siglip-so400m-patch14-384, one square grid. Encoder and
teacher take hidden_states[-2], as TokenFlow's code does: its last layer, last norm and pooling head get no gradient and give
no result, so here they are neither built, stored nor loaded. The modules are those of transformers, which is imported only
where one is built; weights are read from a folder's safetensors by ourselves, so that nothing else is read, downloaded or
run. The cost: another major version of transformers may name its parts otherwise, and the tests compare with the installed
one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import isqrt, sqrt
from pathlib import Path
from typing import Any

import torch
from nextflow_data.common.errors import RequestError
from torch import Tensor, nn
from torch.nn import functional as F

from nextflow_tokenize.config.vision import SiglipShape
from nextflow_tokenize.vision.tensor_files import fill

FAMILIES = {
    "siglip2": "siglip2", "siglip2_vision_model": "siglip2", "siglip": "siglip", "siglip_vision_model": "siglip",
}  # fmt: skip
"""Model types of transformers: of whole models and of vision models alone."""
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def shape_of(folder: Path | str) -> SiglipShape:
    """The shape of the SigLIP vision model in `folder`, as transformers saves it: a whole model or the vision model alone.

    Raises FileNotFoundError where there is no config.json; ValueError for one that is not JSON, another model type, and
    sizes that the tokenizer cannot use.
    """
    from transformers import Siglip2VisionConfig, SiglipVisionConfig

    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give the folder of a SigLIP model as transformers saves it")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RequestError(f"{path} is not JSON ({error}): get the model again") from error
    kind = content.get("model_type") if isinstance(content, dict) else None
    family = FAMILIES.get(str(kind))
    if family is None:
        raise RequestError(f"{path} describes a model of type {kind!r}: the teacher must be one of {', '.join(FAMILIES)}")
    section = content.get("vision_config", {}) if kind in ("siglip", "siglip2") else content
    found: Any = (Siglip2VisionConfig if family == "siglip2" else SiglipVisionConfig).from_dict(section)
    if found.num_channels != 3 or not isinstance(found.patch_size, int):
        raise RequestError(f"{path}: num_channels {found.num_channels}, patch_size {found.patch_size}; want 3, one number")
    patches = found.num_patches if family == "siglip2" else (int(found.image_size) // found.patch_size) ** 2
    return SiglipShape(
        family="siglip2" if family == "siglip2" else "siglip",
        hidden_size=found.hidden_size,
        intermediate_size=found.intermediate_size,
        num_hidden_layers=found.num_hidden_layers,
        num_attention_heads=found.num_attention_heads,
        patch_size=found.patch_size,
        num_patches=patches,
        layer_norm_eps=found.layer_norm_eps,
        hidden_act=found.hidden_act,
    )


def patches_of(pixels: Tensor, patch: int) -> Tensor:
    """[B, 3, p·H, p·W] as SigLIP 2 takes it, [B, H·W, p·p·3]: patches row by row, in each row, column, channel."""
    batch, channels, height, width = pixels.shape
    cut = pixels.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, patch * patch * channels)


class SiglipTower(nn.Module):
    """A SigLIP vision model up to hidden_states[-2]: all layers but the last, and no norm after them.

    Raises ValueError where num_patches is no square number.
    """

    def __init__(self, shape: SiglipShape) -> None:
        super().__init__()
        self.shape, self.side = shape, isqrt(shape.num_patches)
        if self.side**2 != shape.num_patches:
            raise ValueError(f"SigLIP's learnt positions are a square grid: num_patches {shape.num_patches} is no square")
        model = _transformer(shape, self.side)
        self.embeddings, self.layers = model.embeddings, model.encoder.layers

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, p·H, p·W] in [−1, 1] to [B, H, W, hidden_size]; values beyond are clamped, as TokenFlow does.

        siglip2 takes any H and W; siglip its one grid, and what is left over on the right and below is not seen (27 patches
        of 14 take 378 of 384 pixels). Raises ValueError for images that fit no grid.
        """
        patch = self.shape.patch_size
        batch, _, height, width = pixels.shape
        grid = (height // patch, width // patch)
        pixels = pixels.clamp(-1, 1)
        if self.shape.family == "siglip2":
            if height % patch or width % patch:
                raise ValueError(f"images of {height}×{width} pixels are no whole patches of {patch}: resize them")
            spatial = torch.tensor([grid], device=pixels.device).expand(batch, 2)
            hidden = self.embeddings(patches_of(pixels, patch), spatial)
        else:
            if grid != (self.side, self.side):
                raise ValueError(f"images of {height}×{width} pixels do not make {self.side}×{self.side} patches of {patch}")
            hidden = self.embeddings(pixels)
        for layer in self.layers:
            hidden = layer(hidden, None)
        return hidden.view(batch, *grid, -1)

    def read(self, folder: Path | str) -> None:
        """Takes the weights in `folder`, of a vision model or the vision half of a whole one, as float32.

        Raises FileNotFoundError where it has no safetensors (nothing else is read); ValueError for a tensor that is
        missing, of another shape or not finite.
        """
        fill(self, _tensors(Path(folder), self.state_dict()), Path(folder), "a SigLIP model as transformers saves it")


def _transformer(shape: SiglipShape, side: int) -> Any:
    from transformers import Siglip2VisionConfig, Siglip2VisionModel, SiglipVisionConfig, SiglipVisionModel

    sizes: dict[str, Any] = {
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_hidden_layers - 1,
        "num_attention_heads": shape.num_attention_heads,
        "patch_size": shape.patch_size,
        "layer_norm_eps": shape.layer_norm_eps,
        "hidden_act": shape.hidden_act,
        "vision_use_head": False,
    }
    if shape.family == "siglip2":
        return Siglip2VisionModel(Siglip2VisionConfig(num_patches=shape.num_patches, **sizes))
    return SiglipVisionModel(SiglipVisionConfig(image_size=side * shape.patch_size, **sizes))


def _tensors(folder: Path, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of `wanted` that the folder's safetensors hold, by the tower's names."""
    from safetensors import SafetensorError, safe_open

    files = [SINGLE] if (folder / SINGLE).is_file() else []
    if not files and (folder / INDEX).is_file():
        listed = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        files = sorted({Path(name).name for name in listed.values()})
    if not files:
        raise FileNotFoundError(f"{folder} has neither {SINGLE} nor {INDEX}: only safetensors are read")
    ours = {name.replace("layers.", "encoder.layers.", 1) if name.startswith("layers.") else name: name for name in wanted}
    found: dict[str, Tensor] = {}
    for file in files:
        try:
            with safe_open(folder / file, framework="pt") as stored:
                for name in stored.keys():  # noqa: SIM118 (not a dict)
                    own = ours.get(name.removeprefix("vision_model."))
                    if own is not None:
                        found[own] = stored.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise RequestError(f"{folder / file} cannot be read ({error}): get it again") from error
    return found


def _head(width: int, outputs: int) -> nn.Sequential:
    """TokenFlow's task layer, with its initial weights."""
    layers = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, outputs))
    layers.apply(_start)
    return layers


def _start(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class SiglipSemanticEncoder(nn.Module):
    """A trainable SigLIP and TokenFlow's Linear–Tanh–Linear head: images to semantic features."""

    def __init__(self, shape: SiglipShape, semantic_dim: int) -> None:
        super().__init__()
        self.tower, self.head = SiglipTower(shape), _head(shape.hidden_size, semantic_dim)

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, p·H, p·W] in [−1, 1] to [B, semantic_dim, H, W]."""
        out: Tensor = self.head(self.tower(pixels))
        return out.permute(0, 3, 1, 2)


class SiglipTeacher:
    """A frozen SigLIP read from a folder. Not a module: its weights belong to no tokenizer and are saved with none."""

    def __init__(self, folder: Path | str) -> None:
        """Raises FileNotFoundError or ValueError as `shape_of` and `SiglipTower.read` do."""
        self.shape = shape_of(folder)
        self.dim = self.shape.hidden_size
        self.tower = SiglipTower(self.shape)
        self.tower.read(folder)
        self.tower.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        """[B, 3, p·H, p·W] in [−1, 1] to float32 [B, dim, H, W], on the images' device; computed in float32, or in what the
        caller's autocast says."""
        features: Tensor = self.tower.to(pixels.device)(pixels)
        return features.float().permute(0, 3, 1, 2)


class _Block(nn.Module):
    """A pre-norm transformer layer whose keys have no bias (BEiT v2, arXiv 2208.06366)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, width] to the same."""
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        parts = F.linear(self.norm1(x), self.qkv.weight, bias).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(parts[0], parts[1], parts[2])
        x = x + self.proj(mixed.transpose(1, 2).flatten(2))
        out: Tensor = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return out


class SiglipSemanticDecoder(nn.Module):
    """TokenFlow's semantic decoder: quantised features to SigLIP's, by a small transformer and Linear–Tanh–Linear.

    As wide as SigLIP. Positions are learnt for `grid`² and resized bicubically to other grids (our choice of how; TokenFlow
    has one grid). Raises ValueError where `heads` does not divide the width.
    """

    def __init__(self, inputs: int, width: int, depth: int, heads: int, grid: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"semantic_heads {heads} must divide SigLIP's hidden_size {width}")
        self.grid = grid
        self.inputs = nn.Conv2d(inputs, width, 1)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, grid**2 + 1, width))
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.positions, std=0.02)
        self.blocks.apply(_start)
        with torch.no_grad():
            for number, block in enumerate(self.blocks, start=1):
                for last in (block.proj, block.fc2):  # BEiT's scaling of what each layer adds
                    last.weight.div_(sqrt(2 * number))  # type: ignore[operator, union-attr]
        self.head = _head(width, width)

    def forward(self, features: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, width, H, W]."""
        batch, _, height, width = features.shape
        tokens = self.inputs(features).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(batch, -1, -1), tokens], dim=1) + self._positions(height, width)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(self.norm(x[:, 1:]))
        return out.transpose(1, 2).unflatten(2, (height, width))

    def _positions(self, height: int, width: int) -> Tensor:
        if (height, width) == (self.grid, self.grid):
            return self.positions
        learnt = self.positions[:, 1:].transpose(1, 2).unflatten(2, (self.grid, self.grid))
        grown = F.interpolate(learnt, size=(height, width), mode="bicubic")
        return torch.cat([self.positions[:, :1], grown.flatten(2).transpose(1, 2)], dim=1)
