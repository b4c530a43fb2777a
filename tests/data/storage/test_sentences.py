"""What a person reads when a store says no; and that no credential is in it."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from nextflow_data.common.errors import exit_status
from nextflow_data.storage.config import S3Config, StorageConfig
from nextflow_data.storage.errors import StoreError
from nextflow_data.storage.files import list_files, put, put_if_absent, read_range, state_of
from nextflow_data.storage.store_path import StorePath
from nextflow_data.storage.stores import s3_client
from s3_server import KEYS, S3Server

KMS = "x-amz-server-side-encryption"
SECRETS = ("secret-of", "KEYOF", "hidden")

Asking = Callable[[StorePath], Any]
ASKED: list[Asking] = [
    state_of,
    lambda path: read_range(path, 0, 1),
    lambda path: path.read_bytes(),
    lambda path: path.open(),
    lambda path: path.exists(),
    lambda path: list(list_files(path)),
    lambda path: put_if_absent(path, b"x"),
]


@pytest.fixture(autouse=True)
def new_clients() -> Iterator[None]:
    """No client keeps the credentials of another test."""
    s3_client._clients.clear()
    yield
    s3_client._clients.clear()


def told(path: StorePath, asks: list[Asking], kind: type[OSError]) -> list[str]:
    """The sentence of each, all of one class, none with a secret."""
    sentences = []
    for ask in asks:
        with pytest.raises(kind) as told:
            ask(path)
        assert str(path) in str(told.value) and not any(word in str(told.value) for word in SECRETS)
        sentences.append(str(told.value))
    return sentences


def test_a_bucket_that_does_not_exist(s3_root: StorePath) -> None:
    path = StorePath("s3://no-such-bucket/a", s3_root.config)
    for sentence in told(path, ASKED, StoreError):
        assert f"there is no bucket no-such-bucket at {path.config.s3.endpoint}" in sentence
    with pytest.raises(StoreError) as error:
        state_of(path)
    assert exit_status(error.value) == 2


@pytest.mark.parametrize(("key", "words"), [("KEYOFALL", "does not belong to"), ("KEYOFNOBODY", "does not know")])
def test_wrong_credentials(s3_root: StorePath, monkeypatch: pytest.MonkeyPatch, key: str, words: str) -> None:
    put(s3_root / "there", b"x")
    s3_client._clients.clear()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden-and-wrong")
    for sentence in told(s3_root / "there", ASKED, StoreError):
        assert words in sentence and "correct the credentials" in sentence


def test_no_permission_on_a_prefix(s3_root: StorePath, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    put(s3_root / "closed", b"x")
    s3_client._clients.clear()
    for name, value in s3_server.environment("part").items():
        monkeypatch.setenv(name, value)
    inside = StorePath(f"s3://{s3_server.bucket}/open/{s3_root.name}/a", s3_root.config)
    put(inside, b"allowed")
    assert inside.read_bytes() == b"allowed"
    sentences = told(s3_root / "closed", ASKED, PermissionError)
    assert all("not allowed: the credentials in use need s3:" in sentence for sentence in sentences)
    assert "s3:GetObject" in sentences[0] and "s3:ListBucket" in sentences[5] and "s3:PutObject" in sentences[6]


def test_no_credentials(s3_root: StorePath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    for sentence in told(s3_root / "a", ASKED, StoreError):
        assert "there are no whole credentials" in sentence


def test_a_store_that_cannot_be_reached(s3_root: StorePath) -> None:
    with socket.socket() as taken:  # bound and not listening: nobody else answers there
        taken.bind(("127.0.0.1", 0))
        nowhere = S3Config(endpoint=f"http://127.0.0.1:{taken.getsockname()[1]}", path_style=True, attempts=2)
        (sentence,) = told(StorePath("s3://bucket/a", StorageConfig(s3=nowhere)), [state_of], StoreError)
    assert "cannot be reached" in sentence and "2 attempts" in sentence and "storage.s3.endpoint" in sentence


@pytest.fixture
def answering() -> Iterator[Callable[[int, str, dict[str, str]], str]]:
    """A server that answers every request alike; gives its address."""
    servers = []

    def start(status: int, body: str, seen: dict[str, str]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def _any(self) -> None:
                seen[self.command] = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body.encode())

            do_GET = do_HEAD = do_PUT = do_POST = _any

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_token_that_has_expired(
    s3_root: StorePath, answering: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "hidden-token")
    body = "<Error><Code>ExpiredToken</Code><Message>The provided token hidden-token has expired.</Message></Error>"
    expired = S3Config(endpoint=answering(400, body, {}), path_style=True)
    for sentence in told(StorePath("s3://bucket/a", StorageConfig(s3=expired)), ASKED[:6], StoreError):
        assert "the credentials in use have expired; renew them and run again: all that was committed is kept" in sentence


def test_credentials_that_were_renewed_in_a_file_are_found(
    s3_root: StorePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first client's token has expired for the store; the file has new ones since."""
    import botocore.exceptions

    put(s3_root / "there", b"x")
    key, secret = KEYS["all"]
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    file.write_text("[default]\naws_access_key_id=OLD\naws_secret_access_key=old\n")
    s3_client._clients.clear()
    old = s3_client.client(s3_root.config.s3)

    def expired(**_: object) -> None:
        file.write_text(f"[default]\naws_access_key_id={key}\naws_secret_access_key={secret}\n")
        answer = {"Error": {"Code": "ExpiredToken"}, "ResponseMetadata": {"HTTPStatusCode": 400}}
        raise botocore.exceptions.ClientError(answer, "GetObject")

    old.meta.events.register("before-call.s3.GetObject", expired)
    assert (s3_root / "there").read_bytes() == b"x"


