"""tokenize: documents to text ids and image codes, file by file; a worker loads the tokenizers once.

Images are encoded on the CPU, or on the GPU that a task is given (`spark.gpus_per_task`); a worker that is given another
GPU loads the tokenizers again. Codes from GPUs may differ from a CPU's where two codes are equally near but for the last
bits, so the fingerprint says which of the two it was, though not which kind of GPU.

Data sets: tokenized (rows of `nextflow_tokenize.documents.tokenized`), shapes (what planning needs of each, so that no one
reads codes to count them), decisions, asides.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from nextflow_data.common.stage_names import TOKENIZE as NAME
from nextflow_data.common.whole_files import file_sha256
from nextflow_data.config import IngestConfig
from nextflow_data.decisions import Aside, Decision
from nextflow_data.document import Document, Image
from nextflow_data.storage.config import StorageConfig
from nextflow_data.storage.files import local_copy
from nextflow_data.storage.store_path import AnyPath
from nextflow_tokenize.config.tokenize import TokenizeConfig
from nextflow_tokenize.documents.tokenized import TOKENIZED_VERSION, TokenizedDocument, tokenized_schema

from nextflow_pipelines.contract.stage import StageError, StagePlan
from nextflow_pipelines.contract.tables import SCHEMAS, UnitTables
from nextflow_pipelines.contract.work import StageWork
from nextflow_pipelines.images_ahead import ImagesAhead
from nextflow_pipelines.sources import image_loader
from nextflow_pipelines.spark.context import RunContext, StageResult, run_contract
from nextflow_pipelines.spark.gpus import TaskGpus
from nextflow_pipelines.spark.runner import run_units
from nextflow_pipelines.stages import text_tokenizer, vision_tokenizer
from nextflow_pipelines.stages.common import document_files, document_units, nothing_left, read_documents

if TYPE_CHECKING:
    from nextflow_tokenize.documents.text_tokenizer import TextTokenizer
    from nextflow_tokenize.packing.pieces import DocumentShape
    from nextflow_tokenize.vision.model import VisionTokenizer

VERSION = 3
TOKENIZED = "tokenized"
SHAPES = "shapes"
_PART = pa.struct([("text", pa.int32()), ("height", pa.int32()), ("width", pa.int32()), ("scales", pa.int32())])
_SHAPE_SCHEMA = pa.schema([("doc_id", pa.string()), ("address", pa.string()), ("parts", pa.list_(_PART))])


def carry_out(
    ctx: RunContext,
    config: TokenizeConfig,
    ingest: IngestConfig,
    documents: StageResult,
    text: StageResult,
    vision: StageResult,
) -> StageResult:
    """Tokenises a committed stage's documents with two committed tokenizers; `ingest` bounds what is decoded.

    Raises GpuError (a StageError) where GPUs are asked for that are not there: in local mode before work, on a cluster from
    the first task.
    """
    hashes = {"text_tokenizer_hash": str(text.facts["tokenizer"]), "vision_tokenizer_hash": str(vision.facts["tokenizer"])}
    stages = {stage.name: stage.fingerprint for stage in (documents, text, vision)}
    device = "gpu" if ctx.spark.gpus_per_task else "cpu"
    settings = config.identity()
    if device == "cpu":
        settings.pop("batch_size", None)  # there it changes speed only; on a GPU last bits depend on it
    parameters = {"tokenize": settings, "rows": TOKENIZED_VERSION, "device": device}
    plan = StagePlan(NAME, VERSION, parameters, stages | hashes)
    return run_contract(ctx, plan, partial(_work, ctx, config, ingest, document_files(documents), text, vision))


def _work(
    ctx: RunContext,
    config: TokenizeConfig,
    ingest: IngestConfig,
    files: list[AnyPath],
    text: StageResult,
    vision: StageResult,
    work: StageWork,
) -> tuple[list[str], Mapping[str, Any]]:
    tokenizers = _Tokenizers(
        text.dir / text_tokenizer.TOKENIZER,
        str(text.facts["end_of_text"]),
        None if vision.facts["tokenizer"] is None else vision.dir / vision_tokenizer.TOKENIZER,
    )
    _check(tokenizers, text, vision)
    gpus = TaskGpus() if tokenizers.vision_path is None else TaskGpus.of(ctx.spark)
    gpus.check()
    tokenized = tokenized_schema(_codebook_size(tokenizers.vision_path))
    schemas = {TOKENIZED: tokenized, SHAPES: _SHAPE_SCHEMA} | {n: SCHEMAS[n] for n in ("decisions", "asides")}
    function = partial(_tokenize, ctx.root, ctx.storage, config, ingest, tokenizers, gpus)
    units = document_units("part", files)
    return run_units(ctx.session, work, units, function, schemas, ctx.progress, "text to ids, images to codes", gpus), {}


def _codebook_size(vision_path: AnyPath | None) -> int:
    from nextflow_tokenize.vision.identity import vision_info

    return 1 if vision_path is None else vision_info(local_copy(vision_path))["codebook_size"]


@dataclass(frozen=True)
class _Tokenizers:
    """Where a worker finds the tokenizers; `vision_path` None where the run has none."""

    text_path: AnyPath
    end_of_text: str
    vision_path: AnyPath | None


def _check(tokenizers: _Tokenizers, text: StageResult, vision: StageResult) -> None:
    """Raises StageError where a committed tokenizer is no longer the one that was committed."""
    from nextflow_tokenize.vision.identity import identity

    for stage, found in (
        (text, file_sha256(local_copy(tokenizers.text_path))),
        (vision, None if tokenizers.vision_path is None else identity(local_copy(tokenizers.vision_path))),
    ):
        if found != stage.facts["tokenizer"]:
            raise StageError(
                f"{stage.dir} does not hold the tokenizer it was committed with; remove the folder and run again"
            )


@lru_cache(maxsize=1)
def _load(tokenizers: _Tokenizers, device: str) -> tuple[TextTokenizer, VisionTokenizer | None]:
    """Both tokenizers, once a process, the vision tokenizer on `device`; of a store, from this machine's copy of them."""
    from nextflow_tokenize.documents.text_tokenizer import TextTokenizer
    from nextflow_tokenize.vision.model import VisionTokenizer

    text = TextTokenizer.load(local_copy(tokenizers.text_path), tokenizers.end_of_text)
    vision = tokenizers.vision_path
    return text, None if vision is None else VisionTokenizer.load(local_copy(vision), device)


