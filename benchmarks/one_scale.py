"""One data run in a process of its own, stage by stage, for `bench_scale.py`. Prints one line of JSON.

Run: python benchmarks/one_scale.py RECIPE LAST_STAGE
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any


def peak(process: int | str) -> int:
    """Most bytes that a process held since this was last reset (VmHWM)."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def reset(process: int | str) -> None:
    """Has the kernel begin the peak anew."""
    Path(f"/proc/{process}/clear_refs").write_text("5", encoding="ascii")


def heap(context: Any) -> int:
    """Bytes of the driver's Java objects that are in use."""
    runtime = context.session().sparkContext._jvm.java.lang.Runtime.getRuntime()
    runtime.gc()
    return int(runtime.totalMemory() - runtime.freeMemory())


def main() -> None:
    from nextflow_orchestration.recipes.run import load_recipe
    from nextflow_pipelines.registry import STAGES, run_stage
    from nextflow_pipelines.spark.context import RunContext

    recipe = load_recipe(Path(sys.argv[1]), [])
    context = RunContext(recipe.root, recipe.spark)
    context.session().range(2).mapInArrow(lambda batches: batches, "id long").count()
    java = next(int(p.name) for p in Path("/proc").glob("[0-9]*") if _is_our_java(p))
    results: dict[str, Any] = {}
    found = {}
    for name in STAGES:
        for process in ("self", java):
            reset(process)
        began = time.perf_counter()
        results[name] = run_stage(name, context, recipe.sections(), results, recipe.entries())
        seconds = time.perf_counter() - began
        rows = results[name].counts.get("rows", {})
        found[name] = {"seconds": seconds, "python": peak("self"), "java": peak(java), "heap": heap(context), "rows": rows}
        print(name, found[name], file=sys.stderr, flush=True)
        if name == sys.argv[2]:
            break
    context.close()
    print(json.dumps(found))


def _is_our_java(folder: Path) -> bool:
    """Whether a process is a Java that descends from this one."""
    import os

    try:
        if "java" not in (folder / "comm").read_text():
            return False
        number = int(folder.name)
        while number > 1:
            if number == os.getpid():
                return True
            number = int((Path("/proc") / str(number) / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        pass
    return False


if __name__ == "__main__":
    main()
