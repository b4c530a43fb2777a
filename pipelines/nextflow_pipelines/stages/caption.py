"""caption: words for every image, by the captioner that the recipe names. Data sets: documents, decisions."""

from __future__ import annotations

from functools import partial
from typing import Any

from nextflow_data.captions import caption_document, make_captioner
from nextflow_data.config import CaptionConfig
from nextflow_data.stage_names import CAPTION as NAME

from nextflow_pipelines.contract.stage import StagePlan
from nextflow_pipelines.contract.tables import SCHEMAS, UnitTables
from nextflow_pipelines.contract.work import StageWork
from nextflow_pipelines.spark.context import RunContext, StageResult, run_contract
from nextflow_pipelines.spark.runner import run_units
from nextflow_pipelines.stages.common import document_files, document_units, read_documents

VERSION = 2


def carry_out(ctx: RunContext, config: CaptionConfig, documents: StageResult) -> StageResult:
    """Captions the images of a committed stage's documents."""
    captioner = make_captioner(config)
    who = f"{captioner.name}/{captioner.version}"
    plan = StagePlan(
        NAME, VERSION, {"caption": config.identity(), "captioner": who}, {documents.name: documents.fingerprint}
    )

    def body(work: StageWork) -> tuple[list[str], dict[str, Any]]:
        schemas = {name: SCHEMAS[name] for name in ("documents", "decisions")}
        units = document_units("part", document_files(documents))
        names = run_units(ctx.session, work, units, partial(_caption, config), schemas, ctx.progress, "captioning")
        return names, {"captioner": who}

    return run_contract(ctx, plan, body)


def _caption(config: CaptionConfig, payload: Any, out: UnitTables) -> None:
    captioner = make_captioner(config)
    for document in read_documents(payload["file"]):
        captioned, decisions = caption_document(document, captioner, config)
        for node in captioned["nodes"]:
            if node["image"] is not None:
                out.out.count("images", "captioned" if node["image"]["caption"] else "without words")
        out.write("documents", [captioned])
        out.write("decisions", decisions)
