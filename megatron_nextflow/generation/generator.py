"""From a checkpoint and prompts to images, to more text, or to text with images.

One process holds the whole model, whatever parallel layout it was trained with; the cost is that a model must fit one
device. What was asked for is checked before the model is loaded (`request`).

Nothing of Megatron is imported before the device is set up, hence the imports within functions.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from nextflow_tokenize.schedule import Grid
from numpy.typing import NDArray
from PIL import Image

from megatron_nextflow.generation.cost import Work, generation_flops
from megatron_nextflow.generation.growing_document import TextPart
from megatron_nextflow.generation.prompt import PLACEHOLDER, parse_prompts
from megatron_nextflow.generation.request import GenerationPlan, Job, Request, plan
from megatron_nextflow.generation.results import Generation, Result, write_folder, write_png

if TYPE_CHECKING:
    from megatron_nextflow.checkpoint.format import CheckpointState
    from megatron_nextflow.generation.previews import Previews
    from megatron_nextflow.model.nextflow import NextFlowModel


def load_model(
    checkpoint: Path, device: str = "auto", threads: int = 1, precision: str = "auto"
) -> tuple[NextFlowModel, CheckpointState]:
    """The model of a checkpoint folder whole in this process, in evaluation mode, and the checkpoint's state.

    `precision` as in GenerateConfig. Must come before anything imports megatron.core. Raises CheckpointError where the
    checkpoint is damaged, RuntimeError where this process is one of several.
    """
    from megatron_nextflow.runtime.device import setup

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RuntimeError("generation runs in one process: start it without torchrun")
    where = setup(device, threads)
    from megatron.core import parallel_state

    from megatron_nextflow.checkpoint.format import read_manifest
    from megatron_nextflow.checkpoint.load import load_weights
    from megatron_nextflow.config.train import TrainConfig
    from megatron_nextflow.model.layer_spec import transformer_config
    from megatron_nextflow.model.nextflow import NextFlowModel
    from megatron_nextflow.sequence.vocabulary import Vocabulary
    from megatron_nextflow.step.process_groups import start_parallel

    manifest = read_manifest(checkpoint)
    state = manifest.state
    if precision == "auto":
        precision = "bf16" if where.type == "cuda" else "float32"
    config = TrainConfig.model_validate({"model": state.model, "precision": precision})
    if not parallel_state.model_parallel_is_initialized():
        start_parallel(config)
    vocabulary = Vocabulary(state.text_vocabulary, state.codebook_size)
    codebook = torch.zeros(state.codebook_size, state.codebook_dim)
    model = NextFlowModel(transformer_config(config), state.model, vocabulary, codebook).to(where)
    load_weights([model], checkpoint, manifest)
    return model.eval(), state


def generate(request: Request) -> Generation:
    """Everything that `request` asks for, written where it says.

    Raises GenerationError, CheckpointError, ValueError or FileNotFoundError with what is wrong, before any work.
    """
    began = time.perf_counter()
    planned = plan(request)
    model, state = load_model(planned.step, request.device, request.threads, request.settings.precision)
    run = _Run(planned, model)
    if request.preview is not None:
        from megatron_nextflow.generation.previews import Previews

        run.previews = Previews(request.preview, run.decode)
    kind = run.draw if request.draws else run.write if request.interleaved else run.go_on
    for jobs in planned.batches():
        kind(jobs)
    previews: tuple[Path, ...] = ()
    if run.previews is not None:
        run.previews.close()
        previews = tuple(run.previews.files)
    flops = generation_flops(state.model, model.vocabulary, run.work)
    return Generation(tuple(run.results), run.work.passes, flops, time.perf_counter() - began, previews)


class _Run:
    """A plan being carried out, batch by batch."""

    def __init__(self, planned: GenerationPlan, model: NextFlowModel) -> None:
        self.plan, self.model = planned, model
        self.extent = planned.state.model.rope_extent
        self.places = iter(planned.request.places)
        self.results: list[Result] = []
        self.work = Work()
        self.previews: Previews | None = None

    def draw(self, jobs: Sequence[Job]) -> None:
        """One image a job."""
        from megatron_nextflow.generation.decoding import draw_images

        schedule = jobs[0].schedule
        paths = [next(self.places) for _ in jobs]
        names = [path.stem for path in paths]

        def show(scale: int, codes: Sequence[NDArray[np.int64]]) -> None:
            if self.previews is not None:
                self.previews.add(names, schedule, scale, codes)

        prompts, seeds = [self.plan.prompts[job.prompt] for job in jobs], [job.seed for job in jobs]
        drawn, work = draw_images(self.model, prompts, schedule, self.plan.request.settings, self.extent, seeds, show)
        for job, path, codes in zip(jobs, paths, drawn, strict=True):
            image, metadata = self.decode(codes, schedule), self.metadata(job)
            write_png(image, path, metadata)
            self.results.append(Result(metadata, path, image, codes, schedule))
        self.work += work

    def go_on(self, jobs: Sequence[Job]) -> None:
        """More text for each job."""
        from megatron_nextflow.generation.decoding import Words, continue_texts

        settings, text = self.plan.request.settings, self.plan.text
        prompts, seeds = [self.plan.prompts[job.prompt] for job in jobs], [job.seed for job in jobs]
        words = Words(text.vocab_size, text.eod_id)
        found, work = continue_texts(self.model, prompts, settings.max_tokens, words, settings, self.extent, seeds)
        self.results += [Result(self.metadata(job), text=text.decode(ids)) for job, ids in zip(jobs, found, strict=True)]
        self.work += work

    def write(self, jobs: Sequence[Job]) -> None:
        """Text with images for each job, one after the other."""
        from megatron_nextflow.generation.decoding import Words, write_interleaved

        text, pictures = self.plan.text, self.plan.pictures
        for job in jobs:
            written = write_interleaved(
                self.model, self.plan.prompts[job.prompt], job.schedule, self.plan.request.settings, self.extent, job.seed,
                Words(text.vocab_size, text.eod_id), self.plan.state.model.max_length,
            )  # fmt: skip
            pieces = tuple(
                text.decode(part.ids) if isinstance(part, TextPart) else self.decode(part.codes, part.grids)
                for part in written.parts
            )
            prompt = self.plan.request.prompts[job.prompt].parts
            shown = [part if isinstance(part, str) else pictures[part].image for part in prompt]
            path, metadata = next(self.places), self.metadata(job)
            write_folder(path, shown, pieces, metadata, written.ended)
            words = "".join(piece if isinstance(piece, str) else PLACEHOLDER for piece in pieces)
            self.results.append(Result(metadata, path, text=words, pieces=pieces, ended=written.ended))
            self.work += written.work

    def metadata(self, job: Job) -> dict[str, str]:
        """What the files of a result say of themselves: the request, and what "auto" in it came to."""
        weight = self.model.output_layer.weight
        return self.plan.metadata(job) | {"computed": f"{str(weight.dtype).removeprefix('torch.')} on {weight.device.type}"}

    def decode(self, codes: NDArray[np.int64], schedule: tuple[Grid, ...]) -> Image.Image:
        """The image of `codes`, the first scales of `schedule` or all of them."""
        from nextflow_tokenize.vision.images.pixels import to_images

        assert self.plan.vision is not None
        return to_images(self.plan.vision.decode(torch.from_numpy(codes)[None], schedule))[0]


def answer(prompts: Sequence[str], images: Sequence[Path], **given: Any) -> str:
    """What `generate` makes of prompts in which each <image> stands for the next of `images`, as one line of JSON.

    `given`: the rest of a Request. Raises as `generate`.
    """
    return json.dumps(generate(Request(prompts=parse_prompts(prompts, images), **given)).record())
