"""The order of text and images on hand-made pages, each feature with the order a reader of the markup sees."""

import base64
import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nextflow_data.config import IngestConfig
from nextflow_data.pages.blocks import TextBlock
from nextflow_data.pages.image_markup import decode_data_address, parse_srcset
from nextflow_data.pages.parse import PageRejected, parse_page

AT = "https://site.example/docs/page.html"
PROSE = "<p>" + "Plain prose that makes the page long enough to have a main part. " * 5 + "</p>"
PROSE_TEXT = PROSE[3:-4].strip()


def order(markup, config=None):
    """A page's blocks in order: texts as they are, images as "<last part of the address>"."""
    page = parse_page(markup.encode(), AT, None, config or IngestConfig())
    return [
        b.text if isinstance(b, TextBlock) else f"<{(b.addresses or ('data:',))[0].rsplit('/', 1)[-1]}>" for b in page.blocks
    ]


def removed(markup, config=None):
    return {r.rule: r for r in parse_page(markup.encode(), AT, None, config or IngestConfig()).removed}


def test_inline_markup_is_joined_into_paragraphs():
    markup = "<p>One <b>bold <i>and</i></b> <a href=x>linked</a> sen<em>tence</em>.<p>H<sub>2</sub>O,\n   wrapped<br>on"
    assert order(markup) == ["One bold and linked sentence.", "H2O, wrapped\non"]


def test_text_without_elements_around_it_keeps_its_place():
    assert order("<body>first<div>second</div>third<!-- gone -->, still third<p>fourth</p>fifth") == [
        "first", "second", "third, still third", "fourth", "fifth",
    ]  # fmt: skip


def test_image_inside_a_paragraph_parts_it_where_it_stands():
    page = parse_page(b"<p>Press <img src=a.png> to go <img src=b.png>.</p><p>Next</p>", AT, None, IngestConfig())
    kinds = [(b.text, b.paragraph) if isinstance(b, TextBlock) else b.addresses[0] for b in page.blocks]
    assert [k if isinstance(k, str) else k[0] for k in kinds] == [
        "Press", "https://site.example/docs/a.png", "to go", "https://site.example/docs/b.png", "Next",
    ]  # fmt: skip
    assert kinds[0][1] == kinds[2][1] != kinds[4][1]


def test_headings_lists_and_nesting():
    markup = """<h1>Title</h1><ul><li>one<li>two <ul><li>inner <img src=i.png> rest</ul><li>three</ul>
    <ol start=4><li>four<li>five</ol><dl><dt>term<dd>meaning</dl><h2>Next</h2>"""
    assert order(markup) == [
        "Title", "- one", "- two", "  - inner", "<i.png>", "rest", "- three", "4. four", "5. five", "term",
        "meaning", "Next",
    ]  # fmt: skip


def test_data_table_rows_are_lines():
    markup = """<table><caption>Sizes</caption><tr><th>name<th>size<tr><td>a <b>b</b><td><p>1</p><tr><td><td>2
    <tr><td><img src=cell.png></td><td>3</td></table><p>after"""
    assert order(markup) == ["Sizes", "name | size", "a b | 1", "2", "<cell.png>", "3", "after"]


def test_layout_table_is_read_block_by_block():
    markup = "<table><tr><td><h2>Left</h2><p>one</p><p>two</p></td><td><ul><li>item</ul><img src=x.png></td></tr></table>"
    assert order(markup) == ["Left", "one", "two", "- item", "<x.png>"]


def test_code_keeps_its_lines():
    assert order("<p>See:<pre>def f():\n    <b>return</b> 1\n\n\nf()\n</pre><p>done <code>x  y</code>") == [
        "See:", "def f():\n    return 1\n\n\nf()", "done x y",
    ]  # fmt: skip


