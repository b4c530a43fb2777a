"""What a captioner is: one class in one file, made once a worker, given batches of images of whatever documents are at hand.

    @captioner
    class Toy(Captioner[ToyConfig]):
        name, version, Config = "toy", "1", ToyConfig

        def caption(self, batch: Sequence[CaptionRequest]) -> list[Caption]:
            pictures = [self.load(request.image) for request in batch]
            ...

`Config` holds its own settings, which stand in the recipe's section `caption` beside `captioner: toy`. Ours lie in
`captioners.shipped`; another package names its own as entry points of the group `nextflow.captioners`. The class says by
itself who it is and whether it wants a GPU, so nothing is made where the work is only planned. What is heavy to import or to
make belongs in `__init__`, which runs in a worker.

A captioner must give the same answer for the same request, whatever shares its batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from nextflow_data.common.section import Section
from nextflow_data.common.sockets import Socket
from nextflow_data.decisions import Finding
from nextflow_data.document import Image

C = TypeVar("C", bound=Section)
K = TypeVar("K", bound="type[Captioner[Any]]")

LoadImage = Callable[[Image], bytes]
"""Gives the encoded bytes of an image node's file, as they were when it was measured; raises where they cannot be had."""


@dataclass(frozen=True, slots=True)
class CaptionRequest:
    """One image to caption, with the text of its document just before and after it."""

    image: Image
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Caption:
    """`text` None: the captioner has none. `source` says where it came from ("alt", "figcaption", "nearby", or a model);
    `refusals` are words that were at hand and not used, and what was wrong with the image."""

    text: str | None
    source: str | None
    refusals: tuple[Finding, ...] = ()


class Captioner(ABC, Generic[C]):
    """Base of all. `name` with `version` says who wrote a caption; `version` is raised where the answers change."""

    name: ClassVar[str]
    version: ClassVar[str] = "1"
    Config: ClassVar[type[Section]]
    wants_gpu: ClassVar[bool] = False
    """Whether its tasks are given the GPUs that `spark.gpus_per_task` deals out; where that is 0 it is made for the CPU."""
    words: ClassVar[Mapping[str, str]] = {}
    """What a refusal "<name>.<check>" means, as a clause, by the check's name."""

    def __init__(self, config: C, load: LoadImage, device: str = "cpu") -> None:
        """`device` is torch's name of what the task was given."""
        self.config, self.load, self.device = config, load, device

    @abstractmethod
    def caption(self, batch: Sequence[CaptionRequest]) -> list[Caption]:
        """One caption a request, in order.

        What is wrong with one image is a Caption without text that says so; what it raises is wrong with the captioner, and
        ends the task.
        """


captioners: Socket[type[Captioner[Any]]] = Socket("captioner", "nextflow_data.captioners.shipped", "nextflow.captioners")
"""Every captioner by name."""


def captioner(kind: K) -> K:
    """Decorator: registers a captioner under its name."""
    captioners.register(kind.name)(kind)
    return kind
