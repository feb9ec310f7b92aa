"""The public functions: documentation, convention, validation and the choice of backend."""

from __future__ import annotations

import torch
from torch import Tensor

from . import ops, reference
from .validation import check_backend, check_source, check_tonality, check_windows
from .weights import Weights


def _autocast(keep: tuple[Tensor, ...], cast: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Under autocast, `cast` in its dtype as any convolution's inputs; `keep` (start, ratio) at least float32.

    float64 is left alone, as PyTorch's own autocast leaves it.
    """
    device = cast[0].device.type if isinstance(cast[0], Tensor) else "cpu"
    if not reference.autocast_available(device) or not torch.is_autocast_enabled(device):
        return (*keep, *cast)
    dtype = torch.get_autocast_dtype(device)

    def to(value: Tensor, wanted: torch.dtype) -> Tensor:
        ours = isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64
        return value.to(wanted) if ours else value

    return (*(to(v, torch.float32) for v in keep), *(to(v, dtype) for v in cast))


def resample_windows(x: Tensor, start: Tensor, ratio: Tensor, window: int, *, backend: str = "auto") -> Tensor:
    """Cut P windows out of every clip at fractional places and resample each to `window` frames.

    Args:
        x: clips, `[B, C, T]`, T ≥ 1; float64, float32, bfloat16 or float16; any strides.
        start: where each window begins, in frames (fractions allowed), `[B, P]`.
        ratio: how much each window is compressed in time, > 0, `[B, P]`: a window of ratio r covers r·W frames of x.
        window: W, the frames of each output, ≥ 1.
        backend: `"triton"` (CUDA), `"native"` (compiled C, CPU), `"reference"` (PyTorch, anywhere), or `"auto"`: the
            fastest of these that can take the call.

    Returns:
        `[B, P, C, W]`, dtype of x, contiguous.

    Convention
    ----------
    Frame centres lie at integers. Output frame t of a window reads the source at

        u(t) = clamp((t + 1/2)·r − 1/2, 0, max(r·W − 1, 0))
        p(t) = clamp(start + u(t), 0, T − 1)
        y[c, t] = (1 − f)·x[c, i] + f·x[c, i + 1],   i = floor(p), f = p − i   (i + 1 limited to T − 1)

    which, for whole `start` and r·W inside the clip, is `F.interpolate(x[..., start:start + r·W], size=W,
    mode="linear", align_corners=False)` (the sampling rule of PyTorch's `upsample_linear1d`).

    Gradients are exact for x, and for start and ratio wherever p is not clamped: dy/dp = x[i + 1] − x[i] (right-hand at
    whole p), ∂p/∂start = 1, ∂p/∂ratio = t + 1/2; `reference.window_positions` states the clamped cases.
    start and ratio are never computed in 16 bits: with a 16-bit x they may be float32 or wider. A NaN start or ratio
    gives NaN in that window alone, and as the gradient of that start and ratio; infinite and absurd values clamp;
    nothing outside x is ever read.

    Raises:
        TypeError: an argument is no tensor, not dense, not floating, or of another dtype than x.
        ValueError: a wrong rank, shape, device or backend name; an empty clip; `window` < 1; for the Triton backend,
            more than 1024 channels, or 2²⁴ frames and more.
        RuntimeError: `backend="triton"` or `"native"` was asked for where it cannot run; the message says why. Or a
            tensor has no memory for its elements: its storage was freed or resized.
    """
    start, ratio, x = _autocast((start, ratio), (x,))
    tensors, numbers = (x, start, ratio), (window,)
    calls = ops.known(ops.RESAMPLE_WINDOWS, tensors, numbers, backend)
    if calls is not None:
        return ops.again(calls, tensors)
    check_source(x, start, ratio, window)
    check_backend(backend)
    return ops.run(ops.RESAMPLE_WINDOWS, tensors, numbers, backend)


def tonality_blend(
    y: Tensor,
    strength: Tensor,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor,
    pointwise_weight: Tensor,
    pointwise_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    *,
    eps: float = 1e-5,
    restore: str = "none",
    backend: str = "auto",
) -> Tensor:
    """Depthwise-separable convolution and LayerNorm over channels, blended into the signal by `strength`.

        z = depthwise convolution of y (K taps, zero padding at the window's edges) + depthwise_bias
        u = pointwise_weight · z + pointwise_bias
        n = (u − mean_c u) / sqrt(var_c u + eps)        over the channels of each frame, variances without Bessel's 1
        v = n · norm_weight + norm_bias
        out = (1 − strength)·y + strength·v

    With `restore="frame"` each frame gets back what the normalization takes from it, its loudness with it:

        v = mean_c y + sqrt(var_c y + eps)·n · norm_weight + norm_bias

    With convolutions that change nothing, norm_weight 1 and norm_bias 0, u is y, sqrt(var_c y + eps)·n is y − mean_c y,
    and out is y itself, to rounding, whatever the strength. Gradients go through mean and spread: with g that of out,
    m = mean_c y and σ = sqrt(var_c y + eps), v brings to y's, beside what goes through n and the convolutions,

        strength·(mean_c g + (y − m)/σ · mean_c (g·norm_weight·n))

    since ∂m/∂y_c = 1/C and ∂σ/∂y_c = (y_c − m)/(C·σ); through n it is as without, times σ.

    Args:
        y: windows, `[B, P, C, W]`, floating, any strides.
        strength: how much of the transform is heard, 0 to 1, `[B, P]`.
        depthwise_weight: `[C, 1, K]`, K odd; depthwise_bias: `[C]`.
        pointwise_weight: `[C, C, 1]`; pointwise_bias: `[C]`.
        norm_weight, norm_bias: `[C]`.
        eps: added to each variance, > 0.
        restore: `"none"`, as the original; or `"frame"`, each frame's own mean and spread over channels.
        backend: as `resample_windows`; `"native"` takes K ≤ 31.

    Returns:
        `[B, P, C, W]`, dtype of y, contiguous. Differentiable in every tensor. Accumulates in float32 for 16-bit
        inputs and rounds once.

    Raises:
        TypeError, ValueError, RuntimeError: as `resample_windows`; an even K or an unknown `restore` is a ValueError.
    """
    given = (depthwise_weight, depthwise_bias, pointwise_weight, pointwise_bias, norm_weight, norm_bias)
    tensors, numbers = _autocast((), (y, strength, *given)), (eps, restore)
    calls = ops.known(ops.TONALITY_BLEND, tensors, numbers, backend)
    if calls is not None:
        return ops.again(calls, tensors)
    y, strength, *cast = tensors
    check_windows(y)
    check_tonality("y", y, y.shape[1], strength, Weights(*cast)._asdict(), eps, restore)
    check_backend(backend)
    return ops.run(ops.TONALITY_BLEND, tensors, numbers, backend)


def windowed_tonality(
    x: Tensor,
    start: Tensor,
    ratio: Tensor,
    strength: Tensor,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor,
    pointwise_weight: Tensor,
    pointwise_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    window: int,
    *,
    eps: float = 1e-5,
    restore: str = "none",
    backend: str = "auto",
) -> Tensor:
    """`tonality_blend(resample_windows(x, start, ratio, window), strength, ...)` in one call, `restore` included.

    Arguments, convention and errors are those of the two functions; the Triton backend fuses them, never writes the
    resampled windows to memory, and keeps only the inputs for the backward pass.

    Returns:
        `[B, P, C, W]`, dtype of x, contiguous.
    """
    given = (depthwise_weight, depthwise_bias, pointwise_weight, pointwise_bias, norm_weight, norm_bias)
    start, ratio, x, *rest = _autocast((start, ratio), (x, strength, *given))
    tensors, numbers = (x, start, ratio, *rest), (window, eps, restore)
    calls = ops.known(ops.WINDOWED_TONALITY, tensors, numbers, backend)
    if calls is not None:
        return ops.again(calls, tensors)
    check_source(x, start, ratio, window)
    check_tonality("x", x, start.shape[1], rest[0], Weights(*rest[1:])._asdict(), eps, restore)
    check_backend(backend)
    return ops.run(ops.WINDOWED_TONALITY, tensors, numbers, backend)
