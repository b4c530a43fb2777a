"""Where Prefect keeps its records, and which server it would talk to."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from pathlib import Path

from nextflow_orchestration.doctor.check import Case, Diagnosis, bad, check, ok
from nextflow_orchestration.runs.server import DEFAULT_PORT, free_port, healthy, prefect_home, standing_server


@check("prefect", "home")
def home(case: Case) -> Diagnosis:
    """A database of SQLite can be written there."""
    wanted = prefect_home(case.root)
    there = next(path for path in (wanted, *wanted.parents) if path.is_dir())
    try:
        with tempfile.TemporaryDirectory(prefix=".mnf-doctor-", dir=there) as folder:
            database = sqlite3.connect(Path(folder) / "prefect.db")
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("CREATE TABLE runs (name TEXT)")
            database.commit()
            database.close()
    except (OSError, sqlite3.Error) as error:
        return bad(f"{wanted} takes no database: {error}", "export PREFECT_HOME=/a/local/folder")
    return ok(f"{wanted}")


@check("prefect", "server")
def server(case: Case) -> Diagnosis:
    """The one that PREFECT_API_URL names must answer; else a run starts its own."""
    given = os.environ.get("PREFECT_API_URL")
    if given and not healthy(given):
        return bad(f"PREFECT_API_URL is {given}, and nothing answers there", "start that server, or unset it")
    if given:
        return ok(f"{given} answers")
    standing = standing_server(prefect_home(case.root))
    if standing:
        return ok(f"that of `mnf ui`: {standing}")
    port = free_port(DEFAULT_PORT)
    return ok("a run starts its own" + ("" if port == DEFAULT_PORT else f"; port {DEFAULT_PORT} is taken, it takes another"))