def test_figures_give_their_caption_to_their_images():
    markup = """<figure><img src=a.png><img src=b.png><figcaption>Both <i>of</i> them</figcaption></figure>
    <figure><figcaption>Before</figcaption><img src=c.png></figure>
    <div class="figure"><p class="title">Titled</p><img src=d.png><img src=e.png><div class="caption">Own</div></div>
    <img src=f.png>"""
    page = parse_page(markup.encode(), AT, None, IngestConfig())
    captions = {b.addresses[0][-5]: b.figcaption for b in page.blocks if not isinstance(b, TextBlock)}
    assert captions == {"a": "Both of them", "b": "Both of them", "c": "Before", "d": "Own", "e": "Own", "f": None}
    assert order(markup) == [
        "<a.png>", "<b.png>", "Both of them", "Before", "<c.png>", "Titled", "<d.png>", "<e.png>", "Own", "<f.png>",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("markup", "addresses"),
    [
        ('<img srcset="s.png 480w, l.png 1600w, xl.png 6000w" src=d.png>', "l s xl d"),
        ('<img srcset="one.png, two.png 2x" src=d.png>', "two one d"),
        ('<img src="spin.gif" data-src="real.png">', "real spin"),
        ('<img src="data:image/gif;base64,R0lGODlhAQABAAAAACw=" data-original="real.png" loading=lazy>', "real"),
        ('<img data-srcset="a.png 300w,b.png 900w" src=p.gif>', "b a p"),
        ('<picture><source type="image/svg+xml" srcset=v.svg><source srcset="w.webp 800w"><img src=j.png></picture>', "w j"),
        ('<base href="/other/"><img src="../x.png">', "x"),
        ('<img src="  a b.png\n">', "a%20b"),
    ],
)
def test_candidates_of_an_image_best_first(markup, addresses):
    (image,) = parse_page(("<p>text " + markup).encode(), AT, None, IngestConfig()).blocks[1:]
    assert [a.rsplit("/", 1)[-1].rsplit(".", 1)[0] for a in image.addresses] == addresses.split()


def test_base_address_is_used():
    (_, image) = parse_page(b'<base href="https://cdn.example/x/"><p>t<img src="y.png">', AT, None, IngestConfig()).blocks
    assert image.addresses == ("https://cdn.example/x/y.png",)


def test_noscript_fallback_of_a_lazy_image_is_not_a_second_image():
    markup = """<p>a</p><img data-src=x.png src=blank.gif><noscript><img src=x.png>Enable scripts</noscript>
    <noscript><img src=only.png></noscript>"""
    assert order(markup) == ["a", "<x.png>", "<only.png>"]


def test_srcset_as_the_html_standard_splits_it():
    assert parse_srcset("a,b.png 1x, data:image/png;base64,xx 2x,c.png,") == [
        ("a,b.png", 1.0, "x"),
        ("data:image/png;base64,xx", 2.0, "x"),
        ("c.png", 1.0, "x"),
    ]


def test_data_image_is_decoded_in_its_place(build):
    address = "data:image/png;base64," + base64.b64encode(build.png()).decode()
    page = parse_page(f"<p>a<img src='{address}'><p>b<img src=c.png>".encode(), AT, None, IngestConfig())
    assert page.blocks[1].data == build.png() and page.blocks[1].data_index == 0
    assert order(f"<p>a<img src='{address}'><p>b") == ["a", "<data:>", "b"]


def test_data_addresses_have_limits():
    assert decode_data_address("data:text/plain,a%20b", 10) == (b"a b", None)
    assert decode_data_address("data:;base64," + "A" * 400, 100) == (None, "data-address-too-large")
    assert decode_data_address("data:;base64,@@@", 100) == (None, "data-address-malformed")
    assert decode_data_address("data:nothing", 100) == (None, "data-address-malformed")
    few = IngestConfig(max_data_images=1)
    markup = "<img src='data:image/png;base64,AAAA'><img src='data:image/png;base64,BBBB'>"
    assert order("<p>x" + markup, few) == ["x", "<data:>"]
    assert "image-without-address" in removed("<p>x" + markup, few)


@pytest.mark.parametrize(
    ("region", "rule"),
    [
        ("<nav>menu here</nav>", "boilerplate-tag-nav"),
        ("<footer>copyright<img src=f.png></footer>", "boilerplate-tag-footer"),
        ("<aside>by the way</aside>", "boilerplate-tag-aside"),
        ("<header>site name</header>", "boilerplate-tag-header"),
        ('<div class="header big">site name</div>', "boilerplate-class-header"),
        ('<div role="navigation">menu</div>', "boilerplate-role"),
        ('<div class="x Breadcrumbs">a &gt; b</div>', "boilerplate-class"),
        ('<div id="sidebar">menu</div>', "boilerplate-class"),
        ('<div style="display: none">secret</div>', "boilerplate-hidden"),
        ("<div hidden>secret</div>", "boilerplate-hidden"),
        ("<ul>" + "<li><a href=x>some link</a>" * 5 + "</ul>", "boilerplate-link-density"),
    ],
)
def test_boilerplate_is_left_out_and_counted(region, rule):
    for markup in (region + PROSE, PROSE + region, f"<div>{PROSE}{region}</div>"):
        assert order(markup) == [PROSE_TEXT]
        assert removed(markup)[rule].value in (1.0, 1)


