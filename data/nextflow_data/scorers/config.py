"""Which scorers are asked, how much each counts, and by which of the three ways.

The way, its processes, servers and patience decide how fast answers come, never what they are, so they are operational: a
score computed here and one recorded from a server are the same score.
"""

from __future__ import annotations

from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from nextflow_data.common.section import Section, operational

MIB = 1 << 20


class ScorerConfig(Section):
    """One scorer."""

    scorer: str
    """Its name, or the path of a .py file (see `nextflow_data.scorers.loading`)."""
    version: str | None = None
    """The version that must answer; none: whichever is found. Named, it lets answers be known before any server is
    reached."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """The scorer's own settings. For a served one they must be those its server was started with."""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """What its score is multiplied by in the sum."""
    max_image_bytes: int = Field(default=32 * MIB, gt=0)
    """Largest image file; ours, to bound memory."""
    max_image_pixels: int = Field(default=64_000_000, gt=0)
    """Most pixels an image may claim, read before any is decoded; ours, as for ingest."""

    way: Literal["process", "pool", "server"] = operational("process")
    """`process`: in this process; a hanging function cannot be ended. `pool`: in processes of ours, which can be killed.
    `server`: at `servers`, each in an environment of its own."""
    workers: int = operational(2, ge=1)
    """Processes of a pool."""
    gpus: tuple[str, ...] = operational(())
    """What CUDA_VISIBLE_DEVICES of a pool's processes is, in turn; none: left as it is here."""
    servers: tuple[str, ...] = operational(())
    """Addresses, as http://127.0.0.1:8000; asked in turn."""
    concurrency: int = operational(8, ge=1)
    """Most requests at once to servers, or to an async scorer in this process."""
    timeout_s: float = operational(60.0, gt=0, allow_inf_nan=False)
    """Seconds for one answer; ours. At a server, what a request waits there for its turn counts too."""
    start_s: float = operational(600.0, gt=0, allow_inf_nan=False)
    """Seconds for a pool's process to load its scorer; ours: weights may have to come over a network."""
    patience_s: float = operational(60.0, ge=0, allow_inf_nan=False)
    """Seconds during which a server that cannot be reached, or is not ready, is asked again; ours: a restart."""

    @field_validator("servers")
    @classmethod
    def _addresses(cls, servers: tuple[str, ...]) -> tuple[str, ...]:
        for address in servers:
            parts = urlsplit(address)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
                raise ValueError(f"{address!r} is no address of a server; one is http://host:port")
        return servers

    @model_validator(mode="after")
    def _servers_are_used(self) -> ScorerConfig:
        if (self.way == "server") != bool(self.servers):
            raise ValueError("servers are named where way is server, and only there")
        return self


class ScoringConfig(Section):
    """Scorers by name of your own choice, and how their scores are added up."""

    scorers: dict[str, ScorerConfig] = Field(min_length=1)
    """Each one's score times its weight is summed, in this order."""
    missing: Literal["fail", "leave-out"] = "fail"
    """What the sum is where a scorer failed. `fail`: failed too. `leave-out`: that of the others, times Σ|all weights| over
    Σ|theirs|, so that it stays on the same scale; failed where none is left. A failed answer never counts as 0: a reward
    would then punish what was made for a server's fault."""
