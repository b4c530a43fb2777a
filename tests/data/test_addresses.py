"""Addresses: one spelling for one thing. Expectations are RFC 3986's own examples where it has them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nextflow_data.addresses import absolute_address, canonical_address, site_of


@pytest.mark.parametrize(
    ("reference", "expected"),
    [  # RFC 3986 §5.4, base http://a/b/c/d;p?q
        ("g", "http://a/b/c/g"),
        ("./g", "http://a/b/c/g"),
        ("g/", "http://a/b/c/g/"),
        ("/g", "http://a/g"),
        ("//g", "http://g/"),
        ("?y", "http://a/b/c/d;p?y"),
        ("g?y", "http://a/b/c/g?y"),
        ("g#s", "http://a/b/c/g"),
        ("..", "http://a/b/"),
        ("../g", "http://a/b/g"),
        ("../../../g", "http://a/g"),
        ("/./g", "http://a/g"),
        ("g;x=1/../y", "http://a/b/c/y"),
    ],
)
def test_references(reference, expected):
    assert absolute_address("http://a/b/c/d;p?q", reference) == expected


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("HTTP://Example.COM:80/a", "http://example.com/a"),
        ("https://example.com:443", "https://example.com/"),
        ("https://example.com/a%7Eb c.png", "https://example.com/a~b%20c.png"),
        ("https://example.com/%c3%a9.png", "https://example.com/é.png"),
        ("https://example.com/a/../b#top", "https://example.com/b"),
        ("  https://example.com/a\n", "https://example.com/a"),
    ],
)
def test_spellings_of_one_address(one, other):
    assert canonical_address(one) == canonical_address(other) is not None


def test_things_that_must_stay_apart():
    assert canonical_address("https://a/b%2Fc") != canonical_address("https://a/b/c")
    assert canonical_address("https://a/b?x=%2F") != canonical_address("https://a/b?x=/")
    assert canonical_address("https://a:8080/b") != canonical_address("https://a/b")


@pytest.mark.parametrize(
    "address", ["", "data:image/png;base64,xx", "mailto:a@b", "javascript:alert(1)", "http://", "http://[::1"]
)
def test_no_web_address(address):
    assert canonical_address(address) is None


@given(st.text(max_size=60))
def test_never_raises_and_is_stable(text):
    for address in (canonical_address(text), absolute_address("https://a.example/b/", text)):
        assert address is None or canonical_address(address) == address
    assert isinstance(site_of(text), str)
