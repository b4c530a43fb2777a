"""Where parts are plugged in by name: rules, sources, captioners, scorers, terms of the loss.

A part is one class or function in one file, registered by a decorator:

    @rules.register("my_rule")
    class MyRule(TextRule): ...

Ours are found by looking through a package's folder, so a new file there is all that is needed; other packages name theirs
as entry points of the socket's group, and are imported only when a recipe asks for the name. The cost: the first look
imports every module of the folder, so what such a module needs that is heavy it imports where it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pkgutil import iter_modules
from typing import Generic, TypeVar

from nextflow_data.common.errors import RequestError

P = TypeVar("P")


class UnknownPart(RequestError):
    """A name that nothing is registered under, or a part that cannot be loaded."""


class Socket(Generic[P]):
    """Parts of one kind by name, the name that recipes use.

    `what` is the kind in words ("rule"), `package` the folder of ours, `group` that of other packages' entry points.
    """

    def __init__(self, what: str, package: str, group: str) -> None:
        self.what, self.package, self.group = what, package, group
        self._parts: dict[str, P] = {}
        self._looked = False

    def register(self, name: str) -> Callable[[P], P]:
        """Decorator: the part of that name. A name that is taken is a ValueError."""

        def keep(part: P) -> P:
            known = self._parts.setdefault(name, part)
            if known is not part and _place(known) != _place(part):
                raise ValueError(f"{self.what} {name!r} is registered twice: by {_place(known)} and by {_place(part)}")
            self._parts[name] = part
            return part

        return keep

    def names(self) -> list[str]:
        """All names: ours and those that other packages offer, in alphabetical order."""
        self._look()
        return sorted({*self._parts, *(point.name for point in self._offered())})

    def __contains__(self, name: str) -> bool:
        return name in self.names()

    def get(self, name: str) -> P:
        """The part of that name. UnknownPart lists the known names, or says why a package's part cannot be loaded."""
        self._look()
        if name not in self._parts:
            for point in self._offered():
                if point.name == name:
                    self._load(point)
        if name not in self._parts:
            raise UnknownPart(self.unknown(name))
        return self._parts[name]

    def unknown(self, name: str) -> str:
        """What to say of a name that is not there."""
        names = self.names()
        near = get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"there is no {self.what} {name!r}; {hint}known: {', '.join(names)}"

    def _look(self) -> None:
        if self._looked:
            return
        self._looked = True
        for module in iter_modules(import_module(self.package).__path__, f"{self.package}."):
            import_module(module.name)

    def _offered(self) -> Iterator[EntryPoint]:
        yield from entry_points(group=self.group)

    def _load(self, point: EntryPoint) -> None:
        try:
            part = point.load()
        except Exception as error:
            raise UnknownPart(
                f"{self.what} {point.name!r} of {point.value} cannot be loaded: {type(error).__name__}: {error}"
            ) from error
        if point.name not in self._parts:
            self.register(point.name)(part)


def _place(part: object) -> str:
    return f"{getattr(part, '__module__', '?')}.{getattr(part, '__qualname__', part)}"
