"""text_tokenizer: a byte-level BPE of the run's own text, or the tokenizer.json that the recipe names.

The tasks take the texts out of the documents, and where there is more than `text_tokenizer.max_bytes` of them they keep the
documents whose seeded hash is low enough, so the sample is the same however documents are spread. It is trained on in the
driver, in the order of ids: the library counts words in all threads it has, and what it counts is small beside the texts.
The cost: a job that only adds up sizes comes first, and the texts are written once more.

Output: `tokenizer.json`; facts: its sha256, size of the vocabulary and end-of-text id.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from nextflow_data.common.stage_names import TEXT_TOKENIZER as NAME
from nextflow_data.common.whole_files import file_sha256
from nextflow_data.storage.files import any_path, local_copy
from nextflow_data.storage.store_path import AnyPath
from nextflow_tokenize.config.tokenize import TextTokenizerConfig

from nextflow_pipelines.contract.stage import StagePlan
from nextflow_pipelines.contract.tables import UnitTables
from nextflow_pipelines.contract.units import unit_output, unit_record
from nextflow_pipelines.contract.work import StageWork
from nextflow_pipelines.spark.context import Progress, RunContext, StageResult, run_contract
from nextflow_pipelines.spark.runner import bucket_of, run_frame
from nextflow_pipelines.stages.common import document_files, read_parquet, read_rows

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

VERSION = 2
TOKENIZER = "tokenizer.json"
_UNIT = "tokenizer"
_SAMPLE = "_work/texts"
_SAMPLE_SCHEMA = pa.schema([("doc_id", pa.string()), ("texts", pa.list_(pa.string()))])
_FILES = 8
"""Files of the sample: what one task writes of it, at most, is an eighth."""
_RANKS = 1 << 48


def carry_out(ctx: RunContext, config: TextTokenizerConfig, documents: StageResult) -> StageResult:
    """Trains on a committed stage's documents, or takes `config.path`. Raises FileNotFoundError for a missing file and
    ValueError for one that is no tokenizer, before any work."""
    if config.path is None:
        inputs = {documents.name: documents.fingerprint}
        parameters = config.identity()
    else:
        from nextflow_tokenize.documents.text_tokenizer import TextTokenizer

        given = local_copy(any_path(config.path, ctx.storage))
        TextTokenizer.load(given, config.end_of_text)
        inputs = {TOKENIZER: file_sha256(given)}
        parameters = {"end_of_text": config.end_of_text}
    plan = StagePlan(NAME, VERSION, {"text_tokenizer": parameters}, inputs)
    return run_contract(ctx, plan, partial(_work, ctx, config, document_files(documents)))


def _work(
    ctx: RunContext, config: TextTokenizerConfig, files: list[AnyPath], work: StageWork
) -> tuple[list[str], Mapping[str, Any]]:
    from nextflow_tokenize.documents.text_tokenizer import TextTokenizer, train_bpe

    if unit_record(work.dir, _UNIT) is None:
        sample = [] if config.path is not None else _write_sample(ctx, config, files, work)
        with unit_output(work.dir, _UNIT) as out:
            path = out.path(TOKENIZER, published=True)
            if config.path is None:
                train_bpe(_texts(sample, ctx.progress), config, path)
            else:
                path.write_bytes(any_path(config.path, ctx.storage).read_bytes())
    tokenizer = TextTokenizer.load(local_copy(work.dir / TOKENIZER), config.end_of_text)
    facts = {
        "tokenizer": tokenizer.hash,
        "vocab_size": tokenizer.vocab_size,
        "eod_id": tokenizer.eod_id,
        "end_of_text": config.end_of_text,
    }
    return [_UNIT], facts


def _write_sample(ctx: RunContext, config: TextTokenizerConfig, files: list[AnyPath], work: StageWork) -> list[AnyPath]:
    """Has the tasks write the texts to train on; gives the files, each sorted by document."""
    units = run_frame(
        ctx.session,
        work,
        "texts",
        _FILES,
        partial(sample_texts, files, config.max_bytes, config.seed),
        ["doc_id"],
        _write_texts,
        {_SAMPLE: _SAMPLE_SCHEMA},
        ctx.progress,
        "choosing texts",
    )
    return work.files(units, _SAMPLE)


def sample_texts(files: list[AnyPath], most: int, seed: int, spark: SparkSession) -> DataFrame:
    """Texts and captions of documents, of all or of as many as have about `most` bytes: columns doc_id, texts, bucket."""
    from pyspark.sql import functions as F

    node = "CASE WHEN node.image IS NOT NULL THEN node.image.caption ELSE node.text END"
    texts = F.expr(f"filter(transform(nodes, node -> {node}), text -> length(text) > 0)")
    rows = read_parquet(spark, files, ["doc_id", "nodes"]).select("doc_id", texts.alias("texts"))
    size = F.expr("aggregate(texts, 0L, (sum, text) -> sum + octet_length(text))")
    total = rows.agg(F.sum(size).alias("bytes")).first()
    bytes_in_all = 0 if total is None else total["bytes"] or 0
    if bytes_in_all > most:
        rank = F.conv(F.substring(F.sha2(F.concat(F.lit(f"{seed}:"), "doc_id"), 256), 1, 12), 16, 10).cast("long")
        rows = rows.where(rank < _RANKS * most // bytes_in_all)
    return rows.where(F.size("texts") > 0).withColumn("bucket", bucket_of(F.col("doc_id"), _FILES))


def _write_texts(bucket: int, tables: Iterator[pa.Table], out: UnitTables) -> None:
    for table in tables:
        out.write(_SAMPLE, table)


def _texts(files: list[AnyPath], progress: Progress) -> Iterator[str]:
    """Every text and caption of the sample, by doc_id."""
    rows = heapq.merge(*(read_rows([file]) for file in files), key=lambda row: row["doc_id"])
    for number, row in enumerate(rows, start=1):
        if number % 100 == 0:
            progress(number, None, "documents read for the vocabulary")
        yield from row["texts"]
