"""AdamW where Transformer Engine is missing, with the state layout of its FusedAdam.

Megatron's distributed optimizer can reload a checkpoint only where the step count lies in the parameter group.
torch.optim.AdamW keeps one a parameter: it fails at the first step where its moments were made before, and on reload either
fails or shares a single step tensor among all of them and silently changes the loss. So the count is kept where FusedAdam
keeps it, and checkpoints of all trainings have one layout. The arithmetic is torch's own fused kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim.adam import adam


class GroupStepAdam(torch.optim.Optimizer):
    """Adam (Kingma and Ba, 2015) with decoupled weight decay (Loshchilov and Hutter, 2019) unless `adam_w_mode` is False."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        adam_w_mode: bool = True,
        **_: Any,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.adam_w_mode = adam_w_mode

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient; `closure` is not supported and must be None."""
        if closure is not None:
            raise ValueError("GroupStepAdam takes no closure")
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            for p in params:
                if not self.state[p]:
                    self.state[p].update(exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
            adam(
                params,
                [p.grad for p in params],
                [self.state[p]["exp_avg"] for p in params],
                [self.state[p]["exp_avg_sq"] for p in params],
                [],
                list(torch.full((len(params),), float(group["step"] - 1), device=params[0].device).unbind()),
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
                fused=True,
                decoupled_weight_decay=self.adam_w_mode,
            )
