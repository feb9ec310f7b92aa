"""Scale space: signals blurred in time, from coarse to fine.

The gradient of a fractional start sees one frame to each side. Where both signals are blurred by σ frames first, it
sees about σ; a search (or a training run) that begins with a large σ and lets it fall to 0 finds windows that are far
away. Source of the idea: A. P. Witkin, "Scale-space filtering", IJCAI 1983.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from adaptive_window.kernels.reference import compute_dtype
from adaptive_window.kernels.validation import FLOATS

from .checks import check_count

LEAST_SIGMA = 0.05  # frames; exp(-1/(2·0.05²)) = 1e-87: below it a blur changes nothing, in float64 either


def annealed_sigma(level: int, levels: int, sigma: float = 64.0) -> float:
    """Blur of one level of a coarse-to-fine schedule, in frames: sigma·(1 − level/(levels − 1))².

    Level 0 has `sigma` frames, the last exactly 0. A schedule of a single level has 0. For a training run, steps are
    levels.

    Args:
        level: 0 to levels − 1.
        levels: how many there are, ≥ 1.
        sigma: blur of the first level in frames, ≥ 0.
    """
    check_count("levels", levels)
    check_count("level", level, least=0)
    if level >= levels:
        raise ValueError(f"level must be below levels ({levels}), got {level}")
    check_sigma(sigma)
    return sigma * (1 - level / (levels - 1)) ** 2 if levels > 1 else 0.0


def check_sigma(sigma: object, name: str = "sigma") -> None:
    """A finite number of frames, ≥ 0."""
    if isinstance(sigma, bool) or not isinstance(sigma, int | float):
        raise TypeError(f"{name} must be a number of frames, got {type(sigma).__name__}")
    if not 0 <= sigma < float("inf"):
        raise ValueError(f"{name} must be finite and at least 0 frames, got {sigma}")


def gaussian_blur(x: Tensor, sigma: float | Tensor) -> Tensor:
    """Blurs a signal along time by a Gaussian of `sigma` frames, renormalized at the edges.

        y[t] = Σ_s g(t − s)·x[s] / Σ_s g(t − s),    g(d) = exp(−d² / 2σ²),    s = 0 ... T − 1

    A constant stays constant, up to the edges. The sum is computed by FFT, over the whole clip.

    Args:
        x: `[..., T]`, floating, T ≥ 1. 16-bit signals are computed in float32.
        sigma: frames, ≥ 0: a number, a 0-dim tensor, or `[B]` with B = x.shape[0] (one blur per sample). The values of
            a tensor are not checked, which would wait for the device: below 0.05 (and below 0) they blur nothing.

    Returns:
        `[..., T]`, dtype of x; x itself for a number below 0.05. Differentiable in x and, where it is a tensor, in
        sigma.

    Raises:
        TypeError, ValueError: naming the argument, for x that is no floating tensor or has no frames, and for a number
            that is negative or not finite, or a tensor of another shape, integer dtype or device.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a torch.Tensor of shape [..., T], got {type(x).__name__}")
    if x.dtype not in FLOATS:
        raise TypeError(f"x must have a floating dtype, got {x.dtype}")
    if x.dim() < 1 or x.shape[-1] < 1:
        raise ValueError(f"x must have shape [..., T] with T >= 1, got {list(x.shape)}")
    dtype, frames = compute_dtype(x.dtype), x.shape[-1]
    if isinstance(sigma, Tensor):
        width = _checked_widths(x, sigma)
    else:
        check_sigma(sigma)
        if sigma < LEAST_SIGMA:
            return x
        width = torch.tensor(float(sigma), dtype=dtype, device=x.device)

    size = _fast_length(2 * frames - 1)
    lag = torch.arange(size, dtype=dtype, device=x.device)
    lag = torch.minimum(lag, size - lag)  # circular: frames −1, −2, ... stand at the end
    inside = (lag < frames).to(dtype)  # no lag that the sum does not have, whatever the padding
    g = (
        torch.exp(-0.5 * (lag / width.to(dtype).clamp(min=LEAST_SIGMA)[..., None]).square()) * inside
    )  # [size], [B, size]
    response = torch.fft.rfft(g)
    total = _convolved(torch.ones(frames, dtype=dtype, device=x.device), response, size)  # [T] or [B, T]
    if width.dim():
        between = (1,) * (x.dim() - 2)
        response = response.view(-1, *between, response.shape[-1])
        total = total.view(-1, *between, frames)
    return (_convolved(x.to(dtype), response, size) / total).to(x.dtype)


def _checked_widths(x: Tensor, sigma: Tensor) -> Tensor:
    if sigma.dtype not in FLOATS:
        raise TypeError(f"sigma must be a number or a floating tensor, got dtype {sigma.dtype}")
    if sigma.dim() and (x.dim() < 2 or tuple(sigma.shape) != (x.shape[0],)):
        raise ValueError(
            f"sigma must be a number, a 0-dim tensor or [B] with B = x.shape[0], got {list(sigma.shape)} for x of "
            f"shape {list(x.shape)}"
        )
    if sigma.device != x.device:
        raise ValueError(f"sigma must be on the device of x ({x.device}), got {sigma.device}")
    return sigma


def _convolved(x: Tensor, response: Tensor, size: int) -> Tensor:
    return torch.fft.irfft(torch.fft.rfft(x, size) * response, size)[..., : x.shape[-1]]


def _fast_length(least: int) -> int:
    """The smallest of 2^k, 3·2^k, 5·2^k and 15·2^k that is even and at least `least`: FFTs of it are fast."""
    return min(base << max(1, math.ceil(math.log2(least / base))) for base in (1, 3, 5, 15))
