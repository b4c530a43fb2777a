"""The command in a light install: nothing heavy is loaded before a verb needs it, and a missing extra is named."""

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

TRAINERS = ("torch", "safetensors", "megatron", "einops", "skimage", "tensorboard")
"""What only the extra [train] brings."""
HEAVY = ("torch", "pyspark", "prefect", "megatron", "datatrove", "scipy", "PIL")
PROBE = """
import json, sys
sys.argv = ["mnf", *{arguments}]

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {hide}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hidden())
from nextflow_orchestration.cli import main
try:
    main()
except SystemExit as end:
    print(json.dumps({{"code": end.code, "loaded": sorted({{name.partition(".")[0] for name in sys.modules}})}}))
"""


def run(arguments: list[str], hide: tuple[str, ...] = ()) -> tuple[dict[str, object], str]:
    """Runs `mnf` in a fresh interpreter in which `hide` cannot be imported; what it loaded, and its standard error."""
    code = PROBE.format(arguments=arguments, hide=set(hide) or "()")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def brought_by_extras() -> tuple[str, ...]:
    """Every module here that an installation of the base alone would not have."""
    base: set[str] = set()
    wanted = ["megatron-nextflow"]
    while wanted:
        name = re.sub(r"[-_.]+", "-", wanted.pop()).lower()
        if name not in base:
            base.add(name)
            needs = [Requirement(text) for text in metadata.requires(name) or ()]
            wanted += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    owners = metadata.packages_distributions()
    return tuple(m for m, by in owners.items() if not base & {re.sub(r"[-_.]+", "-", name).lower() for name in by})


def test_help_and_recipes_load_nothing_heavy() -> None:
    extras = brought_by_extras()
    assert {"cchardet", "lxml", *HEAVY} <= set(extras) and not {"pydantic", "pyarrow"} & set(extras)
    for arguments in (["--help"], ["recipe", "recipes/quickstart.yaml"]):
        result, said = run(arguments, hide=extras)
        assert result["code"] == 0, said
        assert not set(HEAVY) & set(result["loaded"])  # type: ignore[call-overload]


def test_the_data_side_reads_and_reckons_its_recipe_without_the_trainers_packages(tmp_path: Path) -> None:
    plain = ["recipe", "recipes/quickstart.yaml", "--plain"]
    for arguments in (plain, ["run", "recipes/quickstart.yaml", "--dry-run", "--set", f"root={tmp_path}/run"]):
        result, said = run(arguments, hide=(*TRAINERS, "pyspark", "prefect", "datatrove", "spacy"))
        assert result["code"] == 0, said
    assert not (tmp_path / "run").exists()


def test_audit_and_explain_work_without_any_extra(small_run) -> None:  # type: ignore[no-untyped-def]
    extras = brought_by_extras()
    shards = next(small_run.root.glob("pack-*/shards"))
    result, said = run(["audit", str(shards), "--report", str(small_run.root.parent / "audit.html")], hide=extras)
    assert result["code"] == 0, said
    for query, code in (("kept.html", 0), ("nothing-like-it", 1)):
        result, said = run(["explain", query, "--root", str(small_run.root)], hide=extras)
        assert (result["code"], said) == (code, "")


def test_a_missing_extra_is_named() -> None:
    for package, extra in (("pyspark", "data"), ("megatron", "train")):
        result, said = run(["run", "recipes/quickstart.yaml"], hide=(package,))
        assert result["code"] == 2
        assert said.splitlines() == [f"error: this needs {package}: pip install 'megatron-nextflow[{extra}]'"]
