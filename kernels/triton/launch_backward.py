"""Backward of `windowed_tonality` and `tonality_blend`: which kernels run for the gradients asked for, and what their
partial sums become.

Nothing is computed that nobody needs. Launches of our kernels (and one PyTorch sum for pointwise_weight):

    every gradient          prepare, recompute, norm, product, places, window, sums twice, dx        9
    weights frozen          prepare, recompute, norm, product, places, window, sums, dx              8
    start and ratio         prepare, recompute, norm, product, places, window, sums                  7
    strength alone          prepare, recompute, norm, places, window (no convolution), sums          6
    norm_weight alone       prepare, recompute, norm, sums                                           4
    norm_bias alone         prepare, window (its sums alone), sums                                   3

(`product` counts twice where dz and the weight's gradient are computed separately: sm_80 and float64.)

Scratch: z, du, dz and dy, each [B, P, C, W] in the compute dtype; 39.3 MB each at B = 32, P = 3, C = 128, W = 800 in
float32. z and du are stored as the tensor cores take them: half as large for a bfloat16 signal. Partial sums take
[programs, C, C] and less.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ..reference import compute_dtype
from .backward_chain import Chain, Normed, Windowed, make_chain
from .backward_sums import finish_weights, finish_windows
from .launch import TRITON_TYPE, Source, Weights, launch
from .launch_forward import resample_dx_of


class Needs(NamedTuple):
    """Which gradients are asked for."""

    dy: torch.dtype | None  # and in which dtype
    start: bool
    ratio: bool
    strength: bool
    depthwise_weight: bool
    depthwise_bias: bool
    pointwise_weight: bool
    pointwise_bias: bool
    norm_weight: bool
    norm_bias: bool


Grads = tuple[Tensor | None, ...]


def _empty(like: Tensor) -> Tensor:
    """A gradient: contiguous whatever `like` is, as `torch.compile` is told."""
    return torch.empty(like.shape, dtype=like.dtype, device=like.device)


def windowed_tonality_backward(
    grad_out: Tensor,
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
    eps: float,
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Gradients of the ten tensors after `grad_out` [B, P, C, W], None where `needs`, in the same order, is false."""
    weights = Weights(depthwise_weight, depthwise_bias, pointwise_weight, pointwise_bias, norm_weight, norm_bias)
    if grad_out.numel() == 0:
        inputs = (x, start, ratio, strength, *weights)
        return tuple(_empty(v).zero_() if need else None for v, need in zip(inputs, needs, strict=True))
    wanted = Needs(compute_dtype(x.dtype) if needs[0] else None, *needs[1:])
    dy, *rest = _backward(grad_out, Source.of_clips(x, start, ratio), strength, weights, eps, wanted)
    dx = None if dy is None else resample_dx_of(dy, x, start, ratio)
    return dx, *rest


