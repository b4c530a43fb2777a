"""Images read ahead: what is given, how much is held, and what errors do."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from nextflow_pipelines import images_ahead
from nextflow_pipelines.images_ahead import ImagesAhead


class Loads:
    """A store that answers late: how many answers were out at once, and of what."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.lock = seconds, threading.Lock()
        self.asked: list[str] = []
        self.given = 0
        self.most = 0

    def __call__(self, image: Any) -> bytes:
        with self.lock:
            self.asked.append(image["sha256"])
            self.most = max(self.most, len(self.asked) - self.given)
        time.sleep(self.seconds)
        if image["sha256"].startswith("bad"):
            raise OSError(f"{image['sha256']} does not come")
        return image["sha256"].encode()


def image(name: str) -> Any:
    return {"sha256": name}


def read_all(items: list[list[Any]], loads: Loads) -> list[list[bytes | str]]:
    found: list[list[bytes | str]] = []
    with ImagesAhead(loads) as read:
        for item in read.ahead(items, lambda item: item):
            found.append([])
            for one in item:
                try:
                    found[-1].append(read(one))
                except OSError as error:
                    found[-1].append(str(error))
                loads.given += 1
    return found


def test_each_gets_its_own_and_errors_come_where_they_belong():
    items = [[image("a"), image("bad b")], [], [image("c")], [image("a")]]
    assert read_all(items, Loads()) == [[b"a", "bad b does not come"], [], [b"c"], [b"a"]]


def test_later_ones_are_read_while_the_first_is_waited_for():
    both = threading.Barrier(2, timeout=30)

    def load(one: Any) -> bytes:
        both.wait()  # stands until a second thread has come
        return one["sha256"].encode()

    with ImagesAhead(load) as read:
        assert [read(item[0]) for item in read.ahead([[image("a")], [image("b")]], lambda item: item)] == [b"a", b"b"]


def test_no_more_is_held_than_was_promised(monkeypatch):
    monkeypatch.setattr(images_ahead, "_IMAGES", 5)
    loads = Loads()
    items = [[image(f"{item}-{number}") for number in range(size)] for item, size in enumerate([1, 40, 0, 2, 30, 1])]
    found = read_all(items, loads)
    assert found == [[one["sha256"].encode() for one in item] for item in items]
    assert loads.most <= 6 and len(loads.asked) == 74  # five and the one that is asked for; each once


def test_what_is_not_asked_for_is_forgotten():
    with ImagesAhead(Loads()) as read:
        items = [[image("a"), image("b")], [image("c")], [image("d")]]
        assert [read(item[-1]) for item in read.ahead(items, lambda item: item)] == [b"b", b"c", b"d"]
        assert not read._coming and not read._next


def test_one_that_was_not_announced_is_read():
    with ImagesAhead(Loads()) as read:
        assert read(image("z")) == b"z"


def test_items_without_images_do_not_pile_up(monkeypatch):
    monkeypatch.setattr(images_ahead, "_ITEMS", 10)
    taken = 0

    def items() -> Any:
        nonlocal taken
        for number in range(100):
            taken += 1
            yield number

    with ImagesAhead(Loads()) as read:
        for number in read.ahead(items(), lambda number: []):
            assert taken <= number + 11


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_left_early_it_ends_its_threads(error):
    with pytest.raises(error), ImagesAhead(Loads(0.01)) as read:
        for _ in read.ahead([[image(str(n))] for n in range(100)], lambda item: item):
            raise error
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("images-ahead")]