def _tokenize(
    root: AnyPath,
    storage: StorageConfig,
    config: TokenizeConfig,
    ingest: IngestConfig,
    tokenizers: _Tokenizers,
    gpus: TaskGpus,
    payload: Any,
    out: UnitTables,
) -> None:
    from nextflow_tokenize.documents.encode import tokenize_documents

    text, vision = _load(tokenizers, gpus.device())
    originals: deque[Document] = deque()

    def documents() -> Iterator[Document]:
        for document in read_documents(payload["file"]):
            originals.append(document)
            yield document

    with ImagesAhead(image_loader(root, ingest, storage)) as load:
        read = documents() if vision is None else load.ahead(documents(), _images)
        for row, decisions, asides in tokenize_documents(read, text, vision, load, config, ingest):
            _write(originals.popleft(), row, decisions, asides, out)


def _images(document: Document) -> Iterator[Image]:
    return (node["image"] for node in document["nodes"] if node["image"] is not None)


def _write(
    document: Document,
    row: TokenizedDocument | None,
    decisions: Sequence[Decision],
    asides: Sequence[Aside],
    out: UnitTables,
) -> None:
    from nextflow_tokenize.packing.pieces import shape_of

    out.write("asides", asides)
    if row is None:
        decisions = [*decisions, nothing_left(document, NAME, "no text and no image of it could be tokenised")]
    else:
        out.write(TOKENIZED, [row])
        out.write(SHAPES, [_shape_row(shape_of(row))])
        out.progress(images=sum(segment["kind"] == "image" for segment in row["segments"]))
        for segment in row["segments"]:
            out.out.count("tokens", "text", by=len(segment["text"] or ()))
            out.out.count("tokens", "image codes", by=len(segment["target"] or ()))
            out.out.count("tokens", "images", by=int(segment["kind"] == "image"))
    out.write("decisions", decisions)


def _shape_row(shape: DocumentShape) -> dict[str, Any]:
    parts = []
    for part in shape.parts:
        height, width = part.grid or (None, None)
        parts.append({"text": part.text, "height": height, "width": width, "scales": part.scales})
    return {"doc_id": shape.doc_id, "address": shape.address, "parts": parts}


def shape_from_row(row: Mapping[str, Any]) -> DocumentShape:
    """A document's shape from a row of the data set `shapes`."""
    from nextflow_tokenize.packing.pieces import DocumentShape, SegmentShape

    return DocumentShape(
        row["doc_id"],
        tuple(
            SegmentShape(part["text"], None if part["height"] is None else (part["height"], part["width"]), part["scales"])
            for part in row["parts"]
        ),
        row["address"],
    )
