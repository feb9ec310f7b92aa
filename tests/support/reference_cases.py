"""Small arguments for the reference, its positions in rational arithmetic, its transform as PyTorch's modules."""

from __future__ import annotations

from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor


def column(*values: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """One clip, one window per value: `[1, P]`."""
    return torch.tensor([values], dtype=dtype)


def tonality_weights(channels: int, taps: int = 7, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """depthwise, pointwise and norm weights with their biases, in the order of the public functions."""
    shapes = ((channels, 1, taps), (channels,), (channels, channels, 1), (channels,), (channels,), (channels,))
    return [torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes]


def exact_position(start: float, ratio: float, t: int, window: int, frames: int) -> Fraction:
    """p(t) of the convention, in rational arithmetic."""
    s, r = Fraction(start), Fraction(ratio)
    u = min(max((t + Fraction(1, 2)) * r - Fraction(1, 2), Fraction(0)), max(r * window - 1, Fraction(0)))
    return min(max(s + u, Fraction(0)), Fraction(frames - 1))


def plain_modules(y: Tensor, strength: Tensor, *weights: Tensor) -> Tensor:
    """The transform as nn.Conv1d, nn.Conv1d and nn.LayerNorm compute it."""
    dw, db, pw, pb, gamma, beta = weights
    z = F.conv1d(y.flatten(0, 1), dw, db, padding=dw.shape[-1] // 2, groups=dw.shape[0])
    u = F.conv1d(z, pw, pb).transpose(1, 2)
    v = F.layer_norm(u, gamma.shape, gamma, beta).transpose(1, 2).view(y.shape)
    s = strength[:, :, None, None]
    return (1 - s) * y + s * v
