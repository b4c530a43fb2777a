"""From a checkpoint and a prompt to an image, scale by scale, or to more text.

An image of K scales takes K forward passes: the prompt with ⟨boi⟩ gives scale 1, and each further pass takes in one scale's
codes, upsampled, and gives all codes of the next (NextFlow, arXiv 2601.02204, section 2). Codes are drawn from the codes
alone and words from the words alone. One process holds the whole model, whatever layout it was trained with; the cost is
that a model must fit one device.

Nothing of Megatron is imported before the device is set up, hence the imports within functions.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from nextflow_tokenize.schedule import Grid, schedule_of, token_count
from nextflow_tokenize.segments import ImageSegment, Segment, TextSegment
from nextflow_tokenize.vision.identity import identity
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from megatron_nextflow.generate_config import GenerateConfig
from megatron_nextflow.layout import ImageInput, JointVocabulary, LayoutConfig, PackLayout, build_layout
from megatron_nextflow.request import (
    GenerationError,
    image_grids_of,
    named_path,
    open_text_tokenizer,
    require_level,
    require_room,
    require_same,
    step_folder,
)
from megatron_nextflow.sampling import draw, guided

if TYPE_CHECKING:
    from megatron_nextflow.checkpoint import CheckpointState
    from megatron_nextflow.model import NextFlowModel


@dataclass(frozen=True)
class GenerateResult:
    """What was generated: `image` and its `codes` int64 [Σhw] over `grids`, or `text`, the continuation without the prompt.

    `path` is the PNG written, if any; `passes` and wall `seconds` are what it took; `metadata` is the PNG's own.
    """

    image: Image.Image | None
    codes: NDArray[np.int64] | None
    grids: tuple[Grid, ...]
    text: str | None
    path: Path | None
    passes: int
    seconds: float
    metadata: dict[str, str]

    @property
    def width(self) -> int:
        """Of the image in pixels; 0 for text."""
        return self.image.width if self.image else 0

    @property
    def height(self) -> int:
        """Of the image in pixels; 0 for text."""
        return self.image.height if self.image else 0


def document(
    prompt: Sequence[int], schedule: tuple[Grid, ...] | None, vocabulary: JointVocabulary, config: LayoutConfig
) -> PackLayout:
    """The layout of one document: the prompt's ids, then, with a schedule, an image whose codes are still to come.

    Raises GenerationError for a schedule that is not the one its last grid stands for (`schedule.schedule_of`).
    """
    segments: list[Segment] = [TextSegment(kind="text", doc="", tokens=len(prompt), loss=False)]
    codes = 0
    if schedule is not None:
        grid, scales = list(schedule[-1]), len(schedule)
        if schedule_of(schedule[-1], scales) != schedule:
            raise GenerationError(f"{schedule} is not the canonical schedule of {scales} scales that ends in {schedule[-1]}")
        segments.append(ImageSegment(kind="image", doc="", sha256="", grid=grid, scales=scales, loss=False))
        codes = token_count(schedule)
    empty = np.zeros(codes, np.int64)
    length = len(prompt) + (codes + 1 if codes else 0)
    return build_layout(segments, np.array(prompt, np.int64), empty, empty, vocabulary, length, config)


def sample_codes(
    model: NextFlowModel, prompt: Sequence[int], schedule: tuple[Grid, ...], settings: GenerateConfig, config: LayoutConfig
) -> NDArray[np.int64]:
    """Codes [Σhw] of an image after `prompt` (text ids), in K passes, one a scale.

    With guidance a second row runs beside the first, the same image after no text at all. It begins at position 0, as an
    image that opens a document does in training (our choice).
    """
    from megatron_nextflow.cache import CachedModel, window

    vocabulary = model.vocabulary
    prompts = [list(prompt), []] if settings.guidance and prompt else [list(prompt)]
    layouts = [document(ids, schedule, vocabulary, config) for ids in prompts]
    # ⟨eoi⟩ is not fed: nothing follows it.
    cached = CachedModel(model, len(layouts), max(layout.used for layout in layouts) - 1)
    generator = torch.Generator(next(model.parameters()).device).manual_seed(settings.seed)
    logits = cached.feed([window(layout, 0, len(ids) + 1) for layout, ids in zip(layouts, prompts, strict=True)])
    at = [len(ids) + 1 for ids in prompts]
    drawn: list[NDArray[np.int64]] = []
    for k, grid in enumerate(schedule, start=1):
        size = grid[0] * grid[1]
        if k > 1:
            feeds = (ImageInput((schedule[k - 2], grid), drawn[-1]),)
            windows = [window(layout, a, a + size, feeds) for layout, a in zip(layouts, at, strict=True)]
            logits = cached.feed(windows)
            at = [a + size for a in at]
        rows = [row[-size:, vocabulary.code_offset : vocabulary.size].float() for row in logits]
        chosen = guided(rows[0], rows[1], settings.guidance, k, len(schedule)) if len(rows) == 2 else rows[0]
        drawn.append(draw(chosen, settings, generator).cpu().numpy())
    return np.concatenate(drawn)


def continue_ids(
    model: NextFlowModel, prompt: Sequence[int], most: int, stop: int | None, settings: GenerateConfig, config: LayoutConfig
) -> list[int]:
    """Up to `most` text ids after `prompt`, one a pass, ending before the id `stop`. GenerationError without a prompt."""
    from megatron_nextflow.cache import CachedModel, window

    if not prompt:
        raise GenerationError("a continuation needs at least one token of prompt: no slot predicts a document's first token")
    generator = torch.Generator(next(model.parameters()).device).manual_seed(settings.seed)
    cached = CachedModel(model, 1, len(prompt) + most)
    ids, fed = list(prompt), 0
    while len(ids) < len(prompt) + most:
        layout = document(ids, None, model.vocabulary, config)
        (logits,) = cached.feed([window(layout, fed, len(ids))])
        fed = len(ids)
        found = int(draw(logits[-1:, : model.vocabulary.boi], settings, generator))
        if found == stop:
            break
        ids.append(found)
    return ids[len(prompt) :]


def load_model(checkpoint: Path, device: str = "auto", threads: int = 1) -> tuple[NextFlowModel, CheckpointState]:
    """The model of a checkpoint folder whole in this process, in evaluation mode and float32, and the checkpoint's state.

    Must come before anything imports megatron.core. Raises CheckpointError where the checkpoint is damaged, RuntimeError
    where this process is one of several.
    """
    from megatron_nextflow.device import setup

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RuntimeError("generation runs in one process: start it without torchrun")
    where = setup(device, threads)
    from megatron.core import parallel_state

    from megatron_nextflow import checkpoint as checkpoints
    from megatron_nextflow.config import TrainConfig
    from megatron_nextflow.model import NextFlowModel
    from megatron_nextflow.spec import transformer_config
    from megatron_nextflow.training import start_parallel
    from megatron_nextflow.vocabulary import Vocabulary

    manifest = checkpoints.read_manifest(checkpoint)
    state = manifest.state
    config = TrainConfig(model=state.model)
    if not parallel_state.model_parallel_is_initialized():
        start_parallel(config)
    vocabulary = Vocabulary(state.text_vocabulary, state.codebook_size)
    codebook = torch.zeros(state.codebook_size, state.codebook_dim)
    model = NextFlowModel(transformer_config(config), state.model, vocabulary, codebook).to(where)
    checkpoints.load_weights(model, checkpoint, manifest)
    return model.eval(), state


def generate(
    checkpoint: Path,
    prompt: str,
    out: Path | None,
    settings: GenerateConfig | None = None,
    *,
    text_tokenizer: Path | None = None,
    vision_tokenizer: Path | None = None,
    device: str = "auto",
    threads: int = 1,
) -> GenerateResult:
    """An image from `prompt`, written to `out` as PNG; where `out` is None, up to `max_tokens` tokens of text after it.

    `checkpoint`: a step folder, or a run's folder for its latest. Tokenizers: folder of the vision tokenizer, tokenizer.json
    (or its folder); None takes those that the run's train.json names. `device` and `threads` as in TrainConfig. Raises
    GenerationError, CheckpointError or FileNotFoundError with what is wrong, before any work.
    """
    settings = settings or GenerateConfig()
    began = time.perf_counter()
    step = step_folder(checkpoint)
    state = _state(step, device, threads)
    text = open_text_tokenizer(text_tokenizer or named_path(step, "text_tokenizer"), state)
    ids = text.encode(prompt)
    config = LayoutConfig(spatial_extent=state.model.rope_extent)
    metadata = {
        "checkpoint": hashlib.sha256((step / "manifest.json").read_bytes()).hexdigest(),
        "step": str(state.step),
        "text_tokenizer": state.text_tokenizer,
        "vision_tokenizer": state.vision_tokenizer,
        "prompt": prompt,
        "settings": settings.model_dump_json(),
    }
    if out is None:
        require_room(len(ids) + settings.max_tokens, state)
        model, _ = load_model(step, device, threads)
        found = continue_ids(model, ids, settings.max_tokens, text.eod_id, settings, config)
        passes = min(len(found) + 1, settings.max_tokens)
        return GenerateResult(None, None, (), text.decode(found), None, passes, time.perf_counter() - began, metadata)
    folder = vision_tokenizer or named_path(step, "vision_tokenizer")
    require_same("vision tokenizer", folder, identity(folder), state.vision_tokenizer)
    require_level(settings.level, folder, state)
    schedule = image_grids_of(settings.level, settings.aspect)
    require_room(len(ids) + token_count(schedule) + 1, state)
    model, _ = load_model(step, device, threads)
    codes = sample_codes(model, ids, schedule, settings, config)
    image = _decode(folder, codes, schedule)
    _write(image, out, metadata)
    return GenerateResult(image, codes, schedule, None, out, len(schedule), time.perf_counter() - began, metadata)


def _state(step: Path, device: str, threads: int) -> CheckpointState:
    from megatron_nextflow.device import setup

    setup(device, threads)
    from megatron_nextflow.checkpoint import read_manifest

    return read_manifest(step).state


def _decode(folder: Path, codes: NDArray[np.int64], schedule: tuple[Grid, ...]) -> Image.Image:
    from nextflow_tokenize.vision.model import VisionTokenizer

    pixels = VisionTokenizer.load(folder).decode(torch.from_numpy(codes).unsqueeze(0), schedule)[0]
    values = ((pixels + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0)
    return Image.fromarray(values.cpu().numpy())


def _write(image: Image.Image, out: Path, metadata: dict[str, str]) -> None:
    info = PngInfo()
    for key, value in metadata.items():
        info.add_itxt(key, value)
    out.parent.mkdir(parents=True, exist_ok=True)
    image.save(out, format="PNG", pnginfo=info)


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m megatron_nextflow.generate`: `generate` in a process of its own; prints the result as one line of JSON.

    For callers that must not have the device set up in their own process. `--settings` is a GenerateConfig as JSON.
    """
    parser = argparse.ArgumentParser(prog="megatron_nextflow.generate", description="An image or text from a checkpoint.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("prompt")
    parser.add_argument("--out", type=Path, help="PNG to write; without it, the prompt is continued in text")
    parser.add_argument("--settings", type=GenerateConfig.model_validate_json, default=GenerateConfig())
    parser.add_argument("--text-tokenizer", type=Path)
    parser.add_argument("--vision-tokenizer", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    try:
        result = generate(**vars(parser.parse_args(arguments)))
    except (ValueError, OSError) as error:
        parser.exit(2, f"{error}\n")
    report = {"path": None if result.path is None else str(result.path), "text": result.text}
    report |= {name: getattr(result, name) for name in ("width", "height", "passes", "seconds", "metadata")}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
