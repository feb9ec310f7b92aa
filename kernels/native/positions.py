"""How the places of frames move with start and ratio: autograd of `reference.window_positions`, written out."""

from __future__ import annotations

import torch
from torch import Tensor

from ..reference import RATIO_LIMIT, START_LIMIT


def place_slopes(start: Tensor, ratio: Tensor, window: int, frames: int) -> tuple[Tensor, Tensor]:
    """(∂p/∂start, ∂p/∂ratio) `[..., W]` of `start`, `ratio` `[...]` in float64: right-hand derivatives.

    ∂p/∂start = [0 ≤ start + u < frames − 1]; ∂p/∂ratio is that times 0 (v < 0), W (v beyond the last frame of the
    window; 0 if ratio·W < 1) or t + 1/2. NaN where start or ratio is; 0 along one that is held at its limit.
    """
    start, ratio = start[..., None], ratio[..., None]
    place = start.clamp(-START_LIMIT, START_LIMIT)
    pace = ratio.clamp(-RATIO_LIMIT, RATIO_LIMIT)
    middle = torch.arange(window, dtype=start.dtype) + 0.5
    v = middle * pace - 0.5
    length = pace * window
    last = torch.where(length >= 1, length - 1, 0.0)
    u = torch.where(v < 0, 0.0, torch.where(v > last, last, v))
    inside = ((place + u >= 0) & (place + u < frames - 1)).to(start.dtype)
    tail = torch.where(length >= 1, float(window), 0.0)
    along_ratio = inside * torch.where(v < 0, 0.0, torch.where(v > last, tail, middle))
    poison = torch.where(start.isnan() | ratio.isnan(), torch.nan, 0.0)
    by_start = torch.where(start.abs() > START_LIMIT, 0.0, inside)
    by_ratio = torch.where(ratio.abs() > RATIO_LIMIT, 0.0, along_ratio)
    return by_start + poison, by_ratio + poison
