"""Backward of `windowed_tonality` and `tonality_blend`: which kernels run for the gradients asked for, and what their
partial sums become.

Nothing is computed that nobody needs. Launches of our kernels, beside the sums of partials:

    every gradient          prepare, recompute, norm, product, places, window, dx        7
    weights frozen          the same, without their sums                                 7
    start and ratio         prepare, recompute, norm, product, places, window            6
    strength alone          prepare, recompute, norm, places, window (no convolution)    5
    norm_weight alone       prepare, recompute, norm                                     3
    norm_bias alone         prepare, window (sums alone)                                 2

(`product` counts twice where dz and the weight's gradient are computed separately: sm_80 and float64.)

Scratch: z, du, dz and dy, each [B, P, C, W] in the compute dtype; 39.3 MB each at B = 32, P = 3, C = 128, W = 800 in
float32. z and du are stored as the tensor cores take them: half as large for a bfloat16 signal. Partial sums take
[programs, C, C] and less.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..reference import compute_dtype
from .backward_chain import make_chain
from .launch import Source, Weights
from .launch_forward import resample_dx_of


class Needs(NamedTuple):
    """Which gradients are asked for."""

    dy: torch.dtype | None  # and in which dtype
    place: bool  # start or ratio
    strength: bool
    depthwise_weight: bool
    depthwise_bias: bool
    pointwise_weight: bool
    pointwise_bias: bool
    norm_weight: bool
    norm_bias: bool


class Gradients(NamedTuple):
    dy: Tensor | None
    place: Tensor | None  # [B, P, 2], of start and ratio
    rest: tuple[Tensor | None, ...]  # of strength and the six weights


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
    need_x, need_start, need_ratio, *need_rest = needs
    if grad_out.numel() == 0:
        inputs = (x, start, ratio, strength, *weights)
        return tuple(torch.zeros_like(v) if need else None for v, need in zip(inputs, needs, strict=True))
    dtype = compute_dtype(x.dtype) if need_x else None
    wanted = Needs(dtype, need_start or need_ratio, *need_rest)
    grads = _backward(grad_out, Source.of_clips(x, start, ratio), strength, weights, eps, wanted)
    dx = resample_dx_of(grads.dy, x, start, ratio) if need_x else None
    dstart = grads.place[..., 0].to(start.dtype) if need_start else None
    dratio = grads.place[..., 1].to(ratio.dtype) if need_ratio else None
    return dx, dstart, dratio, *grads.rest


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
    need_y, *need_rest = needs
    if grad_out.numel() == 0:
        inputs = (y, strength, *weights)
        return tuple(torch.zeros_like(v) if need else None for v, need in zip(inputs, needs, strict=True))
    wanted = Needs(y.dtype if need_y else None, False, *need_rest)
    grads = _backward(grad_out, Source.of_windows(y), strength, weights, eps, wanted)
    return grads.dy, *grads.rest


def _backward(
    grad_out: Tensor, source: Source, strength: Tensor, weights: Weights, eps: float, needs: Needs
) -> Gradients:
    """The chain of `windowed_tonality_backward`'s docstring, as far as `needs` goes."""
    chain = make_chain(grad_out, source, strength, weights, eps)
    convolve = needs.dy is not None or needs.place  # dy is computed, stored or not
    need_dz = convolve or needs.depthwise_weight
    need_bias = needs.depthwise_bias or needs.pointwise_bias or needs.pointwise_weight
    need_sums = needs.strength or needs.norm_bias
    dz = normed = product = windowed = None
    if need_dz or need_bias or needs.strength or needs.norm_weight:
        z = chain.recompute()
        need_du = need_dz or needs.pointwise_weight
        normed = chain.norm(z, du=need_du, bias=need_bias, norm=needs.norm_weight, heard=needs.strength)
        if need_du:
            dz, product = chain.product(z, normed.du, dz=need_dz, weight=needs.pointwise_weight)
    if need_dz or need_sums:
        windowed = chain.window(
            dz,
            dy=needs.dy,
            place=needs.place,
            taps=needs.depthwise_weight,
            blend=needs.strength,
            sums=need_sums,
        )

    dtype = grad_out.dtype
    result: dict[str, Tensor] = {}
    if needs.strength:
        by_bias = (windowed.sums * chain.prepared.norm_bias[: grad_out.shape[2]]).sum(2)
        by_y = windowed.scalars[..., 2].sum(2)
        result["strength"] = normed.heard.sum(2) + by_bias - by_y
    if needs.norm_bias:
        result["norm_bias"] = (windowed.sums * strength.to(chain.compute)[..., None]).sum((0, 1))
    if needs.norm_weight:
        result["norm_weight"] = normed.dnorm.sum(0)
    if needs.depthwise_weight:
        result["depthwise_weight"] = windowed.taps.sum((0, 1)).T[:, None]
    if need_bias:
        dbias = normed.dbias.sum(0)
        if needs.pointwise_bias:
            result["pointwise_bias"] = dbias - dbias.mean()
        if needs.depthwise_bias:
            centred = weights.pointwise_weight[..., 0].to(chain.compute)
            centred = centred - centred.mean(0)
            result["depthwise_bias"] = (centred * dbias[:, None]).sum(0)
        if needs.pointwise_weight:
            total = product.sum(0) + dbias[:, None] * weights.depthwise_bias.to(chain.compute)
            result["pointwise_weight"] = (total - total.mean(0))[..., None]
    rest = tuple(result[name].to(dtype) if getattr(needs, name) else None for name in ("strength", *Weights._fields))
    place = windowed.scalars[..., :2].sum(2) if needs.place else None
    return Gradients(windowed.dy if needs.dy else None, place, rest)
