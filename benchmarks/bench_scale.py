"""Does a data run's time grow as its corpus does, and the driver's memory not at all?

A corpus of changed copies of one archive (changed_copies.py) at 1, 4 and 16 times its size, through the stages of a data
run, each size in a process of its own, on a Spark master and two workers of one core on loopback: so the driver is nothing
but a driver. Told by stage are seconds, the peak of the driver's Python, the peak of its JVM, and what of that one's heap
was in use after a collection at the stage's end. The exponent is that of time between the smallest and the largest,
log(t16 / t1) / log 16. Goals: exponent at most 1.05, the driver's memory within 10 % from 4 to 16 times.
What the driver may hold by a setting (a sample of text, the last edges of copies) is set so low that 1 times reaches it.
`--copies 5` of a 7 MB archive is 570 MB at 16 times. Run: python benchmarks/bench_scale.py ARCHIVE.warc.gz [--copies 5]
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from changed_copies import changed_copies
from common import report, table
from nextflow_pipelines.spark.standalone import Standalone

RECIPE = """
name: scale
root: {root}
input: {archives}
spark: {{master: "{master}", files: {files}, partitions: {files}, options: {{spark.executor.memory: 1g}}}}
vision_tokenizer: {{levels: [128], codebook_size: 512, training: {{steps: 2, max_images: 64, batch_tokens: 128}}}}
text_tokenizer: {{vocab_size: 4096, max_bytes: 2000000}}
dedup: {{edges_in_one_task: 200}}
tokenize: {{level: 128, lower_levels: []}}
pack: {{max_length: 2048}}
"""


def run(archive: Path, copies: int, last: str, scratch: Path) -> tuple[float, dict[str, Any]]:
    """Megabytes of the corpus, and what `one_scale.py` found of each stage."""
    archives = changed_copies(archive, scratch / "corpus", copies, files=8)
    recipe = scratch / "recipe.yaml"
    names = json.dumps([str(path) for path in archives])
    command = [sys.executable, str(Path(__file__).with_name("one_scale.py")), str(recipe), last]
    with Standalone(scratch / "cluster", workers=2) as cluster:
        words = RECIPE.format(root=scratch / "run", archives=names, files=8, master=cluster.master)
        recipe.write_text(words, encoding="utf-8")
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=scratch)
    if done.returncode:
        raise SystemExit(f"{copies} copies failed")
    return sum(path.stat().st_size for path in archives) / 1e6, json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("--copies", type=int, default=5, help="copies at 1 times")
    parser.add_argument("--times", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--last", default="pack", help="stage to end with")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "reports")
    options = parser.parse_args()
    sizes, found = [], []
    for times in options.times:
        with tempfile.TemporaryDirectory() as scratch:
            size, stages = run(options.archive, times * options.copies, options.last, Path(scratch))
        sizes.append(size)
        found.append(stages)
    span = math.log(options.times[-1] / options.times[0])
    rows = []
    for name in [*found[0], "all"]:
        seconds = [sum(s["seconds"] for s in one.values()) if name == "all" else one[name]["seconds"] for one in found]
        cells = [name, *(f"{value:.1f}" for value in seconds), f"{math.log(seconds[-1] / seconds[0]) / span:.2f}"]
        for kind in ("python", "java", "heap"):
            most = [max(s[kind] for s in one.values()) if name == "all" else one[name][kind] for one in found]
            cells.append(" / ".join(f"{value / 2**20:.0f}" for value in most))
        rows.append(cells)
    words = [f"{times}×, {size:.0f} MB" for times, size in zip(options.times, sizes, strict=True)]
    header = ["stage", *(f"{word}: s" for word in words), "exponent", "driver's Python, MiB", "its JVM, MiB", "of it in use"]
    documents = [one["ingest"]["rows"]["documents"] for one in found]
    remarks = [f"Documents: {', '.join(f'{count:,}' for count in documents)}."]
    remarks.append("Exponents below 1 are fixed costs: Spark's jobs, the tokenizers' training.")
    print(report("scale", __doc__ or "", [table("a data run", header, rows)], remarks, options.out))


if __name__ == "__main__":
    main()
