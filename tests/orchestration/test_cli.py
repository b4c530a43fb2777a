"""The command in a light install: nothing heavy is loaded before a verb needs it, and a missing extra is named."""

import json
import subprocess
import sys

HEAVY = ("torch", "pyspark", "prefect", "megatron", "datatrove", "scipy", "PIL")
PROBE = """
import json, sys
sys.argv = ["mnf", *{arguments}]
{hide}
from nextflow_orchestration.cli import main
try:
    main()
except SystemExit as end:
    print(json.dumps({{"code": end.code, "loaded": sorted({{name.partition(".")[0] for name in sys.modules}})}}))
"""


def run(arguments: list[str], hide: tuple[str, ...] = ()) -> tuple[dict[str, object], str]:
    """Runs `mnf` in a fresh interpreter in which `hide` cannot be imported; what it loaded, and its standard error."""
    hidden = "\n".join(f"sys.modules[{name!r}] = None" for name in hide)
    code = PROBE.format(arguments=arguments, hide=hidden)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_help_and_recipes_load_nothing_heavy() -> None:
    for arguments in (["--help"], ["recipe", "recipes/quickstart.yaml"]):
        result, _ = run(arguments)
        assert result["code"] == 0
        assert not set(HEAVY) & set(result["loaded"])  # type: ignore[call-overload]


def test_audit_and_explain_work_without_any_extra(small_run) -> None:  # type: ignore[no-untyped-def]
    shards = next(small_run.root.glob("pack-*/shards"))
    result, said = run(["audit", str(shards), "--report", str(small_run.root.parent / "audit.html")], hide=HEAVY)
    assert result["code"] == 0, said
    for query, code in (("kept.html", 0), ("nothing-like-it", 1)):
        result, said = run(["explain", query, "--root", str(small_run.root)], hide=HEAVY)
        assert (result["code"], said) == (code, "")


def test_a_missing_extra_is_named() -> None:
    for package, extra in (("pyspark", "data"), ("megatron", "train")):
        result, said = run(["run", "recipes/quickstart.yaml"], hide=(package,))
        assert result["code"] == 2
        assert said.splitlines() == [f"error: this needs {package}: pip install 'megatron-nextflow[{extra}]'"]
