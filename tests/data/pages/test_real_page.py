"""One whole real page, read by eye in a browser's order once and typed in: each block's kind, its first words, its last.

The page is pygame's introduction (see fixtures/README.md): headings, a field list, prose with links and code in it, an image
before a code block, images between paragraphs, a table, and Sphinx's navigation above and below.
"""

from pathlib import Path

from nextflow_data.config import IngestConfig
from nextflow_data.pages.assemble import assemble, image_addresses
from nextflow_data.pages.blocks import TextBlock
from nextflow_data.pages.draft import draft_text, page_of
from nextflow_data.pages.parse import parse_page

PAGE = Path(__file__).parents[1] / "fixtures" / "pygame_intro.html"
ADDRESS = "https://pygame.example/docs/tut/PygameIntro.html"

EXPECTED = [
    ("heading", "Python Pygame Introduction", "Python Pygame Introduction"),
    ("paragraph", "Author:", "Author:"),
    ("paragraph", "Pete Shinners", "Pete Shinners"),
    ("paragraph", "Contact:", "Contact:"),
    ("paragraph", "pete@shinners.org", "pete@shinners.org"),
    ("paragraph", "This article is an introduction to the pygame library for Python programmers.", "and its helpers."),
    ("heading", "HISTORY", "HISTORY"),
    ("paragraph", "Pygame started in the summer of 2000.", "SDL was an interesting proposal."),
    ("paragraph", "I discovered a small project already under-way", "a new project of my own."),
    ("paragraph", "I wanted to put together a project that", "pygame version 1.0 was released."),
    ("heading", "TASTE", "TASTE"),
    ("paragraph", "I find the best way to understand a new library", "and a complete breakdown follows."),
    ("image", "_images/intro_ball.gif", ""),
    (
        "pre",
        "import sys, pygame\npygame.init()\n\nsize = width",
        "    screen.blit(ball, ballrect)\n    pygame.display.flip()",
    ),
    ("paragraph", "This is as simple as you can get for a bouncing animation. First", "visible on the monitor."),
    ("paragraph", "At line 10 we load our ball image.", "what the Rect objects can do."),
    ("paragraph", "At this point, line 13, our program is initialized", "everything is cleanly shutdown."),
    ("paragraph", "It is time to update our position for the ball.", "but it is all we need."),
    ("paragraph", "On line 23 we erase the screen by filling it", "draw the ball in its new positions."),
    ("paragraph", "On line 24 we draw the ball image onto the screen.", "to place the source onto the destination."),
    ("paragraph", "The last thing we need to do is", "as they are being created."),
    ("paragraph", "That concludes this short introduction to pygame.", "few are actually done in Python."),
    ("paragraph", "The pygame website has full reference documentation", "monkey punching and UFO shooting."),
    ("heading", "PYTHON AND GAMING", "PYTHON AND GAMING"),
    ("paragraph", '"Is Python suitable for gaming?"', '"It depends on the game."'),
    ("paragraph", "Python is actually quite capable at running games.", "full use of the computer."),
    ("image", "_images/intro_blade.jpg", ""),
    ("paragraph", "Over the past several years there has been", "run these scripts as portable bytecode."),
    ("paragraph", "In early 2001, developer Rebel Act Studios", "nothing more than Python source files."),
    ("paragraph", "More recently, Python has been used", "Humungous' Backyard Sports Series."),
    ("image", "_images/intro_freedom.jpg", ""),
    ("paragraph", "Pygame and SDL serve as an excellent C engine", "Python and games can work together."),
    ("paragraph", "It is impressive how well both Python and SDL", "without any extra work on my end."),
    ("paragraph", "Still, there are very clear limitations.", "a wide variety of retail quality titles."),
    ("paragraph", "Pygame is fairly low-level when it comes to", "understanding of what you are doing."),
    ("heading", "CLOSING", "CLOSING"),
    ("paragraph", "Developing games is very rewarding,", "able to do with Python."),
    ("paragraph", "One thing that has caught my attention", "people new to these concepts."),
    ("paragraph", "In the end, my advice is to keep it simple.", "a full presentable game."),
    ("heading", "Pygame Modules Overview", "Pygame Modules Overview"),
    ("table", "cdrom | playback", "cdrom | playback"),
    ("table", "cursors | load cursor images, includes standard cursors", "standard cursors"),
    ("table", "display | control the display window or screen", "window or screen"),
    ("table", "draw | draw simple shapes onto a Surface", "onto a Surface"),
    ("table", "event | manage events and the event queue", "the event queue"),
    ("table", "font | create and render TrueType fonts", "TrueType fonts"),
    ("table", "image | save and load images", "load images"),
    ("table", "joystick | manage joystick devices", "joystick devices"),
    ("table", "key | manage the keyboard", "the keyboard"),
    ("table", "mouse | manage the mouse", "the mouse"),
    ("table", "sndarray | manipulate sounds with numpy", "with numpy"),
    ("table", "surfarray | manipulate images with numpy", "with numpy"),
    ("table", "time | control timing", "control timing"),
    ("table", "transform | scale, rotate, and flip images", "flip images"),
    ("paragraph", "Edit on GitHub", "Edit on GitHub"),
]


