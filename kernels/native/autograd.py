"""Gradient rules of the compiled CPU kernels.

Saved for backward: the inputs, x in rows, and the pointwise product of the blend. Every gradient of the blend is
computed whoever asks, but those of x and the positions only when asked for. There is no second derivative.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..validation import NO_SECOND_DERIVATIVE
from . import launch

Gradients = tuple[Tensor | None, ...]


def _plain(value: Tensor) -> Tensor:
    """Its numbers in memory that C can read."""
    return value.resolve_neg().contiguous()


class _Final(torch.autograd.Function):
    """`compute(*tensors)`, whose derivative raises instead of being zero."""

    @staticmethod
    def forward(ctx: Any, compute: Callable[..., Gradients], *tensors: Tensor) -> Gradients:
        return compute(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Gradients:
        raise NotImplementedError(NO_SECOND_DERIVATIVE.format("compiled CPU"))


def _prepared(weights: tuple[Tensor, ...]) -> launch.Weights:
    dw, db, pw, pb, gamma, beta = map(_plain, weights)
    mix = pw[:, :, 0]
    return launch.Weights(dw[:, 0].t().contiguous(), mix, torch.addmv(pb, mix, db), gamma, beta)


def _weight_gradients(d: launch.Weights, mix: Tensor, depthwise_bias: Tensor) -> tuple[Tensor, ...]:
    """Of the six weights; the bias of `launch.Weights` is pb + mix·db."""
    dmix = torch.addr(d.mix, d.bias, depthwise_bias)
    return d.taps.t()[:, None].contiguous(), mix.t() @ d.bias, dmix[:, :, None], d.bias, d.gamma, d.beta


class _Resample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, positions: Tensor) -> Tensor:
        clips = launch.Clips.at(_plain(x), _plain(positions))
        ctx.save_for_backward(x, positions, *clips[:3])
        return launch.resample(clips).unflatten(0, positions.shape[:2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        def compute(
            grad: Tensor, x: Tensor, positions: Tensor, rows: Tensor, left: Tensor, fraction: Tensor
        ) -> Gradients:
            clips = launch.Clips(rows, left, fraction, positions.shape[1])
            into = clips.buffers(*ctx.needs_input_grad)
            launch.resample_backward(_plain(grad.flatten(0, 1)), clips, into)
            return _of_clips(into, positions)

        return _Final.apply(compute, grad, *ctx.saved_tensors)


class _Blend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, eps: float, keep: bool, y: Tensor, strength: Tensor, *weights: Tensor) -> Tensor:
        batch, pairs, channels, window = y.shape
        windows = launch.Windows(_plain(y.flatten(0, 1)))
        shape = batch * pairs, channels, window
        with reference.without_autocast("cpu"):
            out, *kept = launch.blend(windows, shape, _plain(strength.flatten()), _prepared(weights), eps, keep)
        if keep:
            ctx.save_for_backward(y, strength, *weights, *kept)
        return out.view(y.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        def compute(grad: Tensor, y: Tensor, *rest: Tensor) -> Gradients:
            windows = launch.Windows(_plain(y.flatten(0, 1)))
            into = windows.buffers(ctx.needs_input_grad[2])
            others = _blend_gradients(grad, windows, into, *rest)
            return None if into[0] is None else into[0].view(y.shape), *others

        return None, None, *_Final.apply(compute, grad, *ctx.saved_tensors)


class _Windowed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, eps: float, keep: bool, x: Tensor, positions: Tensor, strength: Tensor, *weights: Tensor
    ) -> Tensor:
        (batch, pairs, window), channels = positions.shape, x.shape[1]
        clips = launch.Clips.at(_plain(x), _plain(positions))
        shape = batch * pairs, channels, window
        with reference.without_autocast("cpu"):
            out, *kept = launch.blend(clips, shape, _plain(strength.flatten()), _prepared(weights), eps, keep)
        if keep:
            ctx.save_for_backward(x, positions, *clips[:3], strength, *weights, *kept)
        return out.view(batch, pairs, channels, window)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        def compute(
            grad: Tensor, x: Tensor, positions: Tensor, rows: Tensor, left: Tensor, fraction: Tensor, *rest: Tensor
        ) -> Gradients:
            clips = launch.Clips(rows, left, fraction, positions.shape[1])
            into = clips.buffers(*ctx.needs_input_grad[2:4])
            others = _blend_gradients(grad, clips, into, *rest)
            return *_of_clips(into, positions), *others

        return None, None, *_Final.apply(compute, grad, *ctx.saved_tensors)


def _of_clips(into: launch.Buffers, positions: Tensor) -> Gradients:
    """Gradients of x and positions from the buffers of `launch.Clips`."""
    dclips, dplace = into
    return (
        None if dclips is None else launch.turned(dclips),
        None if dplace is None else dplace.to(positions.dtype).view_as(positions),
    )


def _blend_gradients(
    grad: Tensor, source: launch.Source, into: launch.Buffers, strength: Tensor, *saved: Tensor
) -> tuple[Tensor, ...]:
    """Of strength and the six weights. saved: the weights, then what `launch.blend` kept."""
    *weights, u, moments = saved
    with reference.without_autocast("cpu"):  # backward may run beneath one too
        prepared = _prepared(tuple(weights))
        shares, grad_out = _plain(strength.flatten()), _plain(grad.flatten(0, 1))
        dstrength, d = launch.blend_backward(grad_out, source, into, shares, prepared, u, moments)
        return dstrength.view(strength.shape), *_weight_gradients(d, prepared.mix, weights[1])


def resample_windows(x: Tensor, start: Tensor, ratio: Tensor, window: int) -> Tensor:
    positions = reference.window_positions(start.double(), ratio.double(), window, x.shape[2])
    wide = x.to(reference.compute_dtype(x.dtype))
    return _Resample.apply(wide, positions).to(x.dtype)


def tonality_blend(y: Tensor, strength: Tensor, weights: tuple[Tensor, ...], eps: float) -> Tensor:
    wide = [v.to(reference.compute_dtype(y.dtype)) for v in (y, strength, *weights)]
    return _Blend.apply(eps, _recorded(*wide), *wide).to(y.dtype)


def windowed_tonality(
    x: Tensor, start: Tensor, ratio: Tensor, strength: Tensor, weights: tuple[Tensor, ...], window: int, eps: float
) -> Tensor:
    positions = reference.window_positions(start.double(), ratio.double(), window, x.shape[2])
    wide, *others = (v.to(reference.compute_dtype(x.dtype)) for v in (x, strength, *weights))
    keep = _recorded(wide, positions, *others)
    return _Windowed.apply(eps, keep, wide, positions, *others).to(x.dtype)


def _recorded(*tensors: Tensor) -> bool:
    """Whether a backward pass may follow: inside a Function's forward, grad mode is off."""
    return torch.is_grad_enabled() and any(v.requires_grad for v in tensors)
