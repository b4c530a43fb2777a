"""How many bytes is a row, where it is stored and where it goes through a shuffle?

SCALE.md reckons with these. A data run over changed copies of one archive (changed_copies.py), stage by stage, that keeps
what stages remove when they commit: of each data set the bytes of its Parquet files over its rows, of each job the bytes
that Spark says were written to shuffles, over their rows, of done-records their bytes and what Python takes to hold them.
The copies are near copies, so duplicates have more pairs than a crawl's would.
Run: python benchmarks/bench_rows.py ARCHIVE.warc.gz [--copies 4]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import tracemalloc
from collections import defaultdict
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow.parquet as pq
from bench_scale import RECIPE
from changed_copies import changed_copies
from common import Section, report, table

KEPT = (
    "nextflow_pipelines.contract.work.remove_work",
    "nextflow_pipelines.contract.work.remove_strays",
    "nextflow_pipelines.stages.ingest.discard",
)
"""What removes a stage's working files."""


def run(recipe_file: Path) -> list[tuple[str, int, int]]:
    """Runs all data stages; gives (job, rows, bytes) of what was written to shuffles, in order."""
    from nextflow_orchestration.recipes.run import load_recipe
    from nextflow_pipelines.registry import STAGES, run_stage
    from nextflow_pipelines.spark.context import RunContext

    recipe = load_recipe(recipe_file, [])
    context = RunContext(recipe.root, recipe.spark)
    spark = context.session().sparkContext
    jvm: Any = spark._jvm
    results: dict[str, Any] = {}
    jobs: list[tuple[str, int, int]] = []
    seen: set[int] = set()
    for name in STAGES:
        results[name] = run_stage(name, context, recipe.sections(), results, recipe.entries())
        none = spark._gateway.new_array(jvm.double, 0)  # type: ignore[union-attr]
        listed = spark._jsc.sc().statusStore().stageList(None, False, False, none, jvm.java.util.ArrayList())
        stages = sorted((listed.apply(n) for n in range(listed.size())), key=lambda stage: stage.stageId())
        for stage in stages:
            if stage.stageId() not in seen and stage.shuffleWriteBytes():
                said = stage.description()
                job = said.get() if said.isDefined() and ": " in said.get() else f"{name}: in passing"
                jobs.append((job, stage.shuffleWriteRecords(), stage.shuffleWriteBytes()))
            seen.add(stage.stageId())
    context.close()
    return jobs


def stored(root: Path) -> Section:
    """Rows and bytes of each data set."""
    found: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
    for file in root.rglob("*.parquet"):
        folder = file.parent.relative_to(root)
        stage, *inside = folder.parts
        name = "/".join([stage.rpartition("-")[0], *inside])
        found[name][0] += pq.read_metadata(file).num_rows
        found[name][1] += file.stat().st_size
    rows = [[name, f"{n:,}", f"{size:,}", f"{size / n:,.0f}"] for name, (n, size) in sorted(found.items()) if n]
    return table("Stored, Parquet", ["data set", "rows", "bytes", "bytes a row"], rows)


def records(root: Path) -> Section:
    """Bytes of a done-record of each stage, stored and held."""
    rows = []
    for folder in sorted(root.glob("*/_work/done")):
        content = min(folder.glob("*.json")).read_bytes()
        tracemalloc.start()
        held = [json.loads(content) for _ in range(1000)]
        size = tracemalloc.get_traced_memory()[0] / len(held)
        rows.append([folder.parts[-3].rpartition("-")[0], f"{len(content):,}", f"{size:,.0f}"])
        tracemalloc.stop()
    return table("A done-record", ["stage", "bytes", "held by Python, bytes"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("--copies", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "reports")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root, recipe = Path(scratch) / "run", Path(scratch) / "recipe.yaml"
        archives = changed_copies(options.archive, Path(scratch) / "corpus", options.copies)
        names = json.dumps([str(path) for path in archives])
        recipe.write_text(RECIPE.format(root=root, archives=names, files=4), encoding="utf-8")
        with mock.patch(KEPT[0]), mock.patch(KEPT[1]), mock.patch(KEPT[2]):
            jobs = run(recipe)
        rows = [[job, f"{n:,}", f"{size:,}", f"{size / n:,.0f}"] for job, n, size in jobs if n]
        shuffled = table("Through shuffles, compressed", ["job", "rows", "bytes", "bytes a row"], rows)
        sections = [stored(root), shuffled, records(root)]
        tars = sum(file.stat().st_size for file in root.rglob("shard-*.tar"))
    print(report("rows", __doc__ or "", sections, [f"Tars: {tars:,} bytes."], options.out))


if __name__ == "__main__":
    main()
