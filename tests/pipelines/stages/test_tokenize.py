"""The tokenize stage by itself: types of codes, progress and speed, and GPUs that are not there."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bound import bind_sources
from nextflow_pipelines.contract.stage import read_manifest
from nextflow_pipelines.contract.tables import dataset_files
from nextflow_pipelines.registry import run_stage
from nextflow_pipelines.spark.config import SparkConfig
from nextflow_pipelines.spark.context import RunContext, StageResult
from nextflow_pipelines.spark.gpus import GpuError
from nextflow_pipelines.stages.tokenize import _load, _Tokenizers
from nextflow_tokenize.documents.tokenized import tokenized_schema
from nextflow_tokenize.npy import code_dtype

Results = Mapping[str, StageResult]


def code_types(result: StageResult) -> set[Any]:
    """Types of the code columns over all files of a data set."""
    found = set()
    for file in dataset_files(result.dir, "tokenized"):
        segment = pq.read_schema(file).field("segments").type.value_type
        found |= {segment.field(name).type.value_type for name in ("input", "target")}
    return found


def test_codes_have_the_smallest_type_for_the_codebook(results: Results) -> None:
    assert code_types(results["tokenize"]) == {pa.uint8()}  # 32 entries
    for size, kind in ((1, pa.uint8()), (256, pa.uint8()), (257, pa.uint16()), (65_536, pa.uint16()), (65_537, pa.uint32())):
        segment = tokenized_schema(size).field("segments").type.value_type
        assert segment.field("input").type.value_type == segment.field("target").type.value_type == kind
        assert pa.from_numpy_dtype(code_dtype(size)) == kind
    with pytest.raises(ValueError, match="does not fit 32 bits"):
        tokenized_schema((1 << 32) + 1)


def test_images_and_their_speed_are_in_the_metrics_and_not_in_the_output(
    damaged_files: Any, results: Results, root: Path
) -> None:
    (line,) = (root / "metrics" / "tokenize.jsonl").read_text().splitlines()
    metrics, result = json.loads(line), results["tokenize"]
    assert metrics["images"] == result.counts["tokens"]["images"] > 0
    assert 0 < metrics["images_per_second"] < metrics["images"] / 0.01
    assert "per_second" not in (result.dir / "manifest.json").read_text()
    assert not (result.dir / "_work").exists() and damaged_files(result.dir) == []


def test_progress_says_images_and_speed(results: Results, chain: ModuleType, warc: Path, tmp_path: Path) -> None:
    bind_sources(tmp_path, [warc])
    notes: list[str] = []
    ctx = RunContext(tmp_path, progress=lambda done, total, note: notes.append(note))
    again = run_stage("tokenize", ctx, chain.SECTIONS, results)
    assert (again.fingerprint, again.counts) == (results["tokenize"].fingerprint, results["tokenize"].counts)
    images = again.counts["tokens"]["images"]
    assert re.fullmatch(rf"text to ids, images to codes: {images} images, \d+\.\d images/s", notes[-2])
    done = [int(found[1]) for note in notes if (found := re.search(r"(\d+) images,", note))]
    assert done == sorted(done)


def test_gpus_that_are_not_there_stop_it_before_any_work(
    results: Results, chain: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def no_session(self: RunContext) -> Any:
        raise AssertionError("a session was asked for")

    monkeypatch.setattr(RunContext, "session", no_session)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ctx = RunContext(tmp_path, SparkConfig(gpus_per_task=1))
    with pytest.raises(GpuError, match=r"spark\.gpus_per_task asks for GPUs and torch sees none"):
        run_stage("tokenize", ctx, chain.SECTIONS, results)
    (folder,) = tmp_path.glob("tokenize-*")
    assert folder.name != results["tokenize"].dir.name  # codes of GPUs are an output of their own
    assert not list((folder / "_work" / "done").iterdir())
    assert read_manifest(results["tokenize"].dir)["parameters"]["device"] == "cpu"


def test_a_worker_loads_anew_for_another_device_and_only_then(results: Results) -> None:
    tokenizers = _Tokenizers(
        results["text_tokenizer"].dir / "tokenizer.json",
        results["text_tokenizer"].facts["end_of_text"],
        results["vision_tokenizer"].dir / "tokenizer",
    )
    _load.cache_clear()
    first, second, third = (_load(tokenizers, device)[1] for device in ("cpu", "cpu", "meta"))
    assert first is not None and third is not None
    assert first is second and first is not third and third.device.type == "meta"
    assert _load.cache_info().currsize == 1
    _load.cache_clear()
