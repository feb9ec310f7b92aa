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
    dx[i] = Σ_windows Σ_t max(0, 1 − |p(t) − i|)·dy(t)      (`resample_dx`: gather form, each dx written once)

Back to the weights as they were given, by the chain rule through the centring (C takes the mean off each column):
dA = C(dÂ + dâ·d₀ᵀ),  da = C(dâ),  dd₀ = Âᵀ·dâ.

Restored frames (RESTORE), with m = mean_c y and σ = (var_c y + eps)^(1/2) (`moments`):

    v    = m + σ·γ·n + β

so that everything that comes through n is σ times as large, and m and σ are functions of y, with ∂m/∂y_c = 1/C and
∂σ/∂y_c = (y_c − m)/(C·σ). Their own gradients are s·Σ_c g and s·Σ_c g·γ·n, and it becomes

    ds   = Σ_t,c g·(m + σ·γ·n + β − y)
    dγ   = Σ s·σ·g·n
    e    = s·σ·γ·g
    dy   = (1 − s)·g + Σ_k d_k·dz(t − k + h) + s·mean_c g + (y − m)/σ·s·mean_c(g·γ·n)

`tests/support/adjoint.py` is this text in PyTorch, and is tested against autograd.

Kernels, in their order; a gradient that nobody needs switches its part, or its kernel, off:

    recompute_windows   x -> z, moments of y by blocks of channels; start, ratio -> i, f, ∂p/∂start, ∂p/∂ratio of every
                        frame, once for all channels
                                                                  scratch      (`depthwise`)
    joint_backward      z, g, moments -> dz, Σ g·(v − β) by tiles, what dy gains by m and σ, partial dÂ, dâ, dγ
                                                                  scratch      (`joint`)
        or, on sm_80, in float64 and for rows that are not whole multiples of 4 frames, two kernels:
    norm_backward       z, g, moments -> du, and all of the above but dz and dÂ
                                                                  scratch      (`pointwise`)
    product_backward    z, du -> dz, partial dÂ                   scratch      (`pointwise`)
    window_backward     x, g, dz -> dy, partial dd_k, dstart, dratio, Σ g·y, Σ_t g                        (`windows`)
    resample_dx         dy -> dx                                               (`resample_dx`)
    finish_gradients    partial sums -> gradients                              (`finish`)

The same kernels serve `tonality_blend`: it gives y itself (not RESAMPLE), and dy is its result.

