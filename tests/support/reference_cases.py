"""Small arguments for the reference, its positions in rational arithmetic, its transform as PyTorch's modules."""

from __future__ import annotations

from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor

from adaptive_window.kernels import tonality_blend


def column(*values: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """One clip, one window per value: `[1, P]`."""
    return torch.tensor([values], dtype=dtype)


def tonality_weights(channels: int, taps: int = 7, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """depthwise, pointwise and norm weights with their biases, in the order of the public functions."""
    shapes = ((channels, 1, taps), (channels,), (channels, channels, 1), (channels,), (channels,), (channels,))
    return [torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes]


def identity_weights(channels: int, taps: int = 7) -> list[Tensor]:
    """Those that a new transform has: convolutions that change nothing, a norm that neither scales nor shifts."""
    weights = [torch.zeros_like(weight) for weight in tonality_weights(channels, taps, torch.float32)]
    weights[0][:, 0, taps // 2], weights[2][:, :, 0], weights[4][:] = 1.0, torch.eye(channels), 1.0
    return weights


def assert_unchanged(backend: str, strength: float, channels: int, device: torch.device) -> None:
    """A new transform that restores gives y, to the rounding of mean, difference, norm, spread and blend."""
    y = 3 * torch.randn(2, 3, channels, 9) + torch.linspace(-20, 20, 9)
    values = [v.to(device) for v in (y, torch.full((2, 3), strength), *identity_weights(channels))]
    got = tonality_blend(*values, restore="frame", backend=backend)
    rounding = 8 * torch.finfo(torch.float32).eps * float(y.abs().max())
    assert float((got - values[0]).abs().max()) <= rounding
    if strength:  # as it does not without
        assert float((tonality_blend(*values, backend=backend) - values[0]).abs().max()) > 1e3 * rounding


def exact_position(start: float, ratio: float, t: int, window: int, frames: int) -> Fraction:
    """p(t) of the convention, in rational arithmetic."""
    s, r = Fraction(start), Fraction(ratio)
    u = min(max((t + Fraction(1, 2)) * r - Fraction(1, 2), Fraction(0)), max(r * window - 1, Fraction(0)))
    return min(max(s + u, Fraction(0)), Fraction(frames - 1))


def plain_modules(y: Tensor, strength: Tensor, *weights: Tensor, restore: str = "none") -> Tensor:
    """The transform as nn.Conv1d, nn.Conv1d and nn.LayerNorm compute it; restored, with PyTorch's mean and variance."""
    dw, db, pw, pb, gamma, beta = weights
    z = F.conv1d(y.flatten(0, 1), dw, db, padding=dw.shape[-1] // 2, groups=dw.shape[0])
    u = F.conv1d(z, pw, pb).transpose(1, 2)
    v = F.layer_norm(u, gamma.shape, gamma, beta).transpose(1, 2).view(y.shape)
    if restore == "frame":
        spread = (y.var(2, correction=0, keepdim=True) + 1e-5).sqrt()
        v = F.layer_norm(u, gamma.shape, gamma).transpose(1, 2).view(y.shape) * spread + y.mean(2, keepdim=True)
        v = v + beta[:, None]
    s = strength[:, :, None, None]
    return (1 - s) * y + s * v
