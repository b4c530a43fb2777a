"""Parts by name: ours in a folder, other packages' as entry points, and what is said of those that are not there."""

import importlib
import re
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from nextflow_data.common.sockets import Socket, UnknownPart

OURS = "from own_parts import parts\n\nparts.register('plain')(lambda: 'ours')\nparts.register('sole')(lambda: 'ours')\n"


@pytest.fixture
def socket(tmp_path, monkeypatch):
    """A socket with the package `own_parts` and two packages that offer a part each, one of which does not import."""
    package = tmp_path / "own_parts"
    package.mkdir()
    (package / "__init__.py").write_text("from nextflow_data.common.sockets import Socket\n\n"
                                         "parts = Socket('part', 'own_parts', 'test.parts')\n")  # fmt: skip
    (package / "plain.py").write_text(OURS)
    theirs = "from own_parts import parts\n\n@parts.register('fancy')\ndef fancy():\n    return 'theirs'\n"
    (tmp_path / "theirs.py").write_text(theirs)
    (tmp_path / "broken.py").write_text("import there_is_no_such_module\n")
    offers = {
        "theirs": "fancy = theirs:fancy\nboth = theirs:fancy",
        "broken": "torn = broken:torn\nboth = broken:both\nplain = broken:plain",
    }
    for name, point in offers.items():
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[test.parts]\n{point}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield __import__("own_parts").parts
    for name in [name for name in sys.modules if name.partition(".")[0] in ("own_parts", "theirs")]:
        del sys.modules[name]


def test_ours_and_theirs_by_name_and_theirs_only_when_asked_for(socket):
    assert socket.names() == ["both", "fancy", "plain", "sole", "torn"] and "theirs" not in sys.modules
    assert socket.get("sole")() == "ours" and socket.get("fancy")() == "theirs"
    assert "fancy" in socket and "other" not in socket


def test_threads_that_ask_at_once_all_find_it(socket, tmp_path):
    slow = (tmp_path / "own_parts" / "plain.py").read_text()
    (tmp_path / "own_parts" / "plain.py").write_text(f"import time\n\ntime.sleep(0.3)\n{slow}")
    with ThreadPoolExecutor(8) as pool:
        assert [part() for part in pool.map(socket.get, ["sole"] * 8)] == ["ours"] * 8


def test_an_unknown_name_lists_the_known_and_a_broken_part_says_why(socket):
    words = "there is no part 'plane'; did you mean 'plain'? known: both, fancy, plain, sole, torn"
    with pytest.raises(UnknownPart, match=re.escape(words)):
        socket.get("plane")
    with pytest.raises(UnknownPart, match="part 'torn' of broken:torn cannot be loaded: ModuleNotFoundError: No module"):
        socket.get("torn")


def test_a_package_that_was_imported_before_anyone_looked_offers_the_same_part(socket):
    """As in a Spark worker, where a part's settings are unpickled first."""
    fancy = importlib.import_module("theirs").fancy
    assert socket.get("fancy") is fancy


def test_a_name_that_two_packages_offer_is_refused_with_both(socket):
    pair = "(theirs:fancy and broken:both|broken:both and theirs:fancy)"
    with pytest.raises(UnknownPart, match=rf"there are two parts 'both': {pair}; uninstall"):
        socket.get("both")
    with pytest.raises(UnknownPart, match=r"there are two parts 'plain': own_parts\.plain.*and broken:plain"):
        socket.get("plain")


def test_a_name_is_one_part():
    parts = Socket("part", "nextflow_data.rules.shipped", "test.none")

    @parts.register("a")
    def one() -> None: ...

    assert parts.register("a")(one) is one
    with pytest.raises(ValueError, match=r"part 'a' is registered twice: by .*one and by .*two"):

        @parts.register("a")
        def two() -> None: ...
