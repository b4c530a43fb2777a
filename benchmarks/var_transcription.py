"""VAR's multi-scale quantisation as published (arXiv 2404.02905, algorithm 1), for two branches of unit length.

What its authors release does the same with z-normalised codes: at each scale of a Python loop the whole matrix of
similarities and its argmax. The two branches are joined to one product, which is more than fair to it: TokenFlow's code
makes one matrix of squared distances a branch and adds them. VAR's convolution after upsampling is left out, as TokenFlow
does. It takes the argmax of a product and not the argmin of |z|² + |e|² − 2ze: the two are the same but for float32's last
bit, which decides near ties.
"""

from __future__ import annotations

import torch
from nextflow_tokenize.schedule import Grid
from nextflow_tokenize.vision.codes.quantizer import MultiScaleQuantizer
from torch import Tensor
from torch.nn import functional as F


@torch.no_grad()
def transcribed(quantizer: MultiScaleQuantizer, features: Tensor, grids: tuple[Grid, ...]) -> Tensor:
    """Codes int64 [B, Σhw] of `features` [B, C, H, W], with the codes and weights of `quantizer`."""
    batch, width = features.shape[:2]
    book = torch.cat([quantizer.semantic, quantizer.pixel], dim=1)
    residual = features.clone()
    codes = []
    for h, w in grids:
        last = (h, w) == grids[-1]
        pooled = residual if last else F.interpolate(residual, size=(h, w), mode="area")
        semantic, pixel = pooled.permute(0, 2, 3, 1).reshape(-1, width).split(quantizer.dims, dim=1)
        rows = torch.cat([F.normalize(semantic, dim=-1), quantizer.w_dis * F.normalize(pixel, dim=-1)], dim=1)
        chosen = torch.argmax(rows @ book.t(), dim=1)
        update = book[chosen].view(batch, h, w, width).permute(0, 3, 1, 2)
        residual -= update if last else F.interpolate(update, size=grids[-1], mode="bicubic")
        codes.append(chosen.view(batch, h * w))
    return torch.cat(codes, dim=1)
