"""Multi-scale 3-D RoPE: rotary angles from three real-valued coordinates a slot.

NextFlow (arXiv 2601.02204, equation 1) gives a slot the coordinates (scale or time, row, column); text has the same number
three times, and for it the formula is plain RoPE. The rotary frequencies are shared out among the coordinates as Qwen2.5-VL
does it (`mrope_section`), because the language model starts from its weights; which section carries which coordinate is not
published: scale, row, column in that order is our choice, since Qwen2.5-VL has time, height, width there.

Unlike Megatron's own class this one keeps no buffer, so casting the model to bfloat16 cannot round the frequencies. The
cost: the few frequencies are computed anew at each pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


class MultiScaleRotary(torch.nn.Module):
    """Called with positions alone, or as `GPTModel.rotary_pos_emb` where `position_embedding_type="mrope"`.

    `head_dim`: channels of one attention head, all of them rotated. `theta`: RoPE's base (Qwen2.5-VL: 1e6). `sections`:
    how many of the head_dim/2 frequencies go to scale, row and column. Raises ValueError where these do not fit together.
    """

    def __init__(self, head_dim: int, theta: float, sections: Sequence[int]) -> None:
        super().__init__()
        if head_dim % 2:
            raise ValueError(f"RoPE rotates pairs of channels: head_dim must be even, not {head_dim}")
        self.head_dim = head_dim
        self.theta = theta
        self.sections = self._checked(sections)

    def _checked(self, sections: Sequence[int]) -> tuple[int, ...]:
        if len(sections) != 3 or min(sections) < 0 or sum(sections) != self.head_dim // 2:
            raise ValueError(f"the sections must be three counts that sum to {self.head_dim // 2}, not {list(sections)}")
        return tuple(sections)

    def forward(
        self,
        position_ids: torch.Tensor,
        mrope_section: Sequence[int] | None = None,
        cp_group: torch.distributed.ProcessGroup | None = None,
    ) -> torch.Tensor:
        """Angles [s, b, 1, head_dim] float32, the two halves equal, from positions [3, b, s] of any dtype.

        Frequency c turns by positions[a(c)] · theta^(−2c/head_dim), where the first section's frequencies have a = 0, the
        second's a = 1, the third's a = 2. `mrope_section` is GPTModel's word for `sections` and overrides them.
        """
        sections = self.sections if mrope_section is None else self._checked(mrope_section)
        pairs = self.head_dim // 2
        device = position_ids.device
        frequency = self.theta ** (-torch.arange(pairs, dtype=torch.float32, device=device) / pairs)
        axis = torch.arange(3, device=device).repeat_interleave(torch.tensor(sections, device=device), output_size=pairs)
        angles = position_ids.float().index_select(0, axis).permute(2, 1, 0) * frequency
        angles = torch.cat((angles, angles), dim=-1).unsqueeze(2)
        if cp_group is not None and cp_group.size() > 1:
            from megatron.core.models.common.embeddings.rope_utils import get_pos_emb_on_this_cp_rank

            angles = get_pos_emb_on_this_cp_rank(angles, 0, cp_group)
        return angles
