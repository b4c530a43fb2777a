"""Training the vision tokenizer on images: one of NextFlow's stages, from a start to a folder that appears when complete.

Decisions, all ours where the paper is silent: the codebook moves by running means and is placed by k-means on real residuals
before the first step (benchmarks/bench_codebook.py compares); a patch network keeps the principal components of 16×16
patches and learns what is to be added to them; the perceptual term is the L1 distance of image gradients unless LPIPS
weights are given; there is no adversarial term by default. The cost is sharpness of texture, the gain a recognisable
reconstruction after a minute on two cores. The published losses and widths are settings (recipes/tokenizer_nextflow.yaml).

The output folder holds the tokenizer's two files, metrics.jsonl, evaluation.json (the scores of the held-out images) and
held_out.png (a sheet of them); it is written beside and renamed. Checkpoints lie in a work folder of their own, and while
the training goes on metrics.jsonl too, a row a logged step. A checkpoint holds the rows up to its step, so a training that
goes on begins the file anew and no step is in it twice.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from nextflow_data.common.errors import RequestError
from nextflow_data.common.whole_files import replace_file

from nextflow_tokenize.config.vision import VisionTokenizerConfig
from nextflow_tokenize.vision import processes
from nextflow_tokenize.vision.identity import identity
from nextflow_tokenize.vision.images.dataset import EncodedImage, NoImages, Picture, Pool, load_pool
from nextflow_tokenize.vision.model import VisionTokenizer, cpu_threads
from nextflow_tokenize.vision.scores.evaluate import EvalReport, evaluate_pictures
from nextflow_tokenize.vision.scores.sheets import sheet_of
from nextflow_tokenize.vision.training import checkpoints as training_state
from nextflow_tokenize.vision.training.beginning import begin, begin_joint, inherit
from nextflow_tokenize.vision.training.trainer import TokenizerTrainer

METRICS_FILE = "metrics.jsonl"
EVALUATION_FILE = "evaluation.json"
SHEET_FILE = "held_out.png"
SHEET_ROWS = 12
SHOWN = 32
"""Training images that are evaluated at the end, beside the held-out ones."""
MOST_HELD_OUT = 256
"""Held-out images that are evaluated at most."""
LOG_EVERY = 10
"""Steps between lines of metrics.jsonl and calls of the progress callback."""

Progress = Callable[[int, int, dict[str, float]], None]
"""Called with (steps done, steps in all, metrics)."""


@dataclass(frozen=True)
class TrainReport:
    """What training gave. PSNR in dB over whole images at their own grid; `usage` is the share of codes in use over the
    training images shown; `semantic_cosine` is None where no semantic decoder was trained."""

    identity: str
    steps: int
    seconds: float
    training_images: int
    held_out_images: int
    failed: dict[str, str]
    psnr_training: float
    psnr_held_out: float | None
    usage: float
    semantic_cosine: float | None
    stopped_early: bool


def train_one_stage(
    images: Sequence[EncodedImage],
    config: VisionTokenizerConfig,
    out_dir: Path | str,
    progress: Progress | None = None,
    *,
    work: Path | None = None,
    init: Path | None = None,
    log_dir: Path | None = None,
    device: torch.device | str = "cpu",
    stop: Callable[[], bool] = lambda: False,
) -> TrainReport:
    """Train a tokenizer on `images` and save it as `out_dir`. With several processes all call this; the first one writes.

    `work`: folder of checkpoints (kept there until `out_dir` is complete); a training that was stopped goes on from it,
    exactly. `init`: folder of an earlier stage's tokenizer. `log_dir`: TensorBoard files. `stop` is asked after each step,
    in each process; where one says yes, a checkpoint is made and KeyboardInterrupt raised, as also when `progress` of a lone
    process raises it. Same images, settings, torch and processor type give the same weights. Raises NoImages where no image
    can be trained on, FileExistsError where `out_dir` exists, ValueError for settings that do not fit; images that do not
    load are left out and named in the report.
    """
    out = Path(out_dir)
    if out.exists():
        raise FileExistsError(f"{out} exists: a trained tokenizer is never overwritten; remove it or name another folder")
    settings = config.training
    if settings.stage == "pixel":
        config = config.model_copy(update={"branches": "pixel"})
    if settings.stage == "decoder" and init is None:
        raise RequestError(
            "stage decoder trains a decoder for finished codes: give the tokenizer of a joint stage to go on from"
        )
    each = settings.cache_mib // max(1, settings.workers)
    pool = load_pool(images, config.levels, settings.held_out, settings.max_images, settings.seed, each)
    if not pool.training:
        raise NoImages(f"none of {len(images)} images can be trained on; first reasons: {list(pool.failed.values())[:3]}")
    partial, first = out.with_name(out.name + ".partial"), processes.rank() == 0
    if first:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        training_state.tidy(work)
    started = time.monotonic()
    with cpu_threads(settings.threads), torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        training = _Training(config, pool, work, init, torch.device(device))
        if first:
            training.record((work or partial) / METRICS_FILE)
        done = training.steps(progress if first else None, log_dir if first else None, started, stop)
        report = training.finish(partial, done, started) if first else None
    if first:
        os.replace(partial, out)
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)
    processes.barrier()
    return report or training.without_scores(out, done)


class _Training:
    """One call of `train`, after its checks."""

    def __init__(
        self, config: VisionTokenizerConfig, pool: Pool, work: Path | None, init: Path | None, device: torch.device
    ) -> None:
        self.config, self.pool, self.settings, self.work = config, pool, config.training, work
        name = None if init is None else identity(init)
        self.fingerprint, before = training_state.fingerprints(config, [*pool.training, *pool.held_out], name)
        tokenizer = VisionTokenizer(config).to(device)
        state = None if work is None else training_state.load(work, (self.fingerprint, before))
        anew = inherit(tokenizer, init, self.settings.stage) if init is not None else True
        if config.teacher == "siglip" and self.settings.stage == "joint":
            if config.teacher_path is None:
                raise RequestError("stage joint with teacher: siglip needs teacher_path, the folder of the SigLIP model")
            tokenizer.attach_teacher(Path(config.teacher_path), initialise=anew and state is None)
        self.trainer = TokenizerTrainer(tokenizer, pool.training, self.settings)
        if state is None:
            generator = torch.Generator().manual_seed(self.settings.seed)
            if init is None:
                begin(tokenizer, self.trainer.start_batches(), self.settings, generator)
            elif anew and self.settings.stage == "joint":
                begin_joint(tokenizer, self.trainer.start_batches(), generator)
        self.trainer.prepare()
        if state is not None:
            self.trainer.restore(state)
        self.logged: list[str] = [] if state is None else list(state["logged"])
        self.sums: dict[str, float] = {} if state is None else dict(state["sums"])
        self._record: Path | None = None

    def record(self, path: Path) -> None:
        """Has `path` hold the rows logged so far, and from here on each as it comes."""
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, "".join(self.logged), durable=False)
        self._record = path

    def steps(self, progress: Progress | None, log_dir: Path | None, started: float, stop: Callable[[], bool]) -> int:
        """All steps that are left; returns how many are done in all."""
        settings, trainer = self.settings, self.trainer
        batches = trainer.batches()

        def late() -> bool:
            return settings.max_seconds is not None and time.monotonic() - started > settings.max_seconds

        with _tensorboard(log_dir) as board:
            for step in range(trainer.step, settings.steps):
                metrics = trainer.advance(batches, lambda: {"stop": stop(), "late": late()})
                stopping, out_of_time = metrics.pop("stop") > 0, metrics.pop("late") > 0
                for name, value in metrics.items():
                    self.sums[name] = self.sums.get(name, 0.0) + value
                done = step + 1
                if done % LOG_EVERY == 0 or done == settings.steps or out_of_time:
                    averages = self._log(done)
                    board(done, averages, None)
                    try:
                        if progress is not None:
                            progress(done, settings.steps, averages)
                    except KeyboardInterrupt:
                        self.checkpoint()
                        raise
                if settings.picture_interval and done % settings.picture_interval == 0 and log_dir is not None:
                    with trainer.averages() as tokenizer:
                        board(done, {}, sheet_of(tokenizer, (self.pool.held_out or self.pool.training)[:SHEET_ROWS]))
                due = settings.checkpoint_interval and done % settings.checkpoint_interval == 0
                if stopping or (due and done < settings.steps):
                    self.checkpoint()
                if stopping:
                    raise KeyboardInterrupt
                if out_of_time:
                    return done
        return settings.steps

    def _log(self, done: int) -> dict[str, float]:
        count = (done - 1) % LOG_EVERY + 1
        averages = {name: value / count for name, value in self.sums.items()}
        self.sums = {}
        averages["psnr"] = 10 * math.log10(4 / max(averages["l2"], 1e-12))
        averages |= {"usage": self.trainer.means.usage(), "perplexity": self.trainer.means.perplexity()}
        self.logged.append(json.dumps({"step": done, **{k: round(v, 6) for k, v in averages.items()}}) + "\n")
        if self._record is not None:
            with suppress(OSError), open(self._record, "a", encoding="utf-8") as rows:  # the output folder gets them all
                rows.write(self.logged[-1])
        return averages

    def checkpoint(self) -> None:
        """Saves what a stopped training goes on from, where there is a work folder."""
        if self.work is None:
            return
        if processes.rank() == 0:
            state = self.trainer.state() | {"fingerprint": self.fingerprint, "logged": self.logged, "sums": self.sums}
            state["tokenizer"] = self.config.model_dump_json()
            training_state.save(self.work, self.trainer.step, state)
        processes.barrier()

    def finish(self, folder: Path, done: int, started: float) -> TrainReport:
        """Writes all that the output folder holds."""
        seen_pictures = _that_load(self.pool.training, SHOWN)
        held_out = _that_load(self.pool.held_out, MOST_HELD_OUT)
        seconds = time.monotonic() - started
        with self.trainer.averages() as tokenizer:
            seen = evaluate_pictures(tokenizer, seen_pictures)
            held = evaluate_pictures(tokenizer, held_out) if held_out else None
            scores = json.dumps(asdict(held or seen), indent=1, sort_keys=True)
            (folder / EVALUATION_FILE).write_text(scores + "\n", encoding="utf-8")
            sheet_of(tokenizer, (held_out or seen_pictures)[:SHEET_ROWS]).save(folder / SHEET_FILE)
            name = tokenizer.save(folder)
        report = self._report(name, done, seconds, seen, held)
        final = {k: v for k, v in asdict(report).items() if k not in ("seconds", "failed")}
        lines = [*self.logged, json.dumps({"final": final}, sort_keys=True) + "\n"]
        (folder / METRICS_FILE).write_text("".join(lines), encoding="utf-8")
        return report

    def without_scores(self, out: Path, done: int) -> TrainReport:
        """The report of a process that evaluated nothing."""
        return self._report(identity(out), done, 0.0, None, None)

    def _report(self, name: str, done: int, seconds: float, seen: EvalReport | None, held: EvalReport | None) -> TrainReport:
        shown = held or seen
        return TrainReport(
            identity=name,
            steps=done,
            seconds=seconds,
            training_images=len(self.pool.training),
            held_out_images=len(self.pool.held_out),
            failed=self.pool.failed | self.trainer.failed,
            psnr_training=seen.psnr if seen else math.nan,
            psnr_held_out=held.psnr if held else None,
            usage=seen.usage if seen else math.nan,
            semantic_cosine=shown.semantic_cosine if shown and self.settings.stage != "pixel" else None,
            stopped_early=done < self.settings.steps,
        )


def _that_load(pictures: Sequence[Picture], most: int) -> list[Picture]:
    """The first `most` of them that can be decoded: one whose size alone was known may not."""
    found: list[Picture] = []
    for picture in pictures:
        with suppress(Exception):
            found.append(replace(picture, size=(picture.image.height, picture.image.width)))
        if len(found) == most:
            break
    return found


Board = Callable[[int, dict[str, float], Any], None]


@contextmanager
def _tensorboard(folder: Path | None) -> Iterator[Board]:
    """A function that writes a step's metrics and, where there is one, a picture; does nothing without a folder."""
    if folder is None:
        yield lambda step, metrics, picture: None
        return
    import numpy as np
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:

        def write(step: int, metrics: dict[str, float], picture: Any) -> None:
            for name, value in metrics.items():
                writer.add_scalar(name, value, step)
            if picture is not None:
                writer.add_image("held out: original, reconstruction, after 1, 2, 4, … scales", np.asarray(picture), step,
                                 dataformats="HWC")  # fmt: skip

        yield write
