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
from pathlib import Path

import torch
from torch import Tensor, nn

from nextflow_tokenize.config import SelfCorrectionConfig, VisionTokenizerConfig
from nextflow_tokenize.schedule import PIXELS_PER_TOKEN, Grid, token_count
from nextflow_tokenize.vision.identity import CONFIG_FILE, FORMAT, WEIGHTS_FILE, identity, read_config
from nextflow_tokenize.vision.networks import PixelDecoder, PixelEncoder, SemanticDecoder, SemanticEncoder
from nextflow_tokenize.vision.quantizer import Codes, MultiScaleQuantizer, draws
from nextflow_tokenize.vision.teacher import TEACHERS


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
    """Two encoders, one quantiser, two decoders. `identity` is the hash of the folder it was loaded from, else None."""

    teacher_mean: Tensor
    teacher_scale: Tensor

    def __init__(self, config: VisionTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.identity: str | None = None
        self.teacher = TEACHERS[config.teacher]()
        self.pixel_encoder, self.pixel_decoder = PixelEncoder(config), PixelDecoder(config)
        self.semantic_encoder = SemanticEncoder(self.teacher.dim, config)
        self.semantic_decoder = SemanticDecoder(self.teacher.dim, config)
        self.quantizer = MultiScaleQuantizer(config.codebook_size, config.semantic_dim, config.pixel_dim, config.w_dis)
        # The teacher's features are standardised, so that its cosine weighs every feature alike.
        self.register_buffer("teacher_mean", torch.zeros(self.teacher.dim))
        self.register_buffer("teacher_scale", torch.ones(self.teacher.dim))

    @property
    def codebook(self) -> Tensor:
        """[V, semantic_dim + pixel_dim] float32, each branch of each row of unit length."""
        return self.quantizer.codebook

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.quantizer.semantic.device

    def teach(self, pixels: Tensor) -> Tensor:
        """Standardised teacher features, [B, teacher_dim, H, W] float32."""
        return (self.teacher(pixels) - self.teacher_mean.view(1, -1, 1, 1)) / self.teacher_scale.view(1, -1, 1, 1)

    def features(self, pixels: Tensor, taught: Tensor | None = None) -> Tensor:
        """Both branches' features before quantisation, [B, semantic_dim + pixel_dim, H, W]; `taught` saves `teach`."""
        semantic = self.semantic_encoder(self.teach(pixels) if taught is None else taught)
        return torch.cat([semantic.float(), self.pixel_encoder(pixels).float()], dim=1)

    @torch.inference_mode()
    def encode(
        self,
        pixels: Tensor,
        grids: tuple[Grid, ...],
        seeds: Sequence[int] | None = None,
        self_correction: SelfCorrectionConfig | None = None,
    ) -> Codes:
        """Codes of `pixels` [B, 3, 16·h, 16·w] in [−1, 1], (h, w) the last of `grids`: int64 [B, Σhw] twice.

        With `self_correction`, `seeds` holds one number an image (`quantizer.seed_of` its hash) and `input` differs from
        `target`; without it they are equal. Raises ValueError where pixels do not fit the grid or seeds are missing.
        """
        side = PIXELS_PER_TOKEN
        wanted = (3, grids[-1][0] * side, grids[-1][1] * side)
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

        Returns [B, 3, 16·h, 16·w] float32 in [−1, 1]. Raises ValueError for codes that end inside a scale or lie outside
        the codebook.
        """
        quantised = self.quantizer.features(codes.to(self.device), grids)
        pixel = quantised[:, self.config.semantic_dim :].contiguous()
        image: Tensor = self.pixel_decoder(pixel)
        return image.float().clamp(-1, 1)

    def save(self, directory: Path | str) -> str:
        """Write config.json and weights.safetensors into `directory`; returns the identity. Training settings stay out:
        they are part of a stage's fingerprint, not of what the tokenizer is."""
        from safetensors.torch import save_file

        path = Path(directory)
        path.mkdir(parents=True, exist_ok=True)
        model = self.config.model_dump(mode="json", exclude={"training"})
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

        config = VisionTokenizerConfig.model_validate(read_config(directory))
        tokenizer = cls(config)
        try:
            tokenizer.load_state_dict(load_file(Path(directory) / WEIGHTS_FILE))
        except RuntimeError as error:
            raise ValueError(f"the weights in {directory} do not fit its {CONFIG_FILE}: {error}") from error
        tokenizer.identity = identity(directory)
        return tokenizer.eval().to(device)