def test_every_block_of_the_page_in_order():
    page = parse_page(PAGE.read_bytes(), ADDRESS, "text/html", IngestConfig())
    assert page.title == "Pygame Intro — pygame v2.6.1 documentation"
    assert len(page.blocks) == len(EXPECTED)
    for block, (kind, first, last) in zip(page.blocks, EXPECTED, strict=True):
        if isinstance(block, TextBlock):
            assert block.kind == kind
            assert block.text.startswith(first) and block.text.endswith(last), block.text
        else:
            assert kind == "image" and block.addresses == (f"https://pygame.example/docs/{first}",)


def test_words_inside_inline_markup_are_not_glued_or_parted():
    text = " ".join(
        b.text for b in parse_page(PAGE.read_bytes(), ADDRESS, None, IngestConfig()).blocks if isinstance(b, TextBlock)
    )
    assert "The import pygame imports the package with all the available pygame modules." in text
    assert "When we are finished drawing we call the pygame.display.flip() method." in text
    assert "The original version appeared in the PyZine volume 1 issue 3. This version" in text
    for left_out in ("Most useful stuff", "Help Contents", "General Index", "Copyright", "¶", "Navigation", "logo image"):
        assert left_out not in text


def test_the_document_made_of_it(build):
    page = parse_page(PAGE.read_bytes(), ADDRESS, None, IngestConfig())
    names = ["intro_ball.gif", "intro_blade.jpg", "intro_freedom.jpg"]
    addresses = [f"https://pygame.example/docs/_images/{name}" for name in names]
    assert image_addresses(page) == addresses
    record = {
        "address": ADDRESS, "uri": "x", "offset": 0, "length": 9, "kind": "page", "mime": "text/html", "charset": None,
        "status": 200, "record_id": "1", "date": None, "licence": "LGPL-2.1-or-later",
    }  # fmt: skip
    image = {"ref": {"uri": "x", "offset": 1, "length": 2}, "sha256": "0" * 64}
    images = {a: {**image, "address": a} for a in addresses if "blade" not in a}
    document, decisions, asides = assemble(record, page_of(draft_text(page, IngestConfig())), images)
    assert [n["kind"] for n in document["nodes"]] == ["text", "image", "text", "image", "text"]
    assert document["nodes"][0]["text"].startswith("Python Pygame Introduction\n\nAuthor:")
    assert "the computer.\n\nOver the past" in document["nodes"][2]["text"]
    assert "cdrom | playback\ncursors | load" in document["nodes"][4]["text"]
    assert document["nodes"][1]["image"]["alt"] == "../_images/intro_ball.gif"
    assert (document["task"], document["licence"]) == ("interleaved", "LGPL-2.1-or-later")
    assert [d["detail"] for d in decisions if d["rule"] == "image-not-in-source"] == [addresses[1]]
    assert asides == []
