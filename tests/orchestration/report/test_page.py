"""The report as a page: hostile text stays text, nothing is loaded from elsewhere, and a real browser has no complaint."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nextflow_orchestration.report import model
from nextflow_orchestration.report.charts import histogram, lines, ticks
from nextflow_orchestration.report.model import Curve, Report
from nextflow_orchestration.report.page import report_html
from nextflow_orchestration.words.numbers import short

HOSTILE = """</title></style><script>alert(1)</script><img src=x onerror=alert(2)> "'><a href="javascript:alert(3)">&lt;"""
PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
PICTURES = {"picture", "original", "reconstruction"}
BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome", "chrome") if (found := shutil.which(name))), None
)


def filled(kind: Any, name: str = "") -> Any:
    """A value of any type of the model, every string hostile, every tuple with two items."""
    if kind is str:
        return PIXEL if name in PICTURES else HOSTILE
    if kind in (int, float):
        return kind(7)
    if kind is bool:
        return False
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{f.name: filled(hints[f.name], f.name) for f in dataclasses.fields(kind)})  # type: ignore[operator]
    arguments = get_args(kind)
    if get_origin(kind) is tuple:
        return tuple(filled(a, name) for a in ([arguments[0]] * 2 if arguments[-1] is Ellipsis else arguments))
    return filled(next(a for a in arguments if a is not type(None)), name)


class Tags(HTMLParser):
    """Every start tag with its attributes, and all text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def hostile_page() -> str:
    return report_html(filled(model.Report))


def test_hostile_text_in_every_field_stays_text(hostile_page: str) -> None:
    tags = Tags(hostile_page)
    assert "script" not in {tag for tag, _ in tags.found}
    assert {a.get("src") for tag, a in tags.found if tag == "img"} == {PIXEL}
    assert not [name for _, attributes in tags.found for name in attributes if name.startswith("on")]
    strings = sum(1 for section in dataclasses.fields(Report) if section.name in ("title", "subtitle", "settings"))
    assert tags.text.count("<script>alert(1)</script>") > strings


def test_every_section_is_on_the_page(hostile_page: str) -> None:
    sections = {a["id"] for tag, a in Tags(hostile_page).found if tag == "section"}
    shown = "input stages rules aside tokenizer mix packing sheets audit training generated settings"
    assert sections == set(shown.split())


def test_nothing_is_loaded_from_elsewhere(hostile_page: str) -> None:
    tags = Tags(hostile_page)
    assert not {tag for tag, _ in tags.found} & {"link", "iframe", "object", "embed", "base", "video", "audio", "form"}
    for _, attributes in tags.found:
        for name in ("src", "href", "srcset", "data", "poster", "action", "background", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("data:image/", "#"))
    style = re.search(r"<style>(.*?)</style>", hostile_page, re.S)
    assert style and "url(" not in style[1] and "@import" not in style[1]
    policy = [a["content"] for tag, a in tags.found if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_what_is_missing_is_left_out() -> None:
    page = report_html(Report("A set", "alone", audit=model.Audit((model.Fact("Shards", "3"),))))
    tags = Tags(page)
    assert {a["id"] for tag, a in tags.found if tag == "section"} == {"audit"}
    assert "Nothing wrong was found" in tags.text
    bad = report_html(
        Report("A set", "", audit=model.Audit((), (model.AuditLine("error", "shard-000001", "1", "is wrong"),), False))
    )
    assert "1 finding." in Tags(bad).text and "Nothing wrong" not in bad


def _console(page: Path, profile: Path) -> tuple[str, str]:
    """(DOM after loading, what the browser's console and policy said) of a page in a headless browser."""
    assert BROWSER
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
    command += ["--disable-component-update", "--no-first-run", f"--user-data-dir={profile}", "--enable-logging=stderr"]
    done = subprocess.run([*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120, check=False)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine")
def test_a_real_browser_shows_it_without_complaint(hostile_page: str, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(hostile_page, encoding="utf-8")
    dom, console = _console(page, tmp_path / "profile")
    assert dom.count("<section") == 12 and "<script>" not in dom.replace("&lt;script&gt;", "")
    assert console == ""
    # The same check on a page that does break the policy, so that silence above means something.
    page.write_text(hostile_page.replace("</body>", "<script>alert(1)</script></body>"), encoding="utf-8")
    _, console = _console(page, tmp_path / "profile")
    assert "Content Security Policy" in console


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=50), st.floats(1, 1e15))
def test_histogram_draws_every_bar(counts: list[int], top: float) -> None:
    chart = histogram(counts, top, "t", "x")
    assert sum(int(n) for n in re.findall(r": (\d+) packs<", chart)) == sum(counts)
    assert "nan" not in chart and "inf" not in chart


@given(st.lists(st.tuples(st.integers(0, 10**6), st.floats(allow_nan=True, allow_infinity=True)), max_size=30))
def test_lines_leave_out_what_is_not_finite(points: list[tuple[float, float]]) -> None:
    points = [(x, y) for x, y in points if not abs(y) > 1e300 or y != y or abs(y) == float("inf")]
    chart = lines([Curve("<a>", tuple(points))], "t", "step", "nats")
    drawn = [p for line in re.findall(r'points="([^"]*)"', chart) for p in line.split()]
    assert len(drawn) == sum(abs(y) < float("inf") for _, y in points)
    assert not re.search(r"nan|inf", "".join(drawn)) and "<a>" not in chart


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_ticks_are_round_and_inside(low: float, span: float) -> None:
    found = ticks(low, low + span)
    slack = span * 1e-6 + abs(low) * 1e-9
    assert len(found) <= 12 and all(low - slack <= t <= low + span + slack for t in found)


def test_short_numbers() -> None:
    cases = {0: "0", 12: "12", 1234: "1,234", 0.5: "0.5", 12.345: "12.3", 3.4e6: "3.4 M", 2.1e11: "210 G", 1e-5: "1.0e-05"}
    assert {value: short(value) for value in cases} == cases
