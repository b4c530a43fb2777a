"""Writes a small run and a training's data in the formats of the installed version: python make.py OUT."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from nextflow_pipelines.spark.session import stop_session

from megatron_nextflow.config.model import ModelConfig
from megatron_nextflow.launching.launcher import launch

TESTS = Path(__file__).resolve().parents[1]


def module(place: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(place.replace("/", "_"), TESTS / f"{place}.py")
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def main(out: Path) -> None:
    out.mkdir(parents=True)
    module("pipelines/conftest").build_warc(out / "small.warc.gz", 3)
    module("pipelines/run_chain").run_chain(out / "run", [out / "small.warc.gz"], files=1, partitions=1)
    stop_session()
    tiny = module("megatron_nextflow/conftest")
    data = tiny.TrainingData(Path("training_data/shards"), Path("training_data/vision"))
    os.chdir(out)  # so that no path of this machine is written
    tiny.write_vision_tokenizer(data.vision_tokenizer, 0)
    tiny.write_shards(data.shards, data.vision_tokenizer, documents=8)
    model = ModelConfig(hidden_size=16, layers=1, heads=2, query_groups=1, ffn_size=16, max_length=tiny.LENGTH, max_scales=6)
    config = tiny.train_config(data, Path("training"), steps=2, model=model, tensorboard=False)
    sys.exit(launch(config, out, 1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
