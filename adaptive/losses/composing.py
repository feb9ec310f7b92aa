"""One song's harmony in another's rhythm: what a pattern that is asked for both should look like.

    slow(x)      average over about half a second
    fast(x)      x − slow(x), averaged over groups of neighbouring bands: hits of drums and attacks, without pitch
    regrooved    slow(harmony) + fast(rhythm)

of log-mel windows. Where both are one song it is that song's window itself.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .signals import same_shape, wide

GROUPS = 8  # of neighbouring bands: low drums stay low, cymbals high
SLOW_SECONDS = 0.5
SPREAD_FLOOR = 0.05  # latents have about unit spread


def spread_matching(a: Tensor, b: Tensor) -> Tensor:
    """|log of a's spread over time over b's|, of each band, the mean over bands and windows: 0 where both move as much.

    A distance alone is least for a pattern that moves too little: where it is unsure, the mean is the safest guess.
    """
    same_shape(a=a, b=b)
    spreads = [(wide(x).var(-1, correction=0) + SPREAD_FLOOR**2).log() for x in (a, b)]
    return 0.5 * (spreads[0] - spreads[1]).abs().mean()


def odd_frames(seconds: float, frame_rate: float) -> int:
    """The odd number of frames nearest below or at `seconds`, at least 1."""
    return max(1, (int(seconds * frame_rate) + 1) // 2 * 2 - 1)


def slow(x: Tensor, width: int) -> Tensor:
    """`[..., C, W]` averaged over `width` frames (odd); at the ends over those there are."""
    flat = wide(x).reshape(1, -1, x.shape[-1])
    return F.avg_pool1d(flat, width, 1, width // 2, count_include_pad=False).reshape(x.shape)


def regrooved(harmony: Tensor, rhythm: Tensor, width: int) -> Tensor:
    """The slow part of one window and the fast part of another.

    Args:
        harmony, rhythm: log-mel windows of one shape `[..., C, W]`.
        width: frames of the average that parts slow from fast, odd (`odd_frames`).
    """
    same_shape(harmony=harmony, rhythm=rhythm)
    fast = wide(rhythm) - slow(rhythm, width)
    bands = fast.shape[-2]
    size = max(1, bands // GROUPS)
    groups = F.avg_pool1d(fast.transpose(-1, -2).reshape(1, -1, bands), size, ceil_mode=True)  # [1, ...·W, groups]
    spread = groups.repeat_interleave(size, 2)[..., :bands]
    return slow(harmony, width) + spread.reshape(*fast.shape[:-2], fast.shape[-1], bands).transpose(-1, -2)
