"""caption: words for every image, by the captioner that the recipe names. Data sets: documents, decisions.

The captioner is made once a worker and settings, never in the driver; its tasks have a GPU where it wants one and
`spark.gpus_per_task` deals them out.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

from nextflow_data.captioners.caption import caption_documents
from nextflow_data.captioners.captioner import Captioner, captioners
from nextflow_data.captioners.config import CaptionConfig
from nextflow_data.common.stage_names import CAPTION as NAME
from nextflow_data.config import IngestConfig
from nextflow_data.storage.config import StorageConfig
from nextflow_data.storage.store_path import AnyPath

from nextflow_pipelines.contract.stage import StagePlan
from nextflow_pipelines.contract.tables import SCHEMAS, UnitTables
from nextflow_pipelines.contract.work import StageWork
from nextflow_pipelines.sources import image_loader
from nextflow_pipelines.spark.context import RunContext, StageResult, run_contract
from nextflow_pipelines.spark.gpus import TaskGpus
from nextflow_pipelines.spark.runner import run_units
from nextflow_pipelines.stages.common import document_files, document_units, read_documents

VERSION = 2


def carry_out(ctx: RunContext, config: CaptionConfig, ingest: IngestConfig, documents: StageResult) -> StageResult:
    """Captions the images of a committed stage's documents; `ingest` bounds what is decoded.

    Raises GpuError where the captioner wants GPUs that are asked for and not there.
    """
    kind = captioners.get(config.captioner)
    gpus = TaskGpus.of(ctx.spark) if kind.wants_gpu else TaskGpus()
    parameters: dict[str, Any] = {"caption": config.identity()}
    if kind.wants_gpu:
        parameters["device"] = "gpu" if gpus.per_task else "cpu"
    plan = StagePlan(NAME, VERSION, parameters, {documents.name: documents.fingerprint})

    def body(work: StageWork) -> tuple[list[str], dict[str, Any]]:
        gpus.check()
        schemas = {name: SCHEMAS[name] for name in ("documents", "decisions")}
        units = document_units("part", document_files(documents))
        function = partial(_caption, ctx.root, ctx.storage, config, ingest, gpus)
        names = run_units(ctx.session, work, units, function, schemas, ctx.progress, "captioning", gpus)
        return names, {"captioner": f"{kind.name}/{kind.version}"}

    return run_contract(ctx, plan, body)


@lru_cache(maxsize=1)
def _made(root: AnyPath, storage: StorageConfig, config: CaptionConfig, ingest: IngestConfig, device: str) -> Captioner[Any]:
    """The captioner, once a worker."""
    return captioners.get(config.captioner)(config.settings, image_loader(root, ingest, storage), device)


def _caption(
    root: AnyPath,
    storage: StorageConfig,
    config: CaptionConfig,
    ingest: IngestConfig,
    gpus: TaskGpus,
    payload: Any,
    out: UnitTables,
) -> None:
    captioner = _made(root, storage, config, ingest, gpus.device())
    for captioned, decisions in caption_documents(read_documents(payload["file"]), captioner, config.batch_images):
        for node in captioned["nodes"]:
            if node["image"] is not None:
                out.out.count("images", "captioned" if node["image"]["caption"] else "without words")
                out.progress(images=1)
        out.write("documents", [captioned])
        out.write("decisions", decisions)
