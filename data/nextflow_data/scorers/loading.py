"""A scorer's file: what it looks like, how it is found, and what identifies its answers.

    from nextflow_data.scorers.loading import scorers

    VERSION = "1"                 # optional; a promise that equal versions give equal answers
    DEVICES = "gpu"               # optional; "cpu" where it is not said

    @scorers.register("my_scorer")
    class MyScorer:               # made once in each process that answers
        class Config(Section):    # optional: its own settings
            ...
        def __init__(self, config: Config) -> None: ...
        def score(self, *, image, text, reference, extra): return {"score": 0.5}

or only a function `score(*, image, text, reference, extra)`, without settings. Either may be `async`. `image` is an image
file's bytes or None, to be opened by `nextflow_data.images.measure.open_rgb`; `text` a str or None; `reference` bytes, str
or None; `extra` a dict of JSON values, the scorer's to change. It returns a mapping of JSON values with a finite number
under "score".

A recipe names a scorer by its registered name (ours, or an entry point of the group `nextflow.scorers`), or gives the path
of a .py file: then its top-level `score` or `Scorer` is taken, registered or not. Without VERSION the file's sha256 is the
version: whoever edits a file need remember nothing, and pays by asking anew. What it imports is not in it.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import ValidationError

from nextflow_data.common.section import Section
from nextflow_data.common.sockets import Socket, UnknownPart
from nextflow_data.common.whole_files import file_sha256
from nextflow_data.scorers.protocol import PROTOCOL, canonical

scorers: Socket[Any] = Socket("scorer", "nextflow_data.scorers.shipped", "nextflow.scorers")


class ScorerUnusable(ValueError):
    """A scorer that cannot be found, made or reached, or is not the one asked for."""


@dataclass(frozen=True)
class Scorer:
    """A scorer that was found and not made yet. `part` is its class or function, `config` its settings, `plain` what of them
    decides answers."""

    name: str
    version: str
    devices: str
    part: Any
    config: Section | None
    plain: Mapping[str, Any]

    @property
    def description(self) -> dict[str, Any]:
        """What /health says."""
        named = {"scorer": self.name, "version": self.version}
        identity = hashlib.sha256(canonical({**named, "settings": self.plain}).encode()).hexdigest()
        return {"protocol": PROTOCOL, **named, "settings": _told(self.config), "devices": self.devices, "identity": identity}

    def make(self) -> Callable[..., Any]:
        """The function to call by keyword; of a class, that of a new instance. Raises ScorerUnusable."""
        try:
            score: Callable[..., Any] = self.part
            if inspect.isclass(self.part):
                kind: Callable[..., Any] = self.part
                score = (kind() if self.config is None else kind(self.config)).score
            inspect.signature(score).bind(image=None, text=None, reference=None, extra={})
        except Exception as error:
            raise ScorerUnusable(f"scorer {self.name} cannot be made: {type(error).__name__}: {error}") from error
        return score


def find(scorer: str, settings: Mapping[str, Any]) -> Scorer:
    """The scorer of that name or file, with its settings checked. Raises ScorerUnusable."""
    by_path = scorer.endswith(".py")
    if by_path:
        module = _load(Path(scorer))
        part = getattr(module, "score", None) or getattr(module, "Scorer", None)
        if part is None:
            raise ScorerUnusable(f"{scorer} has neither a function `score` nor a class `Scorer`")
    else:
        try:
            part = scorers.get(scorer)
        except UnknownPart as error:
            raise ScorerUnusable(str(error)) from error
        module = sys.modules[part.__module__]
    name = Path(scorer).name if by_path else scorer
    config = _config(name, getattr(part, "Config", None), settings)
    # What is given by its path belongs to no package, so no file records its defaults: every setting counts.
    plain = _told(config) if by_path or config is None else config.identity()
    return Scorer(name, _version(module), str(getattr(module, "DEVICES", "cpu")), part, config, plain)


def _told(config: Section | None) -> dict[str, Any]:
    """All settings that decide answers, as JSON values."""
    return {} if config is None else {name: config.model_dump(mode="json")[name] for name in config.deciding()}


def _config(name: str, kind: type[Section] | None, settings: Mapping[str, Any]) -> Section | None:
    if kind is None:
        if settings:
            raise ScorerUnusable(f"scorer {name} has no settings; given: {', '.join(settings)}")
        return None
    try:
        return kind.model_validate(dict(settings))
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise ScorerUnusable(f"settings of scorer {name}: {found}") from None


def _version(module: ModuleType) -> str:
    return str(getattr(module, "VERSION", "")) or f"sha256:{file_sha256(Path(str(module.__file__)))[:16]}"


def _load(path: Path) -> ModuleType:
    name = f"nextflow_scorer_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ScorerUnusable(f"there is no file {path}")
    module = module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ScorerUnusable(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error
    return module
