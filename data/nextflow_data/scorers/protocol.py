"""What a scorer is asked and what it answers: in memory, and as JSON over HTTP.

Everything here is one protocol, so that a scorer gives the same answer in this process, in a pool and on a server. Images
go as the bytes of their files, never decoded: nothing is encoded anew on the way, a judge can send them on, and one sha256
stands for them. The cost: base64 makes them a third longer on the wire, and each scorer decodes for itself.

**The protocol, number 1**, for whoever writes a server in another language. HTTP/1.1; bodies are UTF-8 JSON with a
Content-Length; connections stay open between requests.

`GET /health` answers 200 once the scorer can be asked, and until then 503:

    {"protocol": 1, "scorer": "name", "version": "…", "settings": {…}, "devices": "cpu" or "gpu", "identity": "…"}

`identity` is any text that is another one whenever answers may be others (ours: the sha256 of name, version and settings).

`POST /score` asks. All four keys may be null or missing, others are an error; `extra` holds any JSON:

    {"image": "base64 of a file", "text": "…", "reference": {"image": "base64"} or {"text": "…"}, "extra": {…}}

The header `If-Match` holds the identity, in double quotes, that the client found at first. The answers:

    200  {"score": a finite number, … any JSON}         an answer, at most MAX_ANSWER_BYTES long
    422  {"failed": one of REASONS, "why": "in words"}   a failed answer: the client does not ask again
    412  {"failed": "refused", "why": …}                 If-Match is not this server's identity
    400, 411, 413                                        not a request, without a length, too long: a failed answer too
    5xx                                                  not now: the client waits and asks again, here or elsewhere

A request may come twice (a connection broke), so scoring must change nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral, Real
from typing import Any, Literal, Protocol, get_args

PROTOCOL = 1
MAX_ANSWER_BYTES = 1 << 20
"""Longest answer as JSON, in bytes; our choice: an answer is a few numbers and a judge's reasons."""

Reason = Literal["bad-input", "raised", "not-an-answer", "timed-out", "process-died", "unreachable", "refused"]
"""Why there is no answer. `bad-input`: an image that may not be decoded. `raised`: the scorer raised an exception.
`not-an-answer`: it returned something else than a mapping of JSON values with a finite "score". `timed-out`. `process-died`:
twice with this request. `unreachable`: no server answered for as long as the patience lasts. `refused`: by the server."""
REASONS: tuple[str, ...] = get_args(Reason)


