"""Runs the stages on a cluster as far as one is named, telling what it does by lines of JSON; the tests' driver.

    python on_cluster.py SPARK STORAGE ROOT LAST SOURCE

SPARK and STORAGE are the recipe's sections as JSON. The first rule is `held`, which test_cluster.py offers.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from nextflow_data.rules.config import ORDER, FilterConfig
from nextflow_data.sources.warc import WarcConfig
from nextflow_data.storage.config import StorageConfig
from nextflow_data.storage.files import any_path
from nextflow_pipelines.registry import STAGES, run_stage
from nextflow_pipelines.spark.config import SparkConfig
from nextflow_pipelines.spark.context import RunContext


def tell(stage: str, done: int, total: int | None, note: str) -> None:
    print(json.dumps({"stage": stage, "done": done, "total": total, "note": note}), flush=True)


def main() -> None:
    """The script."""
    spark, stores, root, last, source = sys.argv[1:]
    storage = StorageConfig.model_validate_json(stores)
    spec = importlib.util.spec_from_file_location("run_chain", Path(__file__).parents[1] / "run_chain.py")
    assert spec is not None and spec.loader is not None
    chain = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(chain)
    sections = chain.SECTIONS | {"filter": FilterConfig(rules=("held", *ORDER))}
    results: dict[str, Any] = {}
    for name in STAGES:
        ctx = RunContext(
            any_path(root, storage), SparkConfig.model_validate_json(spark), partial(tell, name), storage=storage
        )
        results[name] = run_stage(name, ctx, sections, results, [WarcConfig(files=(source,))])
        if name == last:
            break


if __name__ == "__main__":
    main()
