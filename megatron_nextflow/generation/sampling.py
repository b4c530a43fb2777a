"""From logits to ids: guidance, temperature, top-k, top-p, and one seeded draw.

The paper publishes no sampling settings; the rules are those of its relatives: guidance that rises over the scales as in VAR
(arXiv 2404.02905), which VAR-RL on NextFlow follows, then temperature, top-k and top-p in the order that is usual for text.
Each result draws from a generator of its own on the logits' device, so a seed gives the same result on the same kind of
device, whatever else is drawn beside it. The cost: results are drawn one after the other.
"""

from __future__ import annotations

import torch

from megatron_nextflow.config.generate import Sampling


def guided(conditional: torch.Tensor, unconditional: torch.Tensor, strength: float) -> torch.Tensor:
    """(1 + t) · conditional − t · unconditional, t = `strength` (VAR; see `GenerateConfig.strength` for its schedule)."""
    return (1 + strength) * conditional - strength * unconditional


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
