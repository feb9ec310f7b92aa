"""What the losses share: never 16-bit, one correlation, finite gradients at silence."""

from __future__ import annotations

from torch import Tensor

from adaptive_window.kernels.reference import compute_dtype

VARIANCE_FLOOR = 1e-8  # added to variances under a correlation: a constant signal correlates with nothing


def wide(x: Tensor) -> Tensor:
    """Float32 for 16-bit and 32-bit signals, float64 for float64."""
    return x.to(compute_dtype(x.dtype))


def same_shape(**named: Tensor) -> None:
    (first, a), (second, b) = named.items()
    if a.shape != b.shape:
        raise ValueError(f"{second} must have the shape of {first} ({list(a.shape)}), got {list(b.shape)}")


def centred(x: Tensor) -> Tensor:
    """About its mean over the last dimension."""
    return x - x.mean(-1, keepdim=True)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Correlation over the last dimension of signals that are centred already; 0 where one is silent."""
    power = (a.square().mean(-1) + VARIANCE_FLOOR) * (b.square().mean(-1) + VARIANCE_FLOOR)
    return (a * b).mean(-1) * power.rsqrt()


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Pearson correlation over the last dimension, in [−1, 1]; 0 where a signal is constant."""
    return cosine(centred(a), centred(b))
