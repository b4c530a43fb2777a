"""Where parts are plugged in by name: rules, sources, captioners, scorers, terms of the loss.

A part is one class or function in one file, registered by a decorator:

    @rules.register("my_rule")
    class MyRule(TextRule): ...

Ours are found by looking through a package's folder, so a new file there is all that is needed; other packages name theirs
as entry points of the socket's group, and are imported only when a recipe asks for the name. The cost: the first look
imports every module of the folder, so what such a module needs that is heavy it imports where it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pkgutil import iter_modules
from threading import RLock
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
        self._offered: dict[str, EntryPoint] | None = None
        self._twice: dict[str, str] = {}
        self._lock = RLock()  # threads that read images ask at once; a module that is imported may ask itself

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
        return sorted({*self._look(), *self._parts})

    def __contains__(self, name: str) -> bool:
        return name in self._look() or name in self._parts

    def get(self, name: str) -> P:
        """The part of that name. UnknownPart lists the known names, or says why a package's part cannot be loaded."""
        offered = self._look()
        if name in self._twice:
            raise UnknownPart(f"there are two {self.what}s {name!r}: {self._twice[name]}; uninstall the package of one")
        if name not in self._parts and name in offered:
            self._load(offered[name])
        if name not in self._parts:
            raise UnknownPart(self.unknown(name))
        return self._parts[name]

    def unknown(self, name: str) -> str:
        """What to say of a name that is not there."""
        names = self.names()
        near = get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"there is no {self.what} {name!r}; {hint}known: {', '.join(names)}"

    def _look(self) -> dict[str, EntryPoint]:
        """What other packages offer, by name; imports ours. Looked for once a process: it reads every package's metadata."""
        with self._lock:
            if self._offered is None:
                self._offered = {}
                for module in iter_modules(import_module(self.package).__path__, f"{self.package}."):
                    import_module(module.name)
                for point in entry_points(group=self.group):
                    other = self._offered.setdefault(point.name, point).value
                    # Registered already, and not by us: the package's module was imported before anyone looked.
                    ours = self._parts.get(point.name)
                    if ours is not None and _place(ours).startswith(f"{self.package}."):
                        self._twice[point.name] = f"{_place(ours)} and {point.value}"
                    elif other != point.value:
                        self._twice[point.name] = f"{other} and {point.value}"
            return self._offered

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