def canonical(value: Any) -> str:
    """`value` as JSON in one way only: keys sorted, no spaces, ASCII. numpy's numbers count as numbers.

    Raises TypeError or ValueError for what JSON has no word for (NaN and infinities among it), RecursionError for its depth.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_number)


def _number(value: object) -> int | float:
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    raise TypeError(f"{type(value).__name__} is no JSON value")


@dataclass(frozen=True)
class Question:
    """What a scorer is asked about. `image` is an image file's bytes (PNG, JPEG, …), `reference` the bytes of another or a
    text, `extra` JSON values by name. Raises TypeError or ValueError where `extra` cannot be JSON."""

    image: bytes | None = None
    text: str | None = None
    reference: bytes | str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "extra", json.loads(canonical(dict(self.extra))))

    @cached_property
    def content(self) -> str:
        """Hex sha256 of all that is asked; images count by their own sha256."""
        image = None if self.image is None else hashlib.sha256(self.image).hexdigest()
        reference = (
            {"image": hashlib.sha256(self.reference).hexdigest()} if isinstance(self.reference, bytes) else self.reference
        )
        asked = {"image": image, "text": self.text, "reference": reference, "extra": self.extra}
        return hashlib.sha256(canonical(asked).encode()).hexdigest()


@dataclass(frozen=True)
class Answer:
    """`values` is what the scorer said, JSON values with a finite float under "score"; None where it failed: `failed` then
    has the reason and `why` the words."""

    values: Mapping[str, Any] | None
    failed: Reason | None = None
    why: str = ""

    @property
    def score(self) -> float | None:
        """The score; None for a failed answer."""
        return None if self.values is None else float(self.values["score"])


class Way(Protocol):
    """One of the three ways to ask a scorer. `description` is what /health says of it, `slots` how many requests it takes at
    once."""

    description: dict[str, Any]
    slots: int

    def ask(self, request: Question) -> Answer:
        """The answer, failed or not, within the time-out; from any thread."""
        ...

    def close(self) -> None:
        """End what was started for it."""
        ...


def failure(reason: Reason, why: str) -> Answer:
    """A failed answer; of its words 1,000 characters are kept."""
    return Answer(None, reason, why[:1000])


def checked(returned: object) -> Answer:
    """What a scorer returned, as an answer: plain JSON values, whatever kinds of mapping and number it was made of."""
    if not isinstance(returned, Mapping):
        return failure("not-an-answer", f'a {type(returned).__name__}, not a mapping {{"score": …}}')
    score = returned.get("score")
    if not isinstance(score, Real):
        return failure("not-an-answer", f'"score" is {f"a {type(score).__name__}" if "score" in returned else "missing"}')
    try:
        number = float(score)
        if not math.isfinite(number):
            return failure("not-an-answer", f'"score" is {number}')
        text = canonical({**returned, "score": number})
        values = json.loads(text)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        return failure("not-an-answer", f"not JSON: {error}")
    if len(text) > MAX_ANSWER_BYTES:
        return failure("not-an-answer", f"{len(text)} bytes long; at most {MAX_ANSWER_BYTES} are taken")
    return Answer(values)


def request_body(request: Question) -> bytes:
    """The body of POST /score."""
    reference: dict[str, str] | None = None
    if request.reference is not None:
        kind = "text" if isinstance(request.reference, str) else "image"
        reference = {kind: _wire(request.reference)}
    image = None if request.image is None else _wire(request.image)
    asked = {"image": image, "text": request.text, "reference": reference, "extra": request.extra}
    return canonical(asked).encode()


def parse_request(body: bytes) -> Question:
    """The request of a body. Raises ValueError, saying what is wrong with it."""
    asked = _mapping(_json(body), "the request", {"image", "text", "reference", "extra"})
    reference = asked.get("reference")
    if reference is not None:
        parts = _mapping(reference, "reference", {"image", "text"})
        if len(parts) != 1:
            raise ValueError('reference is {"image": …} or {"text": …}')
        reference = _image(parts["image"]) if "image" in parts else _text(parts["text"])
    image = None if asked.get("image") is None else _image(asked["image"])
    text = None if asked.get("text") is None else _text(asked["text"])
    try:
        return Question(image, text, reference, _mapping(asked.get("extra") or {}, "extra"))
    except RecursionError as error:
        raise ValueError(f"extra: {error}") from None


def answer_body(answer: Answer) -> tuple[int, bytes]:
    """HTTP status and body of an answer."""
    if answer.values is None:
        return 422, canonical({"failed": answer.failed, "why": answer.why}).encode()
    return 200, canonical(answer.values).encode()


def parse_answer(status: int, body: bytes) -> Answer:
    """The answer in a server's response below 500; one that breaks the protocol is a failed answer."""
    try:
        values = _json(body)
    except ValueError as error:
        return failure("refused" if status != 200 else "not-an-answer", f"status {status}, {error}")
    if status == 200:
        return checked(values)
    told = values if isinstance(values, dict) else {}
    reason = told.get("failed")
    why = str(told.get("why", f"status {status}"))
    return failure(reason if status == 422 and reason in REASONS else "refused", why)  # type: ignore[arg-type]


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None


def _mapping(value: object, what: str, known: set[str] | None = None) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} is no mapping")
    if known is not None and (more := value.keys() - known):
        raise ValueError(f"{what} has {', '.join(sorted(more))}; known: {', '.join(sorted(known))}")
    return value


def _wire(value: bytes | str) -> str:
    return value if isinstance(value, str) else b64encode(value).decode()


def _image(value: object) -> bytes:
    try:
        return b64decode(_text(value), validate=True)
    except ValueError as error:
        raise ValueError(f"an image is no base64: {error}") from None


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"a text is a {type(value).__name__}")
    return value
