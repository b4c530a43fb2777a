"""A real S3 server for tests: SeaweedFS, one for a whole run of pytest, however many processes it has.

    python s3_server.py FOLDER PID

keeps one in FOLDER for as long as process PID lives and says in FOLDER/server.json where it is; no crash leaves one behind.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

BUCKET = "corpus"
"""The one bucket of all tests, because each bucket has volumes of its own; a test takes a prefix."""

_PORTS = (
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "s3.port",
    "s3.port.grpc",
    "s3.port.iceberg",
    "s3.port.lance",
    "metricsPort",
)
KEYS = {"all": ("KEYOFALL", "secret-of-all-4711"), "part": ("KEYOFPART", "secret-of-part-4711")}
"""Who may do what: `all` everything, `part` what lies under open/ of the bucket."""


@dataclass(frozen=True)
class S3Server:
    """Where it is: `endpoint` as in http://127.0.0.1:8333, `port` alone, and the process that keeps it."""

    port: int
    bucket: str = BUCKET

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environment(self, who: str = "all") -> dict[str, str]:
        """What a process needs to be let in; nothing of the machine's own credentials is left."""
        key, secret = KEYS[who]
        files = dict.fromkeys(("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"), os.devnull)
        here = {"AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
        return {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret, **here, **files}


def shared_server(folder: Path, owner: int) -> S3Server:
    """The server in this folder, which lives as long as process `owner`; the first who asks starts it."""
    folder.mkdir(parents=True, exist_ok=True)
    said = folder / "server.json"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not said.exists():
            with (folder / "log").open("wb") as log:
                keeper = subprocess.Popen(
                    [sys.executable, __file__, str(folder), str(owner)], stdout=log, stderr=log, start_new_session=True
                )
            for _ in range(600):
                if said.exists() or keeper.poll() is not None:
                    break
                time.sleep(0.1)
            if not said.exists():
                raise RuntimeError(f"SeaweedFS did not start: {(folder / 'log').read_text(errors='replace')[-2000:]}")
    return S3Server(json.loads(said.read_text())["port"])


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _identities() -> dict[str, object]:
    def identity(name: str, actions: list[str]) -> dict[str, object]:
        key, secret = KEYS[name]
        return {"name": name, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}

    inside = [f"{action}:{BUCKET}/open/*" for action in ("Read", "Write", "List")]
    return {"identities": [identity("all", ["Admin", "Read", "Write", "List", "Tagging"]), identity("part", inside)]}


def _started(folder: Path) -> tuple[subprocess.Popen[bytes], int] | None:
    """A server that answers; None where it died, as when somebody else took a port of its."""
    ports = dict(zip(_PORTS, _free_ports(len(_PORTS)), strict=True))
    shutil.rmtree(folder / "data", ignore_errors=True)
    (folder / "data").mkdir()
    (folder / "s3.json").write_text(json.dumps(_identities()))
    weed = shutil.which("weed") or str(Path(sys.executable).with_name("weed"))
    options = {
        "dir": folder / "data",
        "ip": "127.0.0.1",
        "s3.config": folder / "s3.json",
        "s3.autoCreateBucket": "false",
        "master.telemetry": "false",
        "master.volumeSizeLimitMB": 256,
        "volume.max": 100,
        **ports,
    }
    server = subprocess.Popen([weed, "server", "-s3", *(f"-{name}={value}" for name, value in options.items())])
    for _ in range(300):
        if server.poll() is not None:
            return None
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{ports['s3.port']}/healthz", timeout=5)
            return server, ports["s3.port"]
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    server.kill()
    return None


def _make_bucket(port: int) -> None:
    import boto3

    key, secret = KEYS["all"]
    made = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        region_name="us-east-1",
    )
    made.create_bucket(Bucket=BUCKET)
    made.put_object(Bucket=BUCKET, Key="ready", Body=b"")  # the first object waits for volumes to be made


def _keep(folder: Path, owner: int) -> None:
    found = next((started for _ in range(3) if (started := _started(folder)) is not None), None)
    if found is None:
        sys.exit("weed died three times")
    server, port = found
    try:
        _make_bucket(port)
        said = folder / "server.json.writing"
        said.write_text(json.dumps({"port": port}))
        said.rename(folder / "server.json")
        while server.poll() is None and Path(f"/proc/{owner}").exists():
            time.sleep(0.5)
    finally:
        server.kill()
        server.wait()
        shutil.rmtree(folder / "data", ignore_errors=True)


if __name__ == "__main__":
    _keep(Path(sys.argv[1]), int(sys.argv[2]))
