"""The last step of the backward pass: partial sums become gradients, in the dtype of what they belong to.

Two launches instead of some thirty small ones of PyTorch, which together would take a good part of the pass's time.
Sums run over rows in a fixed order.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..weights import Weights
from .call import Call, Normed, Windowed
from .launch import TRITON_TYPE, launch
from .loops import runtime_range


@triton.jit
def sum_rows(ptr, rows, stride, c, mask, COMPUTE: tl.constexpr, PADDED: tl.constexpr, BLOCK_R: tl.constexpr):
    """[PADDED]: sums of the rows, `stride` elements apart, over columns c."""
    total = tl.zeros((BLOCK_R, PADDED), COMPUTE)
    for first in runtime_range(0, rows, BLOCK_R, num_stages=1):
        row = first + tl.arange(0, BLOCK_R)
        offsets = row.to(tl.int64)[:, None] * stride + c[None, :]
        total += tl.load(ptr + offsets, mask=(row < rows)[:, None] & mask[None, :], other=0.0)
    return tl.sum(total, 0)


@triton.jit
def finish_windows(
    heard_ptr,  # [B, P, W], Σ_c g·γ·n
    sums_ptr,  # [B, P, C], Σ_t g
    scalars_ptr,  # [B, P, CHUNKS, 3], dstart, dratio and Σ g·y of each chunk of channels
    norm_bias_ptr,  # [C or more]
    dstart_ptr,  # out: [B, P]
    dratio_ptr,
    dstrength_ptr,
    W: tl.constexpr,
    C: tl.constexpr,
    CHUNKS: tl.constexpr,
    NEED_START: tl.constexpr,
    NEED_RATIO: tl.constexpr,
    NEED_STRENGTH: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """dstart, dratio, and dstrength = Σ g·γ·n + Σ_c β·Σ_t g − Σ g·y. Grid (B·P,)."""
    pair = tl.program_id(0).to(tl.int64)
    j = tl.arange(0, BLOCK)
    start = tl.zeros((BLOCK,), COMPUTE)
    ratio = start
    strength = start
    for first in runtime_range(0, CHUNKS, BLOCK, num_stages=1):
        chunk = first + j
        scalars = scalars_ptr + (pair * CHUNKS + chunk) * 3
        if NEED_START:
            start += tl.load(scalars, mask=chunk < CHUNKS, other=0.0)
        if NEED_RATIO:
            ratio += tl.load(scalars + 1, mask=chunk < CHUNKS, other=0.0)
        if NEED_STRENGTH:
            strength -= tl.load(scalars + 2, mask=chunk < CHUNKS, other=0.0)
    if NEED_START:
        tl.store(dstart_ptr + pair, tl.sum(start, 0).to(dstart_ptr.dtype.element_ty))
    if NEED_RATIO:
        tl.store(dratio_ptr + pair, tl.sum(ratio, 0).to(dratio_ptr.dtype.element_ty))
    if NEED_STRENGTH:
        for first in runtime_range(0, C, BLOCK, num_stages=1):
            c = first + j
            beta = tl.load(norm_bias_ptr + c, mask=c < C, other=0.0).to(COMPUTE)
            strength += beta * tl.load(sums_ptr + pair * C + c, mask=c < C, other=0.0)
        for first in runtime_range(0, W, BLOCK, num_stages=1):
            t = first + j
            strength += tl.load(heard_ptr + pair * W + t, mask=t < W, other=0.0)
        tl.store(dstrength_ptr + pair, tl.sum(strength, 0).to(dstrength_ptr.dtype.element_ty))


@triton.jit
def finish_weights(
    dproduct_ptr,  # [C, C], dÂ
    dbias_ptr,  # [rows, C], partial dâ
    dnorm_ptr,  # [rows, C], partial dγ
    taps_ptr,  # [B, P, K, C], partial dd_k
    sums_ptr,  # [B, P, C], Σ_t g
    strength_ptr,  # [B, P]
    pointwise_weight_ptr,  # A [C, C]
    depthwise_bias_ptr,  # d₀ [C]
    depthwise_weight_grad_ptr,  # out: [C, 1, K]
    depthwise_bias_grad_ptr,  # out: [C]
    pointwise_weight_grad_ptr,  # out: [C, C, 1]
    pointwise_bias_grad_ptr,  # out: [C]
    norm_weight_grad_ptr,  # out: [C]
    norm_bias_grad_ptr,  # out: [C]
    rows,
    windows,  # B·P
    C: tl.constexpr,
    K: tl.constexpr,
    NEED_DEPTHWISE_WEIGHT: tl.constexpr,
    NEED_DEPTHWISE_BIAS: tl.constexpr,
    NEED_POINTWISE_WEIGHT: tl.constexpr,
    NEED_POINTWISE_BIAS: tl.constexpr,
    NEED_NORM_WEIGHT: tl.constexpr,
    NEED_NORM_BIAS: tl.constexpr,
    PADDED: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """dA = C(dÂ + dâ·d₀ᵀ), da = C(dâ), dd₀ = Âᵀ·dâ, with C taking the mean off each column; and dd_k, dγ, dβ.

    Grid (⌈PADDED / BLOCK_C⌉ + 1 + K,): BLOCK_C input channels of A each, then the vectors, then one tap each.
    """
    # Triton wants one type per name across branches: the names in them differ
    n = tl.program_id(0)
    c = tl.arange(0, PADDED)
    real = c < C
    COLUMN_PROGRAMS: tl.constexpr = (PADDED + BLOCK_C - 1) // BLOCK_C
    if n < COLUMN_PROGRAMS:
        if NEED_POINTWISE_WEIGHT or NEED_DEPTHWISE_BIAS:
            column = n * BLOCK_C + tl.arange(0, BLOCK_C)
            mask = real[:, None] & (column < C)[None, :]
            offsets = c[:, None] * C + column[None, :]  # [out, in]
            dbias = sum_rows(dbias_ptr, rows, C, c, real, COMPUTE, PADDED, BLOCK_R)
            if NEED_POINTWISE_WEIGHT:
                d = tl.load(depthwise_bias_ptr + column, mask=column < C, other=0.0).to(COMPUTE)
                da = tl.load(dproduct_ptr + offsets, mask=mask, other=0.0) + dbias[:, None] * d[None, :]
                da -= (tl.sum(da, 0) / C)[None, :]
                da_ptr = pointwise_weight_grad_ptr + offsets
                tl.store(da_ptr, da.to(pointwise_weight_grad_ptr.dtype.element_ty), mask=mask)
            if NEED_DEPTHWISE_BIAS:
                a = tl.load(pointwise_weight_ptr + offsets, mask=mask, other=0.0).to(COMPUTE)
                a -= (tl.sum(a, 0) / C)[None, :]
                dd = tl.sum(a * dbias[:, None], 0)
                dd_ptr = depthwise_bias_grad_ptr + column
                tl.store(dd_ptr, dd.to(depthwise_bias_grad_ptr.dtype.element_ty), mask=column < C)
    elif n == COLUMN_PROGRAMS:
        if NEED_POINTWISE_BIAS:
            shift = sum_rows(dbias_ptr, rows, C, c, real, COMPUTE, PADDED, BLOCK_R)
            shift -= tl.sum(shift, 0) / C
            tl.store(pointwise_bias_grad_ptr + c, shift.to(pointwise_bias_grad_ptr.dtype.element_ty), mask=real)
        if NEED_NORM_WEIGHT:
            dnorm = sum_rows(dnorm_ptr, rows, C, c, real, COMPUTE, PADDED, BLOCK_R)
            tl.store(norm_weight_grad_ptr + c, dnorm.to(norm_weight_grad_ptr.dtype.element_ty), mask=real)
        if NEED_NORM_BIAS:
            by_strength = tl.zeros((BLOCK_R, PADDED), COMPUTE)
            for first in runtime_range(0, windows, BLOCK_R, num_stages=1):
                row = first + tl.arange(0, BLOCK_R)
                strength = tl.load(strength_ptr + row, mask=row < windows, other=0.0).to(COMPUTE)
                sums_ptrs = sums_ptr + row.to(tl.int64)[:, None] * C + c[None, :]
                sums = tl.load(sums_ptrs, mask=(row < windows)[:, None] & real[None, :], other=0.0)
                by_strength += strength[:, None] * sums
            dbeta = tl.sum(by_strength, 0)
            tl.store(norm_bias_grad_ptr + c, dbeta.to(norm_bias_grad_ptr.dtype.element_ty), mask=real)
    else:
        if NEED_DEPTHWISE_WEIGHT:
            k = n - COLUMN_PROGRAMS - 1
            tap = sum_rows(taps_ptr + k * C, windows, K * C, c, real, COMPUTE, PADDED, BLOCK_R)
            tap_ptr = depthwise_weight_grad_ptr + c * K + k
            tl.store(tap_ptr, tap.to(depthwise_weight_grad_ptr.dtype.element_ty), mask=real)


def empty_gradient(like: Tensor) -> Tensor:
    """A gradient: contiguous whatever `like` is, as `torch.compile` is told."""
    return torch.empty(like.shape, dtype=like.dtype, device=like.device)


def window_gradients(
    call: Call, normed: Normed, windowed: Windowed, *, start: bool, ratio: bool, strength: bool
) -> tuple[Tensor | None, ...]:
    """Gradients of start, ratio and strength."""
    asked = (start, ratio, strength)
    like = (call.source.start, call.source.ratio, call.strength)
    grads = [empty_gradient(v) if need else None for v, need in zip(like, asked, strict=True)]
    if windowed.scalars is not None:
        arguments = {
            "heard_ptr": call.spare(normed.heard),
            "sums_ptr": call.spare(windowed.sums),
            "scalars_ptr": windowed.scalars,
            "norm_bias_ptr": call.prepared.norm_bias,
            "dstart_ptr": call.spare(grads[0]),
            "dratio_ptr": call.spare(grads[1]),
            "dstrength_ptr": call.spare(grads[2]),
            "CHUNKS": windowed.scalars.shape[2],
            "NEED_START": start,
            "NEED_RATIO": ratio,
            "NEED_STRENGTH": strength,
            **call.sizes(),
        }
        config = call.configuration("finish_windows")
        pairs = call.strength.numel()
        launch(finish_windows, (pairs,), config, arguments, outputs=math.prod(call.shape) // pairs)
    return tuple(grads)


def weight_gradients(
    call: Call,
    normed: Normed,
    windowed: Windowed,
    dproduct: Tensor | None,
    weights: Weights,
    asked: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Gradients of the six weights, None where not `asked`."""
    grads = [empty_gradient(v) if need else None for v, need in zip(weights, asked, strict=True)]
    if any(asked):
        channels, _, taps = weights.depthwise_weight.shape
        config = call.configuration("finish_weights")
        padded = triton.next_power_of_2(channels)
        partial = normed.dbias if normed.dnorm is None else normed.dnorm
        arguments = {
            "dproduct_ptr": call.spare(dproduct),
            "dbias_ptr": call.spare(normed.dbias),
            "dnorm_ptr": call.spare(normed.dnorm),
            "taps_ptr": call.spare(windowed.taps),
            "sums_ptr": call.spare(windowed.sums),
            "strength_ptr": call.strength,
            "pointwise_weight_ptr": weights.pointwise_weight.contiguous(),
            "depthwise_bias_ptr": weights.depthwise_bias.contiguous(),
            **{f"{name}_grad_ptr": call.spare(grad) for name, grad in zip(Weights._fields, grads, strict=True)},
            "rows": 0 if partial is None else partial.shape[0],
            "windows": call.strength.numel(),
            "C": channels,
            "K": taps,
            **{f"NEED_{name.upper()}": need for name, need in zip(Weights._fields, asked, strict=True)},
            "PADDED": padded,
            "COMPUTE": TRITON_TYPE[call.compute],
        }
        programs = triton.cdiv(padded, config.constants["BLOCK_C"]) + 1 + taps
        share = max(1, math.prod(call.shape) // programs)  # of the call's elements
        launch(finish_weights, (programs,), config, arguments, outputs=share)
    return tuple(grads)
