"""vision_tokenizer: the dual-codebook tokenizer, trained on the run's own images.

Spark picks the images: distinct by content, in the order of a hash of seed and content, as many as the recipe allows, so
that the sample is the same whatever the partitions. Training runs in the driver, from the images in the source files. The
cost: one process trains, which is right for the minutes of a small run; a large tokenizer is trained elsewhere and given.

Output: `tokenizer/`, as `nextflow_tokenize.vision.train` leaves it (weights, metrics, evaluation and a sheet of held-out
images). Facts: the tokenizer's hash and its scores; the hash is null where no image could be trained on, and then only text
is tokenised.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from nextflow_data.config import IngestConfig
from nextflow_data.document import IMAGE
from nextflow_tokenize.config import VisionTokenizerConfig

from nextflow_pipelines.context import RunContext, StageResult, run_contract
from nextflow_pipelines.runner import run_frame
from nextflow_pipelines.sources import image_loader
from nextflow_pipelines.stage import StagePlan
from nextflow_pipelines.stages.common import document_files, read_parquet
from nextflow_pipelines.tables import UnitTables, iter_batches
from nextflow_pipelines.units import UnitOutput, unit_output, unit_record
from nextflow_pipelines.work import StageWork

if TYPE_CHECKING:
    from nextflow_tokenize.vision.dataset import EncodedImage
    from pyspark.sql import DataFrame, SparkSession

NAME = "vision_tokenizer"
VERSION = 1
TOKENIZER = "tokenizer"
_SAMPLE = "_work/sample"
_SAMPLE_SCHEMA = pa.schema([("rank", pa.string()), ("image", IMAGE)])
_UNIT = "tokenizer"


def run(ctx: RunContext, config: VisionTokenizerConfig, ingest: IngestConfig, documents: StageResult) -> StageResult:
    """Trains on the images of a committed stage's documents; `ingest` bounds what is decoded."""
    parameters = {"vision_tokenizer": config.model_dump(mode="json")}
    plan = StagePlan(NAME, VERSION, parameters, {documents.name: documents.fingerprint})
    return run_contract(ctx, plan, partial(_work, ctx, config, ingest, document_files(documents)))


def _work(
    ctx: RunContext, config: VisionTokenizerConfig, ingest: IngestConfig, files: list[Path], work: StageWork
) -> tuple[list[str], Mapping[str, Any]]:
    sample = run_frame(
        ctx.session,
        work,
        "sample",
        1,
        partial(_sample_images, files, config.training.seed, config.training.max_images),
        ["rank"],
        _write_sample,
        {_SAMPLE: _SAMPLE_SCHEMA},
        ctx.progress,
        "choosing images",
    )
    if unit_record(work.dir, _UNIT) is None:
        images = _encoded(ctx.root, ingest, work.files(sample, _SAMPLE))
        with unit_output(work.dir, _UNIT) as out:
            _train(ctx, config, images, out)
    facts = work.records([_UNIT])[0]["facts"]
    return [_UNIT], facts


def _sample_images(files: list[Path], seed: int, limit: int, spark: SparkSession) -> DataFrame:
    from pyspark.sql import functions as F

    images = read_parquet(spark, files).select(F.explode("nodes.image").alias("image")).where("image is not null")
    first = F.struct("image.ref.uri", "image.ref.offset", "image.address")
    distinct = images.groupBy("image.sha256").agg(F.min_by("image", first).alias("image"))
    rank = F.sha2(F.concat(F.lit(f"{seed}:"), "sha256"), 256)
    return distinct.select(rank.alias("rank"), "image", F.lit(0).alias("bucket")).orderBy("rank").limit(limit)


def _write_sample(bucket: int, tables: Iterator[pa.Table], out: UnitTables) -> None:
    for table in tables:
        out.write(_SAMPLE, table)


def _encoded(root: Path, ingest: IngestConfig, files: list[Path]) -> list[EncodedImage]:
    from nextflow_tokenize.vision.dataset import EncodedImage

    load = image_loader(root, ingest)
    images = [image for table in iter_batches(files, 1024) for image in table["image"].to_pylist()]
    return [EncodedImage(image["sha256"], partial(load, image)) for image in images]


def _train(ctx: RunContext, config: VisionTokenizerConfig, images: list[EncodedImage], out: UnitOutput) -> None:
    from nextflow_tokenize.vision.train import NoImages, train

    out.facts.update({"tokenizer": None, "images": len(images)})
    folder = out.temporary / TOKENIZER
    folder.parent.mkdir(parents=True, exist_ok=True)
    ctx.progress(0, config.training.steps, f"decoding {len(images)} images")

    def step(done: int, total: int, metrics: dict[str, float]) -> None:
        ctx.progress(done, total, f"training, {metrics.get('psnr', 0.0):.1f} dB")

    try:
        report = train(images, config, folder, step)
    except NoImages as error:
        out.facts["reason"] = str(error)
        return
    for file in sorted(folder.iterdir()):
        out.path(f"{TOKENIZER}/{file.name}")
    facts = {k: v for k, v in asdict(report).items() if k not in ("seconds", "failed", "identity")}
    out.facts.update({"tokenizer": report.identity, "failed_images": len(report.failed), **facts})