@pytest.mark.parametrize(
    "markup",
    [
        f'<body class="sidebar">{PROSE}',
        f"<nav>{PROSE}</nav>",
        f"<article><header>{PROSE_TEXT}</header></article><p>x",
        f"<header><h1>{PROSE_TEXT}</h1></header><p>{'y' * 900}",
        f"<ul><li>{PROSE_TEXT} <a href=x>link</a></ul>",
    ],
)
def test_content_in_boilerplates_clothes_stays(markup):
    assert PROSE_TEXT in " ".join(order(markup))


def test_tail_of_what_is_left_out_is_kept():
    assert order(f"{PROSE}<p>a <span hidden>no</span> b<script>no</script> c <select><option>no</select>d") == [
        PROSE_TEXT, "a b c d",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("markup", "rule", "value", "threshold"),
    [
        ("<img src=a.png width=16 height=16>", "icon-declared-size", 16, 40),
        ("<img src=a.png style='width:30px;height:40px'>", "icon-declared-size", 40, 40),
        ("<img src=a.gif width=1 height=1>", "icon-tracking-pixel", 1, 2),
        ("<img src=a.png class='site-logo'>", "icon-class", None, None),
        ("<div class=logo><a href=x><img src=a.png></a></div>", "icon-class", None, None),
        ("<svg><text>drawn</text></svg>", "inline-svg", 1, None),
    ],
)
def test_icons_are_left_out_with_what_was_measured(markup, rule, value, threshold):
    assert order("<p>before " + markup + " after") == ["before after"] or order("<p>before " + markup + " after") == [
        "before", "after",
    ]  # fmt: skip
    found = removed("<p>before " + markup)[rule]
    assert (found.value, found.threshold) == (value, threshold)


def test_image_of_41_pixels_is_no_icon():
    assert order("<p>a<img src=a.png width=41 height=41>") == ["a", "<a.png>"]


def test_facts_about_the_page():
    page = parse_page(
        b'<html lang="EN-gb"><title> A\n title </title><link rel="license" href="/cc0"><p>x', AT, None, IngestConfig()
    )
    assert (page.title, page.lang, page.licence) == ("A title", "en-gb", "https://site.example/cc0")


def test_page_of_50_mb_is_refused_at_once():
    payload = b"<p>word <b>bold</b></p>" * (50 * 1024 * 1024 // 23)
    with pytest.raises(PageRejected) as error:
        parse_page(payload, AT, None, IngestConfig())
    assert error.value.reason == "page-too-large"


def test_depth_does_not_crash_and_what_libxml2_cuts_is_refused():
    deep = "<div>" * 1500 + "deep" + "</div>" * 1500
    assert order(deep + "<p>after") == ["deep", "after"]
    for depth in (3000, 100_000):
        with pytest.raises(PageRejected) as error:
            order("<div>" * depth + "deep" + "</div>" * depth + "<p>after")
        assert error.value.reason == "markup-too-deep"


def test_nested_tables_stay_linear():
    """Deep nesting of every block there is: a quadratic walk would need hours here."""
    config = IngestConfig(max_page_bytes=64 << 20)
    assert order("<table><tr><td>" * 600 + "in" + "</td></tr></table>" * 600 + "<p>x</p>" * 20_000, config)[:2] == [
        "in",
        "x",
    ]


@pytest.mark.parametrize("markup", ["", "   ", "<!-- only a comment -->", "\x00\x00"])
def test_page_without_anything(markup):
    try:
        assert order(markup) == []
    except PageRejected as error:
        assert error.reason == "empty-page"


PIECES = """<p> </p> <div> </div> <table> <tr> <td> </table> <ul> <li> </ul> <pre> </pre> <b> </b> <figure> <figcaption>
</figure> <nav> </nav> <img/src=a.png> <br> <h1> <svg> </svg> <noscript> <!-- --> text &amp; <ol> <dl> <dt> <dd> < > <script>
<caption> <picture> <source>"""


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(PIECES.split()), max_size=40))
def test_any_markup_gives_blocks_with_text(pieces):
    try:
        page = parse_page(" ".join(pieces).replace("/src", " src").encode(), AT, None, IngestConfig())
    except PageRejected as error:
        assert error.reason == "empty-page"
        return
    numbers = [b.paragraph for b in page.blocks if isinstance(b, TextBlock)]
    assert numbers == sorted(numbers)
    assert all(b.text.strip() for b in page.blocks if isinstance(b, TextBlock))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_parsed_or_refused(payload):
    with contextlib.suppress(PageRejected):
        parse_page(payload, AT, "text/html; charset=nonsense", IngestConfig())
