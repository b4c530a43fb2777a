"""Conversion of a published TokenFlow checkpoint (tokenflow_siglip_32k.pt) into a tokenizer's folder.

Our networks have the reference's parameters in the reference's shapes, so that conversion is a renaming. Sizes are read off
the tensors, not off what the file says of itself; what no tensor shows (heads, scales, the images' size) is an argument with
the published value. A tensor that is missing or left over is an error: a checkpoint that fits by chance would decode noise.
The CLIP and ViTamin variants are refused: NextFlow has only SigLIP teachers, and each would be a network of its own here.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from math import isqrt
from pathlib import Path

import torch
from nextflow_data.common.errors import RequestError
from torch import Tensor
from torch.nn import functional as F

from nextflow_tokenize.config.vision import SiglipShape, VisionTokenizerConfig
from nextflow_tokenize.vision.model import VisionTokenizer
from nextflow_tokenize.vision.tensor_files import state_dict_of

SIDES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 17, 22, 27)
IMAGE_SIDE = 384
"""TokenFlow-XL's scales and image size (TokenFlow 2412.03069 and its code, teacher siglip_384)."""
SIGLIP_HEAD = 72
"""Width of an attention head of SigLIP so400m."""

_SIGLIP = r"encoder_vqkd\.(?:vision_model\.)?"
_NAMES = (
    (r"(encoder|decoder)\.conv_blocks\.", r"pixel_\1.stages."),
    (r"(encoder|decoder)\.(conv_in|conv_out|mid|norm_out)\.", r"pixel_\1.\2."),
    (r"quant_conv\.", "pixel_encoder.quant_conv."),
    (r"post_quant_conv\.", "pixel_decoder.post_quant_conv."),
    (r"quantize\.embedding_vqkd\.weight$", "quantizer.semantic"),
    (r"quantize\.embedding_vqgan\.weight$", "quantizer.pixel"),
    (_SIGLIP + r"embeddings\.", "semantic_encoder.tower.embeddings."),
    (_SIGLIP + r"encoder\.layers\.", "semantic_encoder.tower.layers."),
    (r"encode_task_layer\.", "semantic_encoder.head."),
    (r"decoder_vqkd\.patch_embed\.proj\.", "semantic_decoder.inputs."),
    (r"decoder_vqkd\.pos_embed$", "semantic_decoder.positions"),
    (r"decoder_vqkd\.fc_norm\.", "semantic_decoder.norm."),
    (r"decoder_vqkd\.", "semantic_decoder."),
    (r"decode_task_layer\.", "semantic_decoder.head."),
)
"""The reference's names and ours, by how they begin; the first that fits counts."""
_INSIDE = (
    (r"\.nin_shortcut\.", ".skip."),
    (r"\.(?:down|up)sample\.conv\.", ".resample.conv."),
    (r"^(semantic_decoder\.blocks\.\d+)\.(?:attn|mlp)\.", r"\1."),
)
_UNUSED = re.compile(
    r"quantize\.codebook_used$|scaling_layer\.|" + _SIGLIP + r"(post_layernorm\.|head\.|embeddings\.position_ids$)"
)
"""What has no part in encoding or decoding: statistics, constants, and SigLIP after hidden_states[-2]."""


def convert(
    checkpoint: Path,
    out: Path,
    sides: tuple[int, ...] = SIDES,
    image_side: int = IMAGE_SIDE,
    siglip_heads: int | None = None,
    semantic_heads: int = 12,
) -> str:
    """Writes the tokenizer of a TokenFlow checkpoint, its SigLIP variant, into the new folder `out`; returns its identity.

    Where a checkpoint has averaged weights ("ema") they are taken, as the reference does. `siglip_heads` None: heads of 72
    channels, as so400m has. The folder appears only when complete. Raises FileExistsError where `out` exists; ValueError for
    the other variants, tensors missing, unknown or of another shape, and sizes that do not fit together; and what
    `tensor_files.state_dict_of` raises.
    """
    if out.exists():
        raise FileExistsError(f"{out} exists: give a new folder for the converted tokenizer")
    weights = _weights(checkpoint)
    _siglip_variant(checkpoint, weights)
    config = _config(checkpoint, weights, sides, image_side, siglip_heads, semantic_heads)
    tokenizer = VisionTokenizer(config)
    assert config.siglip is not None
    renamed = _renamed(weights, config.siglip.num_hidden_layers - 1)
    own = tokenizer.state_dict()
    _fit(checkpoint, renamed, own)
    for name in ("quantizer.semantic", "quantizer.pixel"):
        # The reference normalises its codes wherever it uses them; ours are kept so.
        renamed[name] = F.normalize(renamed[name].float(), dim=1)
    tokenizer.load_state_dict({name: renamed[name].float() for name in own})
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    identity = tokenizer.save(partial)
    os.replace(partial, out)
    return identity


def _weights(checkpoint: Path) -> dict[str, Tensor]:
    try:
        return state_dict_of(checkpoint, "ema")
    except ValueError:
        return state_dict_of(checkpoint)