def test_an_assumed_role(s3_root: StorePath, answering: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The service that gives roles is ours, what it gives are the server's credentials."""
    put(s3_root / "there", b"x")
    key, secret = KEYS["all"]
    given = (
        '<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><Credentials>'
        f"<AccessKeyId>{key}</AccessKeyId><SecretAccessKey>{secret}</SecretAccessKey><SessionToken></SessionToken>"
        "<Expiration>2999-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"
    )
    seen: dict[str, str] = {}
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", answering(200, given, seen))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "OWNKEY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "own")
    role = {"role": "arn:aws:iam::123456789012:role/reader", "external_id": "agreed"}
    s3 = s3_root.config.s3.model_copy(update=role)
    assert StorePath(str(s3_root / "there"), s3_root.config.model_copy(update={"s3": s3})).read_bytes() == b"x"
    assert "role%2Freader" in seen["POST"] and "ExternalId=agreed" in seen["POST"]


@pytest.mark.parametrize(
    ("settings", "sent"),
    [
        (
            {"kms_key": "key-1"},
            {KMS: "aws:kms", f"{KMS}-aws-kms-key-id": "key-1"},
        ),
        ({"kms_key": ""}, {KMS: "aws:kms"}),
        ({"requester_pays": True}, {"x-amz-request-payer": "requester"}),
    ],
)
def test_settings_that_a_store_is_told(s3_root: StorePath, settings: dict[str, Any], sent: dict[str, str]) -> None:
    s3 = s3_root.config.s3.model_copy(update={**settings, "attempts": 1})
    path = StorePath(str(s3_root / "a"), s3_root.config.model_copy(update={"s3": s3}))
    seen: dict[str, str] = {}
    s3_client.client(s3).meta.events.register("before-send.s3.PutObject", lambda request, **_: seen.update(request.headers))
    try:
        put(path, b"x")
    except StoreError:  # this server has no KMS
        assert "kms_key" in settings
    lower = {name.lower(): value.decode() if isinstance(value, bytes) else value for name, value in seen.items()}
    assert {name: lower.get(name) for name in sent} == sent


def test_a_bad_md5_is_refused(s3_root: StorePath, monkeypatch: pytest.MonkeyPatch) -> None:
    from nextflow_data.storage.stores import s3

    monkeypatch.setattr(s3, "md5", lambda content: "1B2M2Y8AsgTpgAmY7PhCfg==")  # of no bytes (RFC 1321)
    with pytest.raises(StoreError, match="damaged on their way"):
        put(s3_root / "a", b"x")
    assert not (s3_root / "a").exists()


def test_settings_and_paths_show_no_key(s3_root: StorePath) -> None:
    shown = json.dumps(s3_root.config.model_dump(mode="json")) + repr(s3_root) + repr(s3_root.store)
    assert not any(word in shown for word in SECRETS)
