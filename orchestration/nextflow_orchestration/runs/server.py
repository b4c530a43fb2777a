"""Which Prefect server a run talks to, and how long that server lives.

A run uses, in this order: PREFECT_API_URL; the standing server that `mnf ui` started; a private server of its own, which
serves the UI while the run lasts and dies with it, even after kill -9 (it watches a pipe). All servers of one
folder share a database (SQLite), so `mnf ui` shows every past run. The cost of a private server is about ten seconds.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from nextflow_data.common.signal_handlers import Handlers, ignore
from nextflow_data.common.whole_files import replace_file

DEFAULT_PORT = 4200
START_TIMEOUT = 180.0


class ServerError(RuntimeError):
    """The Prefect server did not come up; the message ends with the last lines of its log."""


def prefect_home(work: Path) -> Path:
    """Where Prefect keeps its database: PREFECT_HOME, else beside the run's folder on this machine, shared by its
    neighbours."""
    return Path(os.environ.get("PREFECT_HOME") or work.absolute().parent / ".prefect")


def configure(home: Path, api_url: str | None = None) -> None:
    """Environment for Prefect in this process and its children; call before importing prefect."""
    home.mkdir(parents=True, exist_ok=True)
    os.environ["PREFECT_HOME"] = str(home)
    os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
    os.environ["DO_NOT_TRACK"] = "1"
    # Prefect's pages get everything; the console shows stages and one line for an error, not a traceback a retry.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    if api_url:
        os.environ["PREFECT_API_URL"] = api_url


def healthy(api_url: str) -> bool:
    """Whether a server answers at `api_url`."""
    try:
        with urllib.request.urlopen(f"{api_url}/health", timeout=2) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError, ValueError):
        return False


def standing_server(home: Path) -> str | None:
    """The API address of the server that `mnf ui` keeps for this folder, if it answers."""
    try:
        api_url = json.loads((home / "server.json").read_text())["api_url"]
    except (OSError, ValueError, KeyError):
        return None
    return api_url if healthy(api_url) else None


def free_port(preferred: int) -> int:
    """`preferred` if nothing listens there, else any free port of the loopback interface."""
    for port in (preferred, 0):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ServerError("no free port on 127.0.0.1")


def _command(port: int) -> list[str]:
    return [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]


def _environment(home: Path, port: int) -> dict[str, str]:
    url = f"http://127.0.0.1:{port}/api"
    drop = {"PREFECT_API_URL"}
    return {k: v for k, v in os.environ.items() if k not in drop} | {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_API_URL": url,
        "DO_NOT_TRACK": "1",
    }


def _wait(api_url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline and process.poll() is None:
        if healthy(api_url):
            return
        time.sleep(0.1)
    tail = log.read_text(errors="replace")[-800:] if log.exists() else ""
    raise ServerError(f"the Prefect server at {api_url} did not answer within {START_TIMEOUT:.0f} s; its log ends:\n{tail}")


@contextmanager
def server(work: Path) -> Iterator[str]:
    """The UI address of a Prefect server for this run; Prefect's environment is set on entry. Raises ServerError."""
    home = prefect_home(work)
    configure(home)
    given = os.environ.get("PREFECT_API_URL")
    if given:
        if not healthy(given):
            raise ServerError(f"PREFECT_API_URL is {given}, and nothing answers there; start that server or unset it")
        yield given.removesuffix("/api")
        return
    standing = standing_server(home)
    if standing:
        configure(home, standing)
        try:
            yield standing.removesuffix("/api")
        finally:
            os.environ.pop("PREFECT_API_URL", None)
        return
    port = free_port(DEFAULT_PORT)
    api_url = f"http://127.0.0.1:{port}/api"
    log = home / "server.log"
    with log.open("wb") as sink:
        watcher = subprocess.Popen(
            [sys.executable, "-m", "nextflow_orchestration.runs.server", str(port)],
            stdin=subprocess.PIPE,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=_environment(home, port),
            start_new_session=True,
        )
    try:
        _wait(api_url, watcher, log)
        configure(home, api_url)
        yield api_url.removesuffix("/api")
    finally:
        os.environ.pop("PREFECT_API_URL", None)
        assert watcher.stdin is not None
        watcher.stdin.close()
        watcher.wait(timeout=30)


def send_what_is_queued() -> None:
    """Sends the logs and events that Prefect still holds; after the server has gone they would be lost, with complaints."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    APILogWorker.drain_all(timeout=10)
    EventsWorker.drain_all(timeout=10)


def serve_standing(work: Path, port: int) -> int:
    """Runs a server in the foreground until Ctrl-C, for `mnf ui`; runs of this folder find and use it."""
    home = prefect_home(work)
    configure(home)
    port = free_port(port)
    record = home / "server.json"
    replace_file(record, json.dumps({"api_url": f"http://127.0.0.1:{port}/api"}))
    child = subprocess.Popen(_command(port), env=_environment(home, port), start_new_session=True)

    with _Ends(child):
        try:
            child.wait()
            return 0
        finally:
            record.unlink(missing_ok=True)


class _Ends(Handlers):
    """Has SIGINT and SIGTERM end a server that runs in a session of its own and would not hear of them."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        super().__init__((signal.SIGINT, signal.SIGTERM))
        self._child = child

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Asks the server to end; `serve_standing` waits for it."""
        self._child.terminate()


def _watch(port: int) -> None:
    """Keeps a server until standard input closes, which happens when the parent ends, however it ends."""
    child = subprocess.Popen(_command(port), stdin=subprocess.DEVNULL)
    ignore(signal.SIGINT)
    while child.poll() is None and not select.select([sys.stdin], [], [], 0.5)[0]:
        pass
    child.terminate()
    try:
        child.wait(timeout=10)
    except subprocess.TimeoutExpired:
        child.kill()


if __name__ == "__main__":
    _watch(int(sys.argv[1]))