Order. Each of them reads what the one before it wrote, 39 MB in float32, of which the last-level cache still holds the
end (an H100's keeps the last 32 MB or so of all that passes, see `tools.cache`). One that walked the same way would
read the beginning, and push out the end before it gets there. So they walk against each other, window by window, all
channels of one side by side: `recompute_windows` and `window_backward` from the first on, `joint_backward` (or
`norm_backward`) and `resample_dx` from the last; and what the last two read for the last time is marked as the first to
go (`loops.LAST_READ`).

Sums over programs are made from partials in a fixed order: no atomics, so every run gives the same bits.

Nothing is computed that nobody needs. Launches, forward: one, `windowed_tonality_forward`, in which each program
prepares the weights for itself; before it `prepare`, where its configuration has PREPARE off: in float64, and on sm_90
for more than 64 channels in rows that are not whole multiples of 4 frames. For more than 128 channels, or more taps
than a tile holds: prepare, recompute, product and blend. Backward, where `prepare` is left out if forward kept what it
had prepared:

    every gradient          prepare, recompute, joint, window, dx, finish            6
    weights frozen          prepare, recompute, joint, window, dx, finish            6
    start and ratio         prepare, recompute, joint, window, finish                5
    strength alone          prepare, recompute, joint, window (no convolution), finish    5
    norm_weight alone       prepare, recompute, joint, finish                        4
    norm_bias alone         prepare, window (its sums alone), finish                 3

(Where there are two kernels, `norm` stands for `joint`, and `product` follows where dz or dÂ is needed: twice where
these two are computed separately, which is on sm_80 and in float64.)

Scratch: z, dz and dy, and du where there are two kernels, each [B, P, C, W] in the compute dtype; 39.3 MB each at B =
32, P = 3, C = 128, W = 800 in float32. z and du are stored as the tensor cores take them, dz and dy as PyTorch would
pass them on: half as large for a bfloat16 signal. With TF32, `joint_backward` stores dz in 24 bits: `window_backward`
does little else than wait for memory, and reads 10 MB less. Partial sums take [programs, C, C] and less.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..weights import Weights
from . import depthwise, finish, fused, joint, places, pointwise, wide, windows
from .call import Call, Normed, Windowed
from .configurations import Target
from .launch import FUSED_CHANNELS, precision_of, target_of
from .operands import Split
from .prepare import prepare, room
from .resample_dx import clip_gradient
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


def forward(
    source: Source,
    strength: Tensor,
    weights: Weights,
    window: int,
    eps: float,
    target: Target | None = None,
    *,
    restore: bool = False,
    keep: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """out [B, P, C, W] of `windowed_tonality` or `tonality_blend`, in the dtype of the source; and the prepared weights
    if they are to be kept for `backward`.

    restore: each frame's mean and spread are given back.
    """
    shape = (*strength.shape, source.tensor.shape[-2], window)
    out = torch.empty(shape, dtype=source.tensor.dtype, device=source.tensor.device)
    if out.numel() == 0:
        return out, None
    target = target or target_of(source.tensor.device)
    compute, size = room(weights, precision_of(out.dtype, target))
    memory = torch.empty(size, dtype=compute, device=out.device)
    call = Call.of(source, strength, weights, window, eps, target, memory, restore=restore)
    if fused.fits(call):
        fused.windowed_tonality(call, weights, out, keep=keep)
    else:  # more channels or taps than one tile holds
        prepare(weights, call.target, call.precision, call.prepared)
        z, _, moments = depthwise.recompute(call)
        wide.blend(call, wide.product(call, z), moments, out)
    return out, memory if keep else None


def backward(
    grad_out: Tensor,
    source: Source,
    strength: Tensor,
    weights: Weights,
    eps: float,
    needs: tuple[bool, ...],
    target: Target | None = None,
    memory: Tensor | None = None,
    *,
    restore: bool = False,
) -> tuple[Tensor | None, ...]:
    """Gradients of the source (x, start and ratio, or y), strength and the weights, None where not needed.

    Args:
        grad_out: [B, P, C, W], contiguous.
        memory: what `forward` kept, of the same precision.
    """
    clips = source.resample
    inputs = (source.tensor, source.start, source.ratio) if clips else (source.tensor,)
    if grad_out.numel() == 0:
        inputs = (*inputs, strength, *weights)
        return tuple(places.zeros(v) if need else None for v, need in zip(inputs, needs, strict=True))
    call = Call.of(source, strength, weights, grad_out.shape[3], eps, target, memory, restore=restore)
    if memory is None:
        prepare(weights, call.target, call.precision, call.prepared)
    if clips:
        wanted = Needs(call.passed if needs[0] else None, *needs[1:])
    else:
        wanted = Needs(source.tensor.dtype if needs[0] else None, False, False, *needs[1:])
    normed, windowed, dproduct = _chain(call, grad_out, wanted)
    first = windowed.dy
    if clips and first is not None:  # at once: the cache still holds what `window_backward` wrote last
        first = clip_gradient(first, source.tensor, source.start, source.ratio, call.target)
    dstart, dratio, *rest = finish.gradients(call, normed, windowed, dproduct, weights, wanted[1:])
    return (first, dstart, dratio, *rest) if clips else (first, *rest)


def _chain(call: Call, grad_out: Tensor, needs: Needs) -> tuple[Normed, Windowed, Tensor | None]:
    """dy and all partial sums: the stages down to it in their order, as far as needed."""
    place = needs.start or needs.ratio
    need_dz = needs.dy is not None or place or needs.depthwise_weight
    need_du = need_dz or needs.pointwise_weight
    need_bias = needs.depthwise_bias or needs.pointwise_bias or needs.pointwise_weight
    need_sums = needs.strength or needs.norm_bias
    need_restored = call.restore and (needs.dy is not None or place)
    normed, windowed, dz, dproduct, placed = Normed(), Windowed(), None, None, None
    if need_du or need_bias or needs.strength or needs.norm_weight:
        need_y = place or needs.depthwise_weight or needs.strength or need_restored
        z, placed, moments = depthwise.recompute(call, places=need_y, slopes=place)
        sums = {
            "bias": need_bias,
            "norm": needs.norm_weight,
            "heard": needs.strength,
            "restored": need_restored,
        }
        products = {"dz": need_dz, "weight": needs.pointwise_weight}
        if config := call.joint:
            normed, dz, dproduct = joint.gradients(call, grad_out, z, moments, config, **products, **sums)
        else:
            apart = wide if grad_out.shape[2] > FUSED_CHANNELS else pointwise
            normed = apart.norm_gradients(call, grad_out, z, moments, du=need_du, **sums)
            if normed.du is not None and need_du:
                whole, dproduct = apart.product_gradients(call, z, normed.du, **products)
                dz = None if whole is None else Split.whole(whole)
    if need_dz or need_sums:
        windowed = windows.gradients(
            call,
            grad_out,
            dz,
            normed.restored,
            placed,
            dy=needs.dy,
            place=place,
            taps=needs.depthwise_weight,
            blend=needs.strength,
            sums=need_sums,
        )
    return normed, windowed, dproduct
