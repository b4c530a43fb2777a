"""vision_tokenizer: the dual-codebook tokenizer, trained on the run's own images, or the trained one that the recipe
names.

Spark picks the images: distinct by content, in the order of a hash of seed and content, as many as the recipe allows, so
that the sample is the same whatever the partitions. Training runs in the driver, from the images in the source files, and
goes on from its last checkpoint when it was killed. The cost: one process trains, which is right for the minutes of a
small run; a large tokenizer is trained elsewhere and given (`path`). A given one is copied, and scored anew on some of
the run's images (on the CPU, for the same scores anywhere), so that a run holds all that its shards need and shows how
well the tokenizer fits them; the fingerprint depends on its identity and not on where it lay.

Output: `tokenizer/`, as `nextflow_tokenize.vision.training.training_stage` leaves it (weights, metrics, evaluation and a
sheet of held-out images; no metrics for a given one, and no scores where none of the run's images fills one of its levels).
Facts: the tokenizer's hash and its scores; the hash is null where no image could be trained on, and then only text is
tokenised.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from nextflow_data.common.stage_names import VISION_TOKENIZER as NAME
from nextflow_data.config import IngestConfig
from nextflow_data.document import IMAGE
from nextflow_data.storage.errors import STORE_FAULTS
from nextflow_data.storage.files import any_path, local_copy
from nextflow_data.storage.store_path import AnyPath
from nextflow_tokenize.config.vision import VisionTokenizerConfig
from nextflow_tokenize.vision.identity import CONFIG_FILE, WEIGHTS_FILE, identity, training_identity

from nextflow_pipelines.contract.stage import StageError, StagePlan
from nextflow_pipelines.contract.tables import UnitTables, iter_batches
from nextflow_pipelines.contract.units import UnitOutput, unit_output, unit_record
from nextflow_pipelines.contract.work import StageWork
from nextflow_pipelines.sources import image_loader
from nextflow_pipelines.spark.context import RunContext, StageResult, run_contract
from nextflow_pipelines.spark.runner import run_frame
from nextflow_pipelines.stages.common import document_files, read_parquet

if TYPE_CHECKING:
    from nextflow_tokenize.vision.images.dataset import EncodedImage, Picture
    from nextflow_tokenize.vision.model import VisionTokenizer
    from pyspark.sql import DataFrame, SparkSession

VERSION = 2
TOKENIZER = "tokenizer"
GIVEN_IMAGES = 64
"""Images that a given tokenizer is scored on at most, chosen by their hash."""
_SAMPLE = "_work/sample"
_SAMPLE_SCHEMA = pa.schema([("rank", pa.string()), ("image", IMAGE)])
_UNIT = "tokenizer"
_CHECKPOINTS = "_work/training"
"""Where a killed training's checkpoints wait, in the stage's folder under `RunContext.work`; gone when it is committed."""


def carry_out(ctx: RunContext, config: VisionTokenizerConfig, ingest: IngestConfig, documents: StageResult) -> StageResult:
    """Trains on the images of a committed stage's documents, or takes `config.path`; `ingest` bounds what is decoded.

    Raises, before any work, FileNotFoundError and ValueError for a path that is not the folder of a vision tokenizer
    that was trained on levels.
    """
    inputs = {documents.name: documents.fingerprint}
    files = document_files(documents)
    if config.path is None:
        parameters: dict[str, Any] = training_identity(config)
        body = partial(_work, ctx, config, ingest, files, config.training.seed, config.training.max_images)
    else:
        from nextflow_tokenize.vision.usable import check_levels, read_tokenizer_config

        folder = local_copy(any_path(config.path, ctx.storage))
        check_levels(read_tokenizer_config(folder), ())
        inputs[TOKENIZER] = identity(folder)
        parameters = {"given": True, "images": GIVEN_IMAGES}
        body = partial(_work, ctx, config, ingest, files, 0, GIVEN_IMAGES)
    plan = StagePlan(NAME, VERSION, {"vision_tokenizer": parameters}, inputs)
    return run_contract(ctx, plan, body)


def _work(
    ctx: RunContext,
    config: VisionTokenizerConfig,
    ingest: IngestConfig,
    files: list[AnyPath],
    seed: int,
    most: int,
    work: StageWork,
) -> tuple[list[str], Mapping[str, Any]]:
    folder = None if config.path is None else local_copy(any_path(config.path, ctx.storage))
    given = None if folder is None else _load_given(folder, work.plan.inputs[TOKENIZER])
    sample = run_frame(
        ctx.session,
        work,
        "sample",
        1,
        partial(_sample_images, files, seed, most),
        ["rank"],
        _write_sample,
        {_SAMPLE: _SAMPLE_SCHEMA},
        ctx.progress,
        "choosing images",
    )
    if unit_record(work.dir, _UNIT) is None:
        images = _encoded(ctx, ingest, work.files(sample, _SAMPLE))
        with unit_output(work.dir, _UNIT) as out:
            if given is None or folder is None:
                _train(ctx, config, images, out, ctx.work / work.dir.name / _CHECKPOINTS)
            else:
                _take(ctx, folder, given, images, out)
    facts = work.records([_UNIT])[0]["facts"]
    return [_UNIT], facts


def _sample_images(files: list[AnyPath], seed: int, limit: int, spark: SparkSession) -> DataFrame:
    from pyspark.sql import functions as F

    documents = read_parquet(spark, files, ["nodes"])
    images = documents.select(F.explode("nodes.image").alias("image")).where("image is not null")
    first = F.struct("image.ref.uri", "image.ref.offset", "image.address")
    distinct = images.groupBy("image.sha256").agg(F.min_by("image", first).alias("image"))
    rank = F.sha2(F.concat(F.lit(f"{seed}:"), "sha256"), 256)
    return distinct.select(rank.alias("rank"), "image", F.lit(0).alias("bucket")).orderBy("rank").limit(limit)


def _write_sample(bucket: int, tables: Iterator[pa.Table], out: UnitTables) -> None:
    for table in tables:
        out.write(_SAMPLE, table)


def _encoded(ctx: RunContext, ingest: IngestConfig, files: list[AnyPath]) -> list[EncodedImage]:
    from nextflow_tokenize.vision.images.dataset import EncodedImage

    load = image_loader(ctx.root, ingest, ctx.storage)
    images = [image for table in iter_batches(files, 1024) for image in table["image"].to_pylist()]
    return [EncodedImage(image["sha256"], partial(load, image)) for image in images]


def _train(
    ctx: RunContext, config: VisionTokenizerConfig, images: list[EncodedImage], out: UnitOutput, checkpoints: Path
) -> None:
    from nextflow_tokenize.vision.images.dataset import NoImages
    from nextflow_tokenize.vision.training.training_stage import train_one_stage

    out.facts.update({"tokenizer": None, "images": len(images)})
    folder = out.temporary / TOKENIZER
    for needed in (folder.parent, checkpoints.parent):
        needed.mkdir(parents=True, exist_ok=True)
    ctx.progress(0, config.training.steps, f"decoding {len(images)} images")

    def step(done: int, total: int, metrics: dict[str, float]) -> None:
        ctx.progress(done, total, f"training, {metrics.get('psnr', 0.0):.1f} dB")

    try:
        report = train_one_stage(images, config, folder, step, work=checkpoints)
    except NoImages as error:
        out.facts["reason"] = str(error)
        return
    for file in sorted(folder.iterdir()):
        out.path(f"{TOKENIZER}/{file.name}", published=True)
    facts = {k: v for k, v in asdict(report).items() if k not in ("seconds", "failed", "identity")}
    out.facts.update({"tokenizer": report.identity, "failed_images": len(report.failed), **facts})


def _load_given(folder: Path, name: str) -> VisionTokenizer:
    """The tokenizer in `folder`. ValueError where it does not load, StageError where it is no longer `name`."""
    from nextflow_tokenize.vision.model import VisionTokenizer

    tokenizer = VisionTokenizer.load(folder)
    if tokenizer.identity != name:
        raise StageError(f"the vision tokenizer in {folder} changed while the run began; run again when it is at rest")
    return tokenizer


def _take(ctx: RunContext, folder: Path, tokenizer: VisionTokenizer, images: list[EncodedImage], out: UnitOutput) -> None:
    """Copies a given tokenizer and scores it as training scores its own."""
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        shutil.copyfile(folder / name, out.path(f"{TOKENIZER}/{name}", published=True))
    copied = identity(out.temporary / TOKENIZER)
    if copied != tokenizer.identity:
        raise StageError(f"the vision tokenizer in {folder} changed while it was copied; run again when it is at rest")
    out.facts.update({"tokenizer": copied, "given": True, "images": len(images)})
    pictures, failed = _fitting(ctx, tokenizer, images)
    out.facts.update({"evaluated_images": len(pictures), "failed_images": failed})
    if pictures:
        out.facts.update(_score(ctx, tokenizer, pictures, out))


def _fitting(ctx: RunContext, tokenizer: VisionTokenizer, images: Sequence[EncodedImage]) -> tuple[list[Picture], int]:
    """The images that can be decoded and fill one of the tokenizer's grids, and how many of the others there are."""
    from nextflow_tokenize.vision.images.dataset import open_picture
    from nextflow_tokenize.vision.scores.sheets import schedule_for

    side = 2 * max(tokenizer.config.levels)
    found: list[Picture] = []
    for number, image in enumerate(images):
        ctx.progress(number, len(images), "decoding images to score the given tokenizer")
        try:
            picture = open_picture(image, side)
            if schedule_for(tokenizer, picture.size) is not None:
                found.append(picture)
        except STORE_FAULTS:
            raise
        except Exception:  # any of a dozen decoders' errors: it is counted, and the tokenize stage puts the image aside
            continue
    return found, len(images) - len(found)


def _score(ctx: RunContext, tokenizer: VisionTokenizer, pictures: list[Picture], out: UnitOutput) -> dict[str, Any]:
    """Writes evaluation and sheet; gives the scores as facts."""
    from nextflow_tokenize.vision.model import cpu_threads
    from nextflow_tokenize.vision.scores.evaluate import evaluate_pictures
    from nextflow_tokenize.vision.scores.sheets import sheet_of
    from nextflow_tokenize.vision.training.training_stage import EVALUATION_FILE, SHEET_FILE, SHEET_ROWS

    ctx.progress(0, None, f"scoring the given tokenizer on {len(pictures)} images")
    with cpu_threads(1):
        report = evaluate_pictures(tokenizer, pictures)
        scores = json.dumps(asdict(report), indent=1, sort_keys=True)
        out.path(f"{TOKENIZER}/{EVALUATION_FILE}", published=True).write_text(scores + "\n", encoding="utf-8")
        sheet_of(tokenizer, pictures[:SHEET_ROWS]).save(out.path(f"{TOKENIZER}/{SHEET_FILE}", published=True))
    return {"psnr": report.psnr, "usage": report.usage, "semantic_cosine": report.semantic_cosine}
