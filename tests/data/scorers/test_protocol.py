"""What goes to and fro: the same there and here, and nothing that is no answer taken for one."""

from __future__ import annotations

import hashlib
import json
import math
from base64 import b64encode
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nextflow_data.scorers.protocol import (
    MAX_ANSWER_BYTES,
    Answer,
    Question,
    answer_body,
    checked,
    failure,
    parse_answer,
    parse_request,
    request_body,
)

_TEXT = st.text(st.characters(exclude_categories=()), max_size=20)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=6,
)


@given(
    st.builds(
        Question,
        st.none() | st.binary(max_size=30),
        st.none() | _TEXT,
        st.none() | st.binary(max_size=30) | _TEXT,
        st.dictionaries(_TEXT, _JSON, max_size=3),
    )
)
def test_a_request_is_the_same_on_the_other_side(request_: Question) -> None:
    there = parse_request(request_body(request_))
    assert there == request_ and there.content == request_.content


@given(st.floats(allow_nan=False, allow_infinity=False), st.dictionaries(_TEXT, _JSON, max_size=3))
def test_an_answer_is_the_same_on_the_other_side(score: float, more: dict[str, object]) -> None:
    answer = checked({**more, "score": score})
    assert answer.score == score and math.copysign(1, answer.score or 0) == math.copysign(1, score or 0)
    assert parse_answer(*answer_body(answer)) == answer


def test_a_body_and_a_hash_by_hand() -> None:
    """As the protocol's text has them."""
    request = Question(b"\xff\xd8", "an ä", b"\x89PNG", {"b": 1, "a": [0.1]})
    images = [b64encode(part).decode() for part in (b"\xff\xd8", b"\x89PNG")]
    assert json.loads(request_body(request)) == {
        "image": images[0],
        "text": "an ä",
        "reference": {"image": images[1]},
        "extra": {"a": [0.1], "b": 1},
    }
    hashes = [hashlib.sha256(part).hexdigest() for part in (b"\xff\xd8", b"\x89PNG")]
    asked = (
        f'{{"extra":{{"a":[0.1],"b":1}},"image":"{hashes[0]}","reference":{{"image":"{hashes[1]}"}},"text":"an \\u00e4"}}'
    )
    assert request.content == hashlib.sha256(asked.encode()).hexdigest()
    assert parse_request(b"{}") == Question()


def test_contents_that_differ_have_hashes_that_differ() -> None:
    image_hash = hashlib.sha256(b"x").hexdigest()
    alike = [
        Question(),
        Question(image=b"x"),
        Question(reference=b"x"),
        Question(text="x"),
        Question(reference="x"),
        Question(reference=image_hash),
        Question(text=image_hash),
        Question(extra={"text": "x"}),
        Question(text=""),
        Question(image=b""),
    ]
    assert len({request.content for request in alike}) == len(alike)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        b'{"picture": null}',
        b'{"image": "not base64"}',
        b'{"image": 3}',
        b'{"text": 3}',
        b'{"reference": "x"}',
        b'{"reference": {}}',
        b'{"reference": {"text": "x", "image": ""}}',
        b'{"extra": [1]}',
        b'{"extra": {"a": NaN}}',
    ],
)
def test_what_is_no_request(body: bytes) -> None:
    with pytest.raises(ValueError):
        parse_request(body)


def test_numbers_of_any_make_are_numbers() -> None:
    returned = {"score": np.float32(0.5), "1": (np.int64(2), Fraction(1, 4), True, None), "more": {"x": np.float64(1.5)}}
    assert checked(returned) == Answer({"score": 0.5, "1": [2, 0.25, True, None], "more": {"x": 1.5}})


@pytest.mark.parametrize(
    ("returned", "why"),
    [
        (0.5, "a float, not a mapping"),
        (None, "a NoneType"),
        ({}, '"score" is missing'),
        ({"score": "0.5"}, "a str"),
        ({"score": None}, "a NoneType"),
        ({"score": np.ones(1)}, "a ndarray"),
        ({"score": float("inf")}, "inf"),
        ({"score": 10**400}, "too large"),
        ({"score": 1, "more": float("nan")}, "not JSON"),
        ({"score": 1, "more": b"bytes"}, "bytes is no JSON value"),
        ({"score": 1, "more": "x" * MAX_ANSWER_BYTES}, "at most"),
    ],
)
def test_what_is_no_answer(returned: object, why: str) -> None:
    answer = checked(returned)
    assert answer.values is None and answer.score is None and answer.failed == "not-an-answer" and why in answer.why


def test_what_a_server_may_say() -> None:
    assert parse_answer(200, b'{"score": 1}').score == 1.0
    assert parse_answer(422, b'{"failed": "raised", "why": "x"}') == failure("raised", "x")
    assert parse_answer(200, b'{"score": NaN}').failed == "not-an-answer"
    assert parse_answer(200, b'{"score": 1').failed == "not-an-answer"
    assert parse_answer(422, b'{"failed": "whim"}').failed == "refused"
    assert parse_answer(413, b"<html>") == failure(
        "refused", "status 413, not JSON: Expecting value: line 1 column 1 (char 0)"
    )
    assert parse_answer(404, b"[]") == failure("refused", "status 404")
