"""`windowed_tonality` and `tonality_blend`, forward and backward: which stages run, in which order, and the formulas.

The forward, for one window and with the channel index left out where all channels do the same:

    y(t) = (1 − f)·x[i] + f·x[i + 1],  p(t) = i + f        resampling, see `interpolation`
    z(t) = Σ_k d_k·y(t + k − h) + d₀,  h = (K − 1)/2         depthwise, y = 0 outside [0, W)
    u    = A·z + a                                         pointwise, over channels
    v    = γ·n + β,  n = (u − mean u)·ρ,  ρ = (var u + eps)^(−1/2)
    out  = (1 − s)·y + s·v

Centring. LayerNorm does not see the mean over channels, so A and a are replaced by Â = A − (column means) and
â = (A·d₀ + a) − its mean, applied to z without its bias: u then has mean zero, n = u·ρ, var u = mean u².

Adjoint, with g the gradient of out, top to bottom (· is summed over what the left side lacks):

    ds   = Σ_t,c g·(γ·n + β − y)
    dγ   = Σ s·g·n,   dβ = Σ s·g
    e    = s·γ·g                                            gradient of n
    du   = ρ·(e − n·mean_c(e·n))                            LayerNorm; its third term, −ρ·mean_c e, is constant over
                                                            channels, and Âᵀ maps constants to zero
    dz   = Âᵀ·du
    dÂ   = Σ_t du·zᵀ,   dâ = Σ_t du
    dd_k = Σ_t dz(t)·y(t + k − h)
    dy   = (1 − s)·g + Σ_k d_k·dz(t − k + h)
    dp   = Σ_c dy·(x[i + 1] − x[i])
    dstart = Σ_t dp·∂p/∂start,   dratio = Σ_t dp·∂p/∂ratio  (`interpolation.position_slopes`)
    dx[i] = Σ_windows Σ_t max(0, 1 − |p(t) − i|)·dy(t)      (`resample`: gather form, each dx written once)

Back to the weights as they were given, by the chain rule through the centring (C takes the mean off each column):
dA = C(dÂ + dâ·d₀ᵀ),  da = C(dâ),  dd₀ = Âᵀ·dâ.
`tests/support/adjoint.py` is this text in PyTorch, and is tested against autograd.

Kernels, in their order; a gradient that nobody needs switches its part, or its kernel, off:

    recompute_windows   x -> z; start, ratio -> i, f, ∂p/∂start, ∂p/∂ratio of every frame, once for all channels
                                                                  scratch      (`depthwise`)
    norm_backward       z, g -> du, Σ_c g·γ·n, partial dâ, dγ     scratch      (`pointwise`)
    product_backward    z, du -> dz, partial dÂ                   scratch      (`pointwise`)
    window_backward     x, g, dz -> dy, partial dd_k, dstart, dratio, Σ g·y, Σ_t g                        (`windows`)
    finish_gradients    partial sums -> gradients                              (`finish`)
    resample_dx         dy -> dx                                               (`resample`)

The same kernels serve `tonality_blend`: it gives y itself (not RESAMPLE), and dy is its result.

Sums over programs are made from partials in a fixed order: no atomics, so every run gives the same bits.

Nothing is computed that nobody needs. Launches:

    every gradient          prepare, recompute, norm, product, window, finish, dx    7
    weights frozen          prepare, recompute, norm, product, window, finish, dx    7
    start and ratio         prepare, recompute, norm, product, window, finish        6
    strength alone          prepare, recompute, norm, window (no convolution), finish    5
    norm_weight alone       prepare, recompute, norm, finish                         4
    norm_bias alone         prepare, window (its sums alone), finish                 3

(`product` counts twice where dz and the weight's gradient are computed separately: sm_80 and float64.)

Scratch: z, du, dz and dy, each [B, P, C, W] in the compute dtype; 39.3 MB each at B = 32, P = 3, C = 128, W = 800 in
float32. z and du are stored as the tensor cores take them: half as large for a bfloat16 signal. Partial sums take
[programs, C, C] and less.
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from ..reference import compute_dtype
from ..weights import Weights
from . import depthwise, finish, fused, pointwise, wide, windows
from .call import Call, Normed, Windowed
from .launch import FUSED_CHANNELS
from .resample import resample_dx_of
from .source import Source


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


def forward(source: Source, strength: Tensor, weights: Weights, window: int, eps: float) -> Tensor:
    """out [B, P, C, W] of `windowed_tonality` or `tonality_blend`, in the dtype of the source."""
    shape = (*strength.shape, source.tensor.shape[-2], window)
    out = torch.empty(shape, dtype=source.tensor.dtype, device=source.tensor.device)
    if out.numel() == 0:
        return out
    call = Call.of(source, strength, weights, window, eps)
    if fused.fits(call):
        fused.windowed_tonality(call, out)
    else:  # more channels or taps than one tile holds
        wide.blend(call, wide.product(call, depthwise.recompute(call)[0]), out)
    return out


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
        return tuple(finish.empty_gradient(v).zero_() if need else None for v, need in zip(inputs, needs, strict=True))
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
        return tuple(finish.empty_gradient(v).zero_() if need else None for v, need in zip(inputs, needs, strict=True))
    wanted = Needs(y.dtype if needs[0] else None, False, False, *needs[1:])
    dy, _, _, *rest = _backward(grad_out, Source.of_windows(y), strength, weights, eps, wanted)
    return dy, *rest


def _backward(grad_out: Tensor, source: Source, strength: Tensor, weights: Weights, eps: float, needs: Needs) -> Grads:
    """Gradients of y, start, ratio, strength and the weights: the stages in their order, as far as `needs` goes."""
    grad_out = grad_out.contiguous()
    call = Call.of(source, strength, weights, grad_out.shape[3], eps)
    products: ModuleType = wide if grad_out.shape[2] > FUSED_CHANNELS else pointwise
    place = needs.start or needs.ratio
    need_dz = needs.dy is not None or place or needs.depthwise_weight
    need_du = need_dz or needs.pointwise_weight
    need_bias = needs.depthwise_bias or needs.pointwise_bias or needs.pointwise_weight
    need_sums = needs.strength or needs.norm_bias
    normed, windowed, dz, dproduct, placed = Normed(), Windowed(), None, None, None
    if need_du or need_bias or needs.strength or needs.norm_weight:
        z, placed = depthwise.recompute(call, places=place or needs.depthwise_weight or needs.strength, slopes=place)
        normed = products.norm_gradients(
            call, grad_out, z, du=need_du, bias=need_bias, norm=needs.norm_weight, heard=needs.strength
        )
        if normed.du is not None and need_du:
            dz, dproduct = products.product_gradients(call, z, normed.du, dz=need_dz, weight=needs.pointwise_weight)
    if need_dz or need_sums:
        windowed = windows.gradients(
            call,
            grad_out,
            dz,
            placed,
            dy=needs.dy,
            place=place,
            taps=needs.depthwise_weight,
            blend=needs.strength,
            sums=need_sums,
        )
    return windowed.dy, *finish.gradients(call, normed, windowed, dproduct, weights, needs[1:])
