"""From logits to ids: guidance, temperature, top-k, top-p, and one seeded draw.

The paper publishes no sampling settings; the rules are those of its relatives: guidance that rises over the scales as in VAR
(arXiv 2404.02905), which VAR-RL on NextFlow follows, then temperature, top-k and top-p in the order that is usual for text.
All draws of one generation come from one generator on the logits' device, so a seed gives the same result on the same kind
of device; the cost is that the draw cannot be split over processes.
"""

from __future__ import annotations

import torch
from nextflow_data.config import Section
from pydantic import Field


class Sampling(Section):
    """How ids are drawn. `top_k` 1 is greedy."""

    guidance: float = Field(default=2.0, ge=0)
    """Classifier-free guidance at the last scale; 0 switches it off and halves the work. Images only."""
    temperature: float = Field(default=1.0, gt=0)
    top_k: int = Field(default=0, ge=0)
    """Draw among this many most probable ids; 0: all."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Draw within the smallest set of most probable ids that holds this probability, after top-k."""
    seed: int = Field(default=0, ge=0)


def guided(conditional: torch.Tensor, unconditional: torch.Tensor, guidance: float, scale: int, scales: int) -> torch.Tensor:
    """(1 + t) · conditional − t · unconditional with t = guidance · (scale − 1)/(scales − 1), `scale` counted from 1.

    VAR's rising schedule: the first, coarse scale is drawn from the model as it is, the last with full guidance. With a
    single scale t is 0.
    """
    t = guidance * (scale - 1) / max(scales - 1, 1)
    return (1 + t) * conditional - t * unconditional


def filtered(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Logits [n, v] in float32 over the temperature, −∞ where top-k or top-p leaves an id out; at least one stays.

    Equal logits at the border of the set are told apart by their id, the lower one first.
    """
    logits = logits.float() / sampling.temperature
    keep = min(sampling.top_k or logits.size(-1), logits.size(-1))
    if keep == logits.size(-1) and sampling.top_p >= 1:
        return logits
    ranked, order = logits.sort(dim=-1, descending=True, stable=True)
    ranked[..., keep:] = -torch.inf
    probability = ranked.softmax(-1)
    before = probability.cumsum(-1) - probability
    outside = before >= sampling.top_p
    outside[..., 0] = False
    ranked = ranked.masked_fill(outside, -torch.inf)
    return torch.empty_like(ranked).scatter_(-1, order, ranked)


def draw(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> torch.Tensor:
    """One id of each row of `logits` [n, v], int64 [n]."""
    probability = filtered(logits, sampling).softmax(-1)
    return torch.multinomial(probability, 1, generator=generator).squeeze(-1)
