"""From logits to ids: guidance, temperature, top-k, top-p, and one seeded draw.

The paper publishes no sampling settings; the rules are those of its relatives: guidance that rises over the scales as in VAR
(arXiv 2404.02905), which VAR-RL on NextFlow follows, then temperature, top-k and top-p in the order that is usual for text.
All draws of one generation come from one generator on the logits' device, so a seed gives the same result on the same kind
of device; the cost is that the draw cannot be split over processes.
"""

from __future__ import annotations

import torch

from megatron_nextflow.generate_config import GenerateConfig


def guided(conditional: torch.Tensor, unconditional: torch.Tensor, guidance: float, scale: int, scales: int) -> torch.Tensor:
    """(1 + t) · conditional − t · unconditional with t = guidance · (scale − 1)/(scales − 1), `scale` counted from 1.

    VAR's rising schedule: the first, coarse scale is drawn from the model as it is, the last with full guidance. With a
    single scale t is 0.
    """
    t = guidance * (scale - 1) / max(scales - 1, 1)
    return (1 + t) * conditional - t * unconditional


def filtered(logits: torch.Tensor, settings: GenerateConfig) -> torch.Tensor:
    """Logits [n, v] in float32 over the temperature, −∞ where top-k or top-p leaves an id out; at least one stays.

    Equal logits at the border of the set are told apart by their id, the lower one first.
    """
    logits = logits.float() / settings.temperature
    keep = min(settings.top_k or logits.size(-1), logits.size(-1))
    if keep == logits.size(-1) and settings.top_p >= 1:
        return logits
    ranked, order = logits.sort(dim=-1, descending=True, stable=True)
    ranked[..., keep:] = -torch.inf
    probability = ranked.softmax(-1)
    before = probability.cumsum(-1) - probability
    outside = before >= settings.top_p
    outside[..., 0] = False
    ranked = ranked.masked_fill(outside, -torch.inf)
    return torch.empty_like(ranked).scatter_(-1, order, ranked)


def draw(logits: torch.Tensor, settings: GenerateConfig, generator: torch.Generator) -> torch.Tensor:
    """One id of each row of `logits` [n, v], int64 [n]."""
    probability = filtered(logits, settings).softmax(-1)
    return torch.multinomial(probability, 1, generator=generator).squeeze(-1)
