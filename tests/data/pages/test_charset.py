"""How a page's bytes become text when what is claimed is missing, unknown or a lie."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nextflow_data.config import IngestConfig
from nextflow_data.pages.charset import codec_name, decode_page
from nextflow_data.pages.parse import parse_page

RUSSIAN = "Съешь же ещё этих мягких французских булок, да выпей чаю. " * 20
JAPANESE = "いろはにほへとちりぬるをわかよたれそつねならむ。" * 20
WESTERN = "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich – café crème. " * 10


@pytest.mark.parametrize(
    ("payload", "declared", "text", "charset", "origin", "lie"),
    [
        (WESTERN.encode(), "utf-8", WESTERN, "utf-8", "header", None),
        (WESTERN.encode("cp1252"), "ISO-8859-1", WESTERN, "cp1252", "header", None),
        (b"\xef\xbb\xbf" + WESTERN.encode(), "latin-1", WESTERN, "utf-8", "bom", None),
        (b"\xff\xfe" + WESTERN.encode("utf-16-le"), None, WESTERN, "utf-16-le", "bom", None),
        (WESTERN.encode("utf-16-be"), "utf-16be", WESTERN, "utf-16-be", "header", None),
        (WESTERN.encode(), "latin-1", WESTERN, "utf-8", "utf-8", "latin-1"),
        (RUSSIAN.encode("cp1251"), "utf-8", RUSSIAN, "cp1251", "detected", "utf-8"),
        (RUSSIAN.encode("koi8-r"), "koi8-r", RUSSIAN, "koi8-r", "header", None),
        (JAPANESE.encode("shift_jis"), "x-nonsense", JAPANESE, "cp932", "detected", "x-nonsense"),
        (JAPANESE.encode("euc_jp"), None, JAPANESE, "euc_jp", "detected", None),
        (b"plain", None, "plain", "utf-8", "utf-8", None),
        (b"plain", "unicode_escape", "plain", "utf-8", "utf-8", "unicode_escape"),
    ],
)
def test_charsets(payload, declared, text, charset, origin, lie):
    assert decode_page(payload, declared) == (text, charset, origin, lie)


def test_meta_element_counts_where_the_header_is_silent_and_loses_to_it():
    page = b"<meta charset='windows-1251'>" + RUSSIAN.encode("cp1251")
    assert decode_page(page, None).text.endswith(RUSSIAN) and decode_page(page, None).origin == "meta"
    assert decode_page(page, "koi8-r").charset == "koi8-r"
    assert decode_page(b"<meta charset=utf-16>abc", None).charset == "utf-8"


@pytest.mark.parametrize(
    "label", ["zip", "rot13", "unicode_escape", "idna", "utf-7", "undefined", "base64", "../x", "", None]
)
def test_codecs_that_are_no_charset_are_never_used(label):
    assert codec_name(label) is None


def test_a_lie_is_recorded_on_the_page():
    page = parse_page(b"<p>" + RUSSIAN.encode("cp1251"), "https://a.example/", "text/html; charset=utf-8", IngestConfig())
    assert page.blocks[0].text == RUSSIAN.strip()
    assert [r.rule for r in page.removed] == ["charset-claim"]


@given(st.binary(max_size=200), st.none() | st.text(max_size=20))
def test_any_bytes_give_text(payload, declared):
    assert isinstance(decode_page(payload, declared).text, str)


@given(st.text(st.characters(codec="utf-8"), max_size=100))
def test_utf8_is_always_found(text):
    payload = "é".encode() + text.encode()
    assert decode_page(payload, "utf-8").text == "é" + text
