"""text_tokenizer: a byte-level BPE of the run's own text, or the tokenizer.json that the recipe names.

Trained in the driver, over documents in the order of their ids: the library counts words in all threads it has, and what it
counts is small beside the documents. Output: `tokenizer.json`; facts: its sha256, size of the vocabulary and end-of-text id.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from nextflow_data.common.stage_names import TEXT_TOKENIZER as NAME
from nextflow_data.common.whole_files import file_sha256
from nextflow_tokenize.config.tokenize import TextTokenizerConfig

from nextflow_pipelines.contract.stage import StagePlan
from nextflow_pipelines.contract.units import unit_output, unit_record
from nextflow_pipelines.contract.work import StageWork
from nextflow_pipelines.spark.context import Progress, RunContext, StageResult, run_contract
from nextflow_pipelines.stages.common import document_files, documents_in_order

VERSION = 1
TOKENIZER = "tokenizer.json"
_UNIT = "tokenizer"


def carry_out(ctx: RunContext, config: TextTokenizerConfig, documents: StageResult) -> StageResult:
    """Trains on a committed stage's documents, or takes `config.path`. Raises FileNotFoundError for a missing file and
    ValueError for one that is no tokenizer, before any work."""
    if config.path is None:
        inputs = {documents.name: documents.fingerprint}
        parameters = config.identity()
    else:
        from nextflow_tokenize.documents.text_tokenizer import TextTokenizer

        TextTokenizer.load(config.path, config.end_of_text)
        inputs = {TOKENIZER: file_sha256(Path(config.path))}
        parameters = {"end_of_text": config.end_of_text}
    plan = StagePlan(NAME, VERSION, {"text_tokenizer": parameters}, inputs)
    return run_contract(ctx, plan, partial(_work, ctx, config, document_files(documents)))


def _work(
    ctx: RunContext, config: TextTokenizerConfig, files: list[Path], work: StageWork
) -> tuple[list[str], Mapping[str, Any]]:
    from nextflow_tokenize.documents.text_tokenizer import TextTokenizer, train_bpe

    if unit_record(work.dir, _UNIT) is None:
        with unit_output(work.dir, _UNIT) as out:
            path = out.path(TOKENIZER)
            if config.path is None:
                train_bpe(_texts(files, ctx.progress), config, path)
            else:
                path.write_bytes(Path(config.path).read_bytes())
    tokenizer = TextTokenizer.load(work.dir / TOKENIZER, config.end_of_text)
    facts = {
        "tokenizer": tokenizer.hash,
        "vocab_size": tokenizer.vocab_size,
        "eod_id": tokenizer.eod_id,
        "end_of_text": config.end_of_text,
    }
    return [_UNIT], facts


def _texts(files: list[Path], progress: Progress) -> Iterator[str]:
    """Every text and caption."""
    for number, document in enumerate(documents_in_order(files), start=1):
        if number % 100 == 0:
            progress(number, None, "documents read for the vocabulary")
        for node in document["nodes"]:
            text = node["image"]["caption"] if node["image"] is not None else node["text"]
            if text:
                yield text
