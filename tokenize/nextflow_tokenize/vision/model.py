"""The vision tokenizer: pixels to codes at every scale and back.

Encoding must not depend on what shares a batch, or shards would change with partitioning. On a CPU, convolutions of
different batch sizes or thread counts differ in the last bits, and one flipped nearest code changes all finer scales; so on
a CPU the networks see one image at a time on a single thread, and only quantisation, whose products are padded to fixed row
counts, is batched. The cost is speed that a worker per core gives back. Across processor types last bits may still differ.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import isqrt
from pathlib import Path

import torch
from nextflow_data.common.errors import RequestError
from torch import Tensor, nn

from nextflow_tokenize.config.vision import SelfCorrectionConfig, SiglipShape, VisionTokenizerConfig
from nextflow_tokenize.schedule import PIXELS_PER_TOKEN, Grid, token_count
from nextflow_tokenize.vision.codes.quantizer import Codes, MultiScaleQuantizer, draws
from nextflow_tokenize.vision.identity import CONFIG_FILE, FORMAT, WEIGHTS_FILE, identity
from nextflow_tokenize.vision.networks.patch import (
    PixelDecoder,
    PixelEncoder,
    SemanticDecoder,
    SemanticEncoder,
    branch_side,
    resized,
)
from nextflow_tokenize.vision.networks.siglip import SiglipSemanticDecoder, SiglipSemanticEncoder, SiglipTeacher, shape_of
from nextflow_tokenize.vision.networks.teacher import CLASSICAL_DIM, ClassicalTeacher, SemanticTeacher
from nextflow_tokenize.vision.networks.vqgan import VqganDecoder, VqganEncoder
from nextflow_tokenize.vision.usable import read_tokenizer_config


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """torch's CPU threads set to `count` inside, restored after."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class VisionTokenizer(nn.Module):
    """Two encoders, one quantiser, two decoders. `identity` is the hash of the folder it was loaded from, else None.

    With `branches: pixel` there is no semantic encoder: indices are chosen by the pixel distance alone (`quantizer`'s
    `semantic_weight` is 0), the semantic features are zero, and the semantic decoder reads the pixel codes.

    Raises ValueError for settings that do not fit together: an `image_side` without `sides`, a SigLIP whose patches are not
    the grid, one of unknown shape (neither `siglip` nor `teacher_path`).
    """

    teacher_mean: Tensor
    teacher_scale: Tensor

    def __init__(self, config: VisionTokenizerConfig) -> None:
        super().__init__()
        if config.image_side is not None and not config.sides:
            raise ValueError("image_side belongs to a tokenizer of one square schedule: give its sides too, or leave it out")
        shape = None if config.teacher == "classical" else _siglip_shape(config)
        self.config = config if shape is None else config.model_copy(update={"siglip": shape})
        self.identity: str | None = None
        self._teacher: SemanticTeacher | None = ClassicalTeacher() if shape is None else None
        dual = config.branches == "dual"
        self.pixel_encoder: PixelEncoder | VqganEncoder
        self.pixel_decoder: PixelDecoder | VqganDecoder
        if config.network == "vqgan":
            self.pixel_encoder, self.pixel_decoder = VqganEncoder(config), VqganDecoder(config)
        else:
            self.pixel_encoder, self.pixel_decoder = PixelEncoder(config), PixelDecoder(config)
        self.semantic_encoder: nn.Module = nn.Identity()
        inputs = config.semantic_dim if dual else config.pixel_dim
        if shape is None:
            if dual:
                self.semantic_encoder = SemanticEncoder(CLASSICAL_DIM, config)
            self.semantic_decoder: nn.Module = SemanticDecoder(inputs, CLASSICAL_DIM, config)
        else:
            if dual:
                self.semantic_encoder = SiglipSemanticEncoder(shape, config.semantic_dim)
            self.semantic_decoder = SiglipSemanticDecoder(
                inputs, shape.hidden_size, config.semantic_depth, config.semantic_heads, config.semantic_grid
            )
        self.quantizer = MultiScaleQuantizer(config.codebook_size, config.semantic_dim, config.pixel_dim, config.w_dis)
        self.quantizer.semantic_weight = 1.0 if dual else 0.0
        if shape is None:
            # The classical features are standardised, so that the cosine weighs every one alike.
            self.register_buffer("teacher_mean", torch.zeros(CLASSICAL_DIM))
            self.register_buffer("teacher_scale", torch.ones(CLASSICAL_DIM))

    @property
    def codebook(self) -> Tensor:
        """[V, semantic_dim + pixel_dim] float32, each branch of each row of unit length."""
        return self.quantizer.codebook

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.quantizer.semantic.device

    @property
    def fixed_schedule(self) -> tuple[Grid, ...] | None:
        """The one schedule of a tokenizer with `sides`, square grids from coarse to fine; None: NextFlow's schedules."""
        return None if self.config.sides is None else tuple((side, side) for side in self.config.sides)

    def image_shape(self, grid: Grid) -> tuple[int, int]:
        """(height, width) in pixels of the images whose final grid is `grid`."""
        if self.config.image_side is not None:
            return self.config.image_side, self.config.image_side
        return grid[0] * PIXELS_PER_TOKEN, grid[1] * PIXELS_PER_TOKEN

    @property
    def teacher(self) -> SemanticTeacher:
        """The semantic teacher. Raises ValueError where it is a SigLIP that is not attached."""
        if self._teacher is None:
            raise RequestError("the teacher of this tokenizer is a SigLIP, which is not stored with it: give teacher_path")
        return self._teacher

    @property
    def can_teach(self) -> bool:
        """Whether the teacher is at hand: the classical one always, a SigLIP once attached."""
        return self._teacher is not None

    def attach_teacher(self, folder: Path | str, initialise: bool = False) -> None:
        """Reads the SigLIP in `folder` as teacher; with `initialise`, the trainable encoder starts with its weights.

        The teacher is no part of parameters or state_dict. Raises ValueError for a tokenizer with the classical teacher and
        for a SigLIP of another shape, and what `SiglipTeacher` raises.
        """
        if self.config.siglip is None:
            raise RequestError("this tokenizer's teacher is classical, which needs no folder: leave teacher_path out")
        teacher = SiglipTeacher(folder)
        if teacher.shape != self.config.siglip:
            raise RequestError(f"{folder} holds {teacher.shape!r}; the tokenizer was made for {self.config.siglip!r}")
        if initialise and isinstance(self.semantic_encoder, SiglipSemanticEncoder):
            self.semantic_encoder.tower.load_state_dict(teacher.tower.state_dict())
        self._teacher = teacher

    def teach(self, pixels: Tensor) -> Tensor:
        """What the semantic decoder is to give, [B, teacher_dim, H, W] float32: the classical teacher's features
        standardised, a SigLIP's as they are (TokenFlow takes the cosine of raw features). Raises ValueError as `teacher`."""
        if self.config.teacher != "classical":
            return self.teacher(pixels)
        features = self.teacher(resized(pixels, branch_side(self.config)))
        return (features - self.teacher_mean.view(1, -1, 1, 1)) / self.teacher_scale.view(1, -1, 1, 1)

    def features(self, pixels: Tensor, taught: Tensor | None = None) -> Tensor:
        """Both branches' features before quantisation, [B, semantic_dim + pixel_dim, H, W].

        `taught` saves the classical encoder a call of `teach`; SigLIP's encoder reads the images themselves.
        """
        pixel = self.pixel_encoder(pixels).float()
        if self.config.branches == "pixel":
            semantic = pixel.new_zeros(pixel.shape[0], self.config.semantic_dim, *pixel.shape[-2:])
        elif self.config.teacher == "classical":
            semantic = self.semantic_encoder(self.teach(pixels) if taught is None else taught)
        else:
            semantic = self.semantic_encoder(pixels)
        return torch.cat([semantic.float(), pixel], dim=1)

    @torch.inference_mode()
    def encode(
        self,
        pixels: Tensor,
        grids: tuple[Grid, ...],
        seeds: Sequence[int] | None = None,
        self_correction: SelfCorrectionConfig | None = None,
    ) -> Codes:
        """Codes of `pixels` [B, 3, 16·h, 16·w] in [−1, 1], (h, w) the last of `grids`: int64 [B, Σhw] twice. With an
        `image_side` S, images are [B, 3, S, S].

        With `self_correction`, `seeds` holds one number an image (`quantizer.seed_of` its hash) and `input` differs from
        `target`; without it they are equal. Raises ValueError where pixels do not fit the grid, seeds are missing, or a
        tokenizer of one schedule is given another.
        """
        self._only_schedule(grids)
        wanted = (3, *self.image_shape(grids[-1]))
        if tuple(pixels.shape[1:]) != wanted:
            raise ValueError(f"images of shape {tuple(pixels.shape[1:])} do not fit grid {grids[-1]}: resize to {wanted}")
        drawn = None
        if self_correction is not None and self_correction.samples > 0 and self_correction.tokens > 0:
            if seeds is None or len(seeds) != len(pixels):
                raise ValueError("self-correction needs one seed an image: give seed_of(sha256) for each")
            drawn = draws(seeds, token_count(grids), self_correction)
        pixels = pixels.to(self.device)
        if self.device.type == "cpu":
            with cpu_threads(1):
                features = torch.cat([self.features(image) for image in pixels.split(1)])
                return self.quantizer.quantize(features, grids, drawn)
        return self.quantizer.quantize(self.features(pixels), grids, drawn)

    @torch.inference_mode()
    def decode(self, codes: Tensor, grids: tuple[Grid, ...]) -> Tensor:
        """Images of `codes` [B, Σ_{k≤n} hw], the first n scales of `grids` (all of them, or fewer for a preview).

        Returns [B, 3, 16·h, 16·w], or [B, 3, S, S] with an `image_side` S, float32 in [−1, 1]. Raises ValueError for codes
        that end inside a scale or lie outside the codebook, and for another schedule than the only one.
        """
        self._only_schedule(grids)
        quantised = self.quantizer.features(codes.to(self.device), grids)
        pixel = quantised[:, self.config.semantic_dim :].contiguous()
        image: Tensor = self.pixel_decoder(pixel)
        return image.float().clamp(-1, 1)

    @torch.inference_mode()
    def decode_semantic(self, codes: Tensor, grids: tuple[Grid, ...]) -> Tensor:
        """The teacher's features decoded from `codes`, [B, teacher_dim, h, w] float32; arguments and errors as `decode`."""
        self._only_schedule(grids)
        quantised = self.quantizer.features(codes.to(self.device), grids)
        split = self.config.semantic_dim
        part = quantised[:, :split] if self.config.branches == "dual" else quantised[:, split:]
        features: Tensor = self.semantic_decoder(part.contiguous())
        return features.float()

    def _only_schedule(self, grids: tuple[Grid, ...]) -> None:
        only = self.fixed_schedule
        if only is not None and tuple(grids) != only:
            raise ValueError(f"this tokenizer has one schedule, sides {self.config.sides}, not {grids}: give fixed_schedule")

    def save(self, directory: Path | str) -> str:
        """Write config.json and weights.safetensors into `directory`; returns the identity. Training settings and paths stay
        out: they are part of a stage's fingerprint, not of what the tokenizer is."""
        from safetensors.torch import save_file

        path = Path(directory)
        path.mkdir(parents=True, exist_ok=True)
        model = self.config.model_dump(mode="json", exclude={"training", "path", "teacher_path"})
        content = json.dumps({"format": FORMAT, "model": model}, indent=2, sort_keys=True) + "\n"
        (path / CONFIG_FILE).write_text(content, encoding="utf-8")
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(weights, path / WEIGHTS_FILE)
        self.identity = identity(path)
        return self.identity

    @classmethod
    def load(cls, directory: Path | str, device: str | torch.device = "cpu") -> VisionTokenizer:
        """The tokenizer saved in `directory`, in evaluation mode. Raises FileNotFoundError or ValueError, saying what is
        missing or does not fit."""
        from safetensors.torch import load_file

        tokenizer = cls(read_tokenizer_config(directory))
        try:
            tokenizer.load_state_dict(load_file(Path(directory) / WEIGHTS_FILE))
        except RuntimeError as error:
            raise RequestError(f"the weights in {directory} do not fit its {CONFIG_FILE}: {error}") from error
        tokenizer.identity = identity(directory)
        return tokenizer.eval().to(device)


def _siglip_shape(config: VisionTokenizerConfig) -> SiglipShape:
    """The SigLIP's shape, checked against the grids that it must give."""
    if config.siglip is None and config.teacher_path is None:
        raise RequestError("teacher: siglip needs teacher_path, the folder of the SigLIP model, or its shape under siglip")
    shape = config.siglip or shape_of(str(config.teacher_path))
    patch = shape.patch_size
    if config.sides is not None:
        side = config.sides[-1]
        pixels = PIXELS_PER_TOKEN * side if config.image_side is None else config.image_side
        fits = pixels == patch * side if shape.family == "siglip2" else pixels // patch == side == isqrt(shape.num_patches)
    elif shape.family == "siglip":
        raise RequestError("this SigLIP has one square grid: give its scales as sides (and image_side), or a siglip2")
    else:
        fits = patch == PIXELS_PER_TOKEN
    if not fits:
        raise RequestError(
            f"SigLIP's patches of {patch} pixels do not make the final grid: without sides they must be {PIXELS_PER_TOKEN} "
            "wide; with sides, image_side must hold as many as the last of them (and a siglip's num_patches be its square)"
        )
    return shape