def _siglip_variant(checkpoint: Path, weights: Mapping[str, Tensor]) -> None:
    semantic = [name for name in weights if name.startswith("encoder_vqkd.")]
    if any(re.match(_SIGLIP + r"embeddings\.patch_embedding\.weight$", name) for name in semantic):
        scaling = [weights[name] for name in weights if name.startswith("scaling_layer.")]
        if any(not torch.allclose(value.float(), torch.tensor(0.5)) for value in scaling):
            raise RequestError(f"{checkpoint}: scaling_layer is not SigLIP's 0.5 and 0.5: images would be seen otherwise")
        return
    kinds = {
        "class_embedding": "CLIP",
        "transformer.": "CLIP",
        "conv1.": "CLIP",
        "stages.": "ViTamin",
        "patch_embed.": "ViTamin",
    }
    parts = [name.removeprefix("encoder_vqkd.").removeprefix("visual.") for name in semantic]
    found = next((kind for part in parts for start, kind in kinds.items() if part.startswith(start)), None)
    what = f"TokenFlow's {found} variant" if found else f"no TokenFlow checkpoint (it has {', '.join(list(weights)[:3])}, …)"
    raise RequestError(f"{checkpoint} is {what}: only the SigLIP variant, tokenflow_siglip_32k, can be converted")


def _config(
    checkpoint: Path,
    weights: Mapping[str, Tensor],
    sides: tuple[int, ...],
    image_side: int,
    siglip_heads: int | None,
    semantic_heads: int,
) -> VisionTokenizerConfig:
    """The settings that the tensors' shapes show."""

    def shape(name: str) -> torch.Size:
        found = [
            weights[key] for key in (name, name.replace("encoder_vqkd.", "encoder_vqkd.vision_model.")) if key in weights
        ]
        if not found:
            raise RequestError(f"{checkpoint} has no tensor {name}: it is no whole TokenFlow checkpoint")
        return found[0].shape

    def count(pattern: str) -> int:
        """How many numbers stand in the place of the pattern's group, from 0 on."""
        return 1 + max((int(match[1]) for name in weights if (match := re.match(pattern, name))), default=-1)

    channels = shape("encoder.conv_in.weight")[0]
    levels = count(r"encoder\.conv_blocks\.(\d+)\.")
    widths = [shape(f"encoder.conv_blocks.{level}.res.0.conv1.weight")[0] for level in range(levels)]
    factors = tuple(width // channels for width in widths)
    patches_embedded = shape("encoder_vqkd.embeddings.patch_embedding.weight")
    hidden, patch = patches_embedded[0], patches_embedded[-1]
    patches = shape("encoder_vqkd.embeddings.position_embedding.weight")[0]
    shape(
        "encoder_vqkd.post_layernorm.weight"
    )  # unused, but without it the last layer may be missing too: which is the last?
    if siglip_heads is None and hidden % SIGLIP_HEAD:
        raise RequestError(f"{checkpoint}: SigLIP is {hidden} wide, no multiple of {SIGLIP_HEAD}: give siglip_heads")
    if not sides or sides[-1] ** 2 != patches or image_side // patch != sides[-1]:
        raise RequestError(
            f"{checkpoint}: its SigLIP has {isqrt(patches)}×{isqrt(patches)} patches of {patch} pixels, which do not fit "
            f"scales {sides} of images of {image_side} pixels: give the right sides and image_side"
        )
    pixel_dim, z_channels = shape("quant_conv.weight")[:2]
    semantic_codes = shape("quantize.embedding_vqkd.weight")
    return VisionTokenizerConfig(
        levels=(),
        codebook_size=semantic_codes[0],
        semantic_dim=semantic_codes[1],
        pixel_dim=pixel_dim,
        w_dis=1.0,
        network="vqgan",
        channels=channels,
        decoder_channels=shape("decoder.conv_in.weight")[0] // factors[-1],
        channel_mult=factors,
        res_blocks=count(r"encoder\.conv_blocks\.0\.res\.(\d+)\."),
        decoder_res_blocks=count(r"decoder\.conv_blocks\.0\.res\.(\d+)\.") - 1,
        z_channels=z_channels,
        teacher="siglip",
        siglip=SiglipShape(
            family="siglip",
            hidden_size=hidden,
            intermediate_size=shape("encoder_vqkd.encoder.layers.0.mlp.fc1.weight")[0],
            num_hidden_layers=count(_SIGLIP + r"encoder\.layers\.(\d+)\."),
            num_attention_heads=hidden // SIGLIP_HEAD if siglip_heads is None else siglip_heads,
            patch_size=patch,
            num_patches=patches,
        ),
        semantic_depth=count(r"decoder_vqkd\.blocks\.(\d+)\."),
        semantic_heads=semantic_heads,
        semantic_grid=isqrt(shape("decoder_vqkd.pos_embed")[1] - 1),
        sides=sides,
        image_side=image_side,
    )


def _renamed(weights: Mapping[str, Tensor], last_layer: int) -> dict[str, Tensor]:
    """By our names; what has no name of ours keeps its own. `last_layer` is the number of SigLIP's unused layer."""
    unused_layer = re.compile(_SIGLIP + rf"encoder\.layers\.{last_layer}\.")
    renamed = {}
    for name, tensor in weights.items():
        if _UNUSED.match(name) or unused_layer.match(name):
            continue
        own = name
        for pattern, replacement in _NAMES:
            if re.match(pattern, own):
                own = re.sub("^" + pattern, replacement, own)
                break
        for pattern, replacement in _INSIDE:
            own = re.sub(pattern, replacement, own)
        renamed[own] = tensor
    return renamed


def _fit(checkpoint: Path, given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    missing, unknown = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    if missing or unknown:
        raise RequestError(
            f"{checkpoint} is not the TokenFlow that its sizes say: missing {_some(missing)}; unknown {_some(unknown)} "
            "(by this package's names, where they have one)"
        )
    for name, tensor in own.items():
        if given[name].shape != tensor.shape:
            raise RequestError(f"{checkpoint}: {name} has shape {list(given[name].shape)}, not {list(tensor.shape)}")
        if not bool(torch.isfinite(given[name]).all()):
            raise RequestError(f"{checkpoint}: {name} has values that are no numbers: get the checkpoint again")


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") or "none"
