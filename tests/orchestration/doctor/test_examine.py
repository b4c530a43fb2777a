"""Checks that hang, crash, fail or tell secrets: none of them keeps the others from answering."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from nextflow_orchestration.doctor.check import Case, Check, Diagnosis, State, checks_of, never, ok
from nextflow_orchestration.doctor.examine import examine


def _hang(case: Case) -> Diagnosis:
    print("waiting for the disk")
    child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
    Path(case.root / "child").write_text(str(child.pid))
    time.sleep(600)
    return ok("")


def _crash(case: Case) -> Diagnosis:
    os.write(2, b"about to crash\n")
    os.kill(os.getpid(), signal.SIGSEGV)
    return ok("")


def _fail(case: Case) -> Diagnosis:
    raise RuntimeError(f"no right for http://me:{os.environ['MY_SECRET']}@host,\nkey {os.environ['MY_SECRET']}")


def _leave(case: Case) -> Diagnosis:
    made = tempfile.mkdtemp()
    print("noise")
    return ok(made)


def _import(case: Case) -> Diagnosis:
    import nothing_like_it  # type: ignore[import-not-found]

    return ok(nothing_like_it)


def test_each_answers_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MY_SECRET", "rosebud1")
    looks: list[Callable[[Case], Diagnosis]] = [_hang, _crash, _fail, _leave, _import]
    checks = [Check("a", look.__name__, look, 3 if look is _hang else 30, never) for look in looks]
    found = {result.check.name: result for result in examine(Case(tmp_path), checks, at_once=3)}
    said = {name: result.finding.found for name, result in found.items()}
    assert said["_hang"] == "no answer within 3 s; it last said: waiting for the disk"
    assert said["_crash"] == "the check was ended by SIGSEGV; it last said: about to crash"
    assert said["_fail"] == "RuntimeError: no right for http://***@host, key ***"
    assert said["_import"] == "nothing_like_it is not installed"
    assert found["_leave"].finding.state is State.OK and not Path(said["_leave"]).exists()
    assert [name for name, result in found.items() if result.finding.state is State.OK] == ["_leave"]
    assert not any(result.counts for result in found.values())
    child = int((tmp_path / "child").read_text())
    assert not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2]
    assert capfd.readouterr() == ("", "")


def test_checks_have_names_of_their_own_and_come_area_by_area(tmp_path: Path) -> None:
    checks = checks_of(Case(tmp_path))
    assert len({(check.area, check.name) for check in checks}) == len(checks) > 25
    areas = [check.area for check in checks]
    assert list(dict.fromkeys(areas)) == sorted(set(areas), key=areas.index) and areas[0] == "python"
    assert all(check.look.__doc__ for check in checks) and "recipe" not in areas
