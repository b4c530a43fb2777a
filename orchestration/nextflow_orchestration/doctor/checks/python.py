"""The interpreter, others that are there, and whether text is UTF-8."""

from __future__ import annotations

import locale
import os
import re
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from packaging.specifiers import SpecifierSet

from nextflow_orchestration.doctor.check import Case, Diagnosis, bad, check, never, ok, unneeded
from nextflow_orchestration.doctor.requirements import DISTRIBUTION

_NAME = re.compile(r"python(3(\.\d+)?)?")


def _wanted() -> SpecifierSet:
    try:
        return SpecifierSet(metadata.metadata(DISTRIBUTION)["Requires-Python"])
    except metadata.PackageNotFoundError:
        return SpecifierSet(">=3.11")


@check("python", "interpreter")
def interpreter(case: Case) -> Diagnosis:
    """The version of this one."""
    here, wanted = ".".join(map(str, sys.version_info[:3])), _wanted()
    if here not in wanted:
        return bad(f"{here} at {sys.executable}, {wanted} is needed", "install in an environment of a newer Python")
    return ok(f"{here} at {sys.executable}")


@check("python", "others", seconds=30, needed=never)
def others(case: Case) -> Diagnosis:
    """Other Pythons on PATH, and which of them would do."""
    found: dict[str, str] = {}
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        if not folder or not Path(folder).is_dir():
            continue
        for path in sorted(Path(folder).iterdir()):
            if not _NAME.fullmatch(path.name):
                continue
            version, real = _version(path)
            if version and real != os.path.realpath(sys.executable):
                found.setdefault(real, f"{version} at {path}" + ("" if version in _wanted() else " (too old)"))
    return ok("; ".join(found.values())) if found else unneeded("none on PATH")


def _version(python: Path) -> tuple[str, str]:
    """Version of an interpreter, and the file that runs behind links and shims; two empty texts where it does not run."""
    command = [str(python), "-c", "import os, sys; print(sys.version.split()[0]); print(os.path.realpath(sys.executable))"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return "", ""
    lines = done.stdout.splitlines()
    return (lines[0], lines[1]) if done.returncode == 0 and len(lines) == 2 else ("", "")


@check("python", "text")
def text(case: Case) -> Diagnosis:
    """Names of files and the terminal in UTF-8."""
    codings = {"file names": sys.getfilesystemencoding(), "files": locale.getpreferredencoding(False)}
    codings["output"] = sys.__stdout__.encoding if sys.__stdout__ else "utf-8"
    wrong = [f"{name} {coding}" for name, coding in codings.items() if coding.lower().replace("-", "") != "utf8"]
    if wrong:
        return bad(f"not UTF-8: {', '.join(wrong)}", "export LC_ALL=C.UTF-8, or PYTHONUTF8=1")
    with tempfile.NamedTemporaryFile(prefix="Zürich→⟨boi⟩"):
        return ok("UTF-8 in names, files and output")