def tonality_blend_backward(
    grad_out: Tensor,
    y: Tensor,
    strength: Tensor,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor,
    pointwise_weight: Tensor,
    pointwise_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Gradients of the eight tensors after `grad_out` [B, P, C, W], None where `needs`, in the same order, is false."""
    weights = Weights(depthwise_weight, depthwise_bias, pointwise_weight, pointwise_bias, norm_weight, norm_bias)
    if grad_out.numel() == 0:
        inputs = (y, strength, *weights)
        return tuple(_empty(v).zero_() if need else None for v, need in zip(inputs, needs, strict=True))
    wanted = Needs(y.dtype if needs[0] else None, False, False, *needs[1:])
    dy, _, _, *rest = _backward(grad_out, Source.of_windows(y), strength, weights, eps, wanted)
    return dy, *rest


def _backward(grad_out: Tensor, source: Source, strength: Tensor, weights: Weights, eps: float, needs: Needs) -> Grads:
    """Gradients of y, start, ratio, strength and the weights: the chain of the kernels, as far as `needs` goes."""
    chain = make_chain(grad_out, source, strength, weights, eps)
    place = needs.start or needs.ratio
    need_dz = needs.dy is not None or place or needs.depthwise_weight
    need_du = need_dz or needs.pointwise_weight
    need_bias = needs.depthwise_bias or needs.pointwise_bias or needs.pointwise_weight
    need_sums = needs.strength or needs.norm_bias
    normed, windowed, dz, dproduct = Normed(), Windowed(), None, None
    if need_du or need_bias or needs.strength or needs.norm_weight:
        z = chain.recompute()
        normed = chain.norm(z, du=need_du, bias=need_bias, norm=needs.norm_weight, heard=needs.strength)
        if normed.du is not None and need_du:
            dz, dproduct = chain.product(z, normed.du, dz=need_dz, weight=needs.pointwise_weight)
    if need_dz or need_sums:
        windowed = chain.window(
            dz,
            dy=needs.dy,
            place=place,
            taps=needs.depthwise_weight,
            blend=needs.strength,
            sums=need_sums,
        )
    by_window = _finish_windows(chain, normed, windowed, needs)
    return windowed.dy, *by_window, *_finish_weights(chain, normed, windowed, dproduct, weights, needs)


def _finish_windows(chain: Chain, normed: Normed, windowed: Windowed, needs: Needs) -> Grads:
    """Gradients of start, ratio and strength."""
    asked = (needs.start, needs.ratio, needs.strength)
    like = (chain.source.start, chain.source.ratio, chain.strength)
    grads = [_empty(v) if need else None for v, need in zip(like, asked, strict=True)]
    if windowed.scalars is not None:
        arguments = {
            "heard_ptr": chain.spare(normed.heard),
            "sums_ptr": chain.spare(windowed.sums),
            "scalars_ptr": windowed.scalars,
            "norm_bias_ptr": chain.prepared.norm_bias,
            "dstart_ptr": chain.spare(grads[0]),
            "dratio_ptr": chain.spare(grads[1]),
            "dstrength_ptr": chain.spare(grads[2]),
            "CHUNKS": windowed.scalars.shape[2],
            "NEED_START": needs.start,
            "NEED_RATIO": needs.ratio,
            "NEED_STRENGTH": needs.strength,
            **chain.sizes(),
        }
        config = chain.configuration("finish_windows")
        pairs = chain.strength.numel()
        launch(finish_windows, (pairs,), config, arguments, outputs=chain.grad_out.numel() // pairs)
    return tuple(grads)


def _finish_weights(
    chain: Chain, normed: Normed, windowed: Windowed, dproduct: Tensor | None, weights: Weights, needs: Needs
) -> Grads:
    """Gradients of the six weights."""
    asked = needs[4:]
    grads = [_empty(v) if need else None for v, need in zip(weights, asked, strict=True)]
    if any(asked):
        channels, _, taps = weights.depthwise_weight.shape
        config = chain.configuration("finish_weights")
        padded = triton.next_power_of_2(channels)
        partial = normed.dbias if normed.dnorm is None else normed.dnorm
        arguments = {
            "dproduct_ptr": chain.spare(dproduct),
            "dbias_ptr": chain.spare(normed.dbias),
            "dnorm_ptr": chain.spare(normed.dnorm),
            "taps_ptr": chain.spare(windowed.taps),
            "sums_ptr": chain.spare(windowed.sums),
            "strength_ptr": chain.strength,
            "pointwise_weight_ptr": weights.pointwise_weight.contiguous(),
            "depthwise_bias_ptr": weights.depthwise_bias.contiguous(),
            **{f"{name}_grad_ptr": chain.spare(grad) for name, grad in zip(Weights._fields, grads, strict=True)},
            "rows": 0 if partial is None else partial.shape[0],
            "windows": chain.strength.numel(),
            "C": channels,
            "K": taps,
            **{f"NEED_{name.upper()}": need for name, need in zip(Weights._fields, asked, strict=True)},
            "PADDED": padded,
            "COMPUTE": TRITON_TYPE[chain.compute],
        }
        programs = triton.cdiv(padded, config.constants["BLOCK_C"]) + 1 + taps
        share = max(1, chain.grad_out.numel() // programs)  # of the call's elements
        launch(finish_weights, (programs,), config, arguments, outputs=share)
    return tuple(grads)
