"""Images that will be asked for soon, read in threads while those before them are decoded.

A store answers in some tens of milliseconds, in which a processor encodes or shrinks an image or two: a task that asks for
one image at a time waits as long as it works. What is given is what reading it then would have given, errors too, and in
the order in which it is asked for. The cost: the bytes of `_IMAGES` images a task, and a thread a request.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar

from nextflow_data.document import Image

T = TypeVar("T")

_AT_ONCE = 16
"""Threads; our choice: at 30 ms a request more images a second than a core decodes."""
_IMAGES = 64
"""Most images read and not asked for yet; our choice: some 6 MB, and never more than as many `max_image_bytes`."""
_ITEMS = 1024
"""Most items that wait."""


class ImagesAhead:
    """A loader of images that reads ahead those that went through `ahead`; others are read when they are asked for."""

    def __init__(self, load: Callable[[Image], bytes]) -> None:
        self._load = load
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="images-ahead")
        self._next: deque[Image] = deque()
        self._coming: dict[int, tuple[Image, Future[bytes]]] = {}

    def __call__(self, image: Image) -> bytes:
        """The image's bytes; raises what reading them raised."""
        coming = self._coming.pop(id(image), None)
        self._submit()
        return self._load(image) if coming is None else coming[1].result()

    def ahead(self, items: Iterable[T], images_of: Callable[[T], Iterable[Image]]) -> Iterator[T]:
        """The items in their order, while the images of those that follow are read. An item's images are to be asked for,
        in their order, before the next item is taken; those that were not are forgotten."""
        waiting: deque[tuple[T, list[Image]]] = deque()
        for item in items:
            images = list(images_of(item))
            waiting.append((item, images))
            self._next.extend(images)
            self._submit()
            while waiting and (self._next or len(waiting) > _ITEMS):
                yield from self._given(waiting)
        while waiting:
            yield from self._given(waiting)

    def _given(self, waiting: deque[tuple[T, list[Image]]]) -> Iterator[T]:
        item, images = waiting.popleft()
        yield item
        for image in images:
            if self._next and self._next[0] is image:
                self._next.popleft()
            elif (found := self._coming.pop(id(image), None)) is not None:
                found[1].cancel()
        self._submit()

    def _submit(self) -> None:
        while self._next and len(self._coming) < _IMAGES:
            image = self._next.popleft()
            self._coming[id(image)] = image, self._pool.submit(self._load, image)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
