"""The last step of the backward pass: partial sums become gradients, in the dtype of what they belong to.

One launch, whose programs do different things, instead of some thirty small ones of PyTorch, which together would take
a good part of the pass's time. Sums run over rows in a fixed order.

Its time is what a program waits for memory, so rows are fetched far ahead, by asynchronous copies: loads into
registers are put by the compiler right before the additions, two or three at a time. And a warp has 16 columns to
itself, four lanes a row, eight rows side by side: it adds rows by shuffles. Warps that share columns would add them
through shared memory, where in Triton 3.6 the words of all lanes lie in one bank.
"""

import math
from dataclasses import replace

import triton
import triton.language as tl
from torch import Tensor

from ..weights import Weights
from .call import Call, Normed, Windowed
from .launch import TRITON_TYPE, launch
from .loops import runtime_range
from .places import empty_gradient, finish_window


@triton.jit
def in_groups(PADDED: tl.constexpr):
    """[PADDED // 16, 16]: 0, 1, … PADDED − 1."""
    WIDTH: tl.constexpr = 16 if PADDED > 16 else PADDED
    return tl.arange(0, PADDED // WIDTH)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]


@triton.jit
def load_rows(ptr, first, rows, stride, c, C: tl.constexpr, BLOCK_R: tl.constexpr):
    """[PADDED // 16, BLOCK_R, 16]: from row `first` on, `stride` elements apart, columns c; 0 where there are none."""
    row = first + tl.arange(0, BLOCK_R)
    offsets = row.to(tl.int64)[None, :, None] * stride + c[:, None, :]
    if c.shape[1] > 2:  # not true of rows: it only has Triton 3.6 lay a warp's lanes along them, not along groups
        offsets = tl.max_contiguous(offsets, (1, 2, c.shape[1]))
    return tl.load(ptr + offsets, mask=(row < rows)[None, :, None] & (c < C)[:, None, :], other=0.0)


@triton.jit
def sum_rows(
    ptr,
    rows,
    stride,
    c,
    C: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    STAGES: tl.constexpr,
):
    """[PADDED // 16, 16]: sums of the rows, `stride` elements apart, over columns c."""
    total = tl.zeros((c.shape[0], BLOCK_R, c.shape[1]), COMPUTE)
    for first in runtime_range(0, rows, BLOCK_R, num_stages=STAGES):
        total += load_rows(ptr, first, rows, stride, c, C, BLOCK_R)
    return tl.sum(total, 1)


@triton.jit
def finish_column(
    n,
    dproduct_ptr,
    dbias_ptr,
    pointwise_weight_ptr,
    depthwise_bias_ptr,
    depthwise_bias_grad_ptr,
    pointwise_weight_grad_ptr,
    rows,
    shares,
    C: tl.constexpr,
    NEED_DEPTHWISE_BIAS: tl.constexpr,
    NEED_POINTWISE_WEIGHT: tl.constexpr,
    PADDED: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    STAGES: tl.constexpr,
):
    """dA and dd₀ of input channel n. A's column is asked for first, to be there when dâ is."""
    c = in_groups(PADDED)
    offsets = c * C + n  # of A [out, in]
    if NEED_DEPTHWISE_BIAS:
        a = tl.load(pointwise_weight_ptr + offsets, mask=c < C, other=0.0).to(COMPUTE)
    if NEED_POINTWISE_WEIGHT:
        d = tl.load(depthwise_bias_ptr + n).to(COMPUTE)
    total = tl.zeros((c.shape[0], BLOCK_R, c.shape[1]), COMPUTE)
    bias = total
    for first in runtime_range(0, tl.maximum(rows, shares), BLOCK_R, num_stages=STAGES):
        if NEED_POINTWISE_WEIGHT:
            total += load_rows(dproduct_ptr + n * C, first, shares, C * C, c, C, BLOCK_R)
        bias += load_rows(dbias_ptr, first, rows, C, c, C, BLOCK_R)
    dbias = tl.sum(bias, 1)
    if NEED_POINTWISE_WEIGHT:
        da = tl.sum(total, 1) + d * dbias
        da -= tl.sum(tl.sum(da, 1), 0) / C
        tl.store(pointwise_weight_grad_ptr + offsets, da.to(pointwise_weight_grad_ptr.dtype.element_ty), mask=c < C)
    if NEED_DEPTHWISE_BIAS:
        a -= tl.sum(tl.sum(a, 1), 0) / C
        dd = tl.sum(tl.sum(a * dbias, 1), 0)
        tl.store(depthwise_bias_grad_ptr + n, dd.to(depthwise_bias_grad_ptr.dtype.element_ty))


@triton.jit
def finish_norm_bias(
    sums_ptr,
    strength_ptr,
    norm_bias_grad_ptr,
    windows,
    C: tl.constexpr,
    PADDED: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    STAGES: tl.constexpr,
):
    """dβ = Σ s·Σ_t g."""
    c = in_groups(PADDED)
    total = tl.zeros((c.shape[0], BLOCK_R, c.shape[1]), COMPUTE)
    for first in runtime_range(0, windows, BLOCK_R, num_stages=STAGES):
        row = first + tl.arange(0, BLOCK_R)
        strength = tl.load(strength_ptr + row, mask=row < windows, other=0.0).to(COMPUTE)
        total += strength[None, :, None] * load_rows(sums_ptr, first, windows, C, c, C, BLOCK_R)
    tl.store(norm_bias_grad_ptr + c, tl.sum(total, 1).to(norm_bias_grad_ptr.dtype.element_ty), mask=c < C)


@triton.jit
def finish_gradients(
    dproduct_ptr,  # [shares, C, C] (in, out), partial dÂᵀ
    dbias_ptr,  # [rows, C], partial dâ
    dnorm_ptr,  # [rows, C], partial dγ
    taps_ptr,  # [B, P, K, C], partial dd_k
    heard_ptr,  # [B, P, TILES], Σ g·(v − β) of each tile of frames
    sums_ptr,  # [B, P, C], Σ_t g
    scalars_ptr,  # [B, P, CHUNKS, 3], dstart, dratio and Σ g·y of each chunk of channels
    strength_ptr,  # [B, P]
    norm_bias_ptr,  # [C or more]
    pointwise_weight_ptr,  # A [C, C]
    depthwise_bias_ptr,  # d₀ [C]
    dstart_ptr,  # out: [B, P]
    dratio_ptr,
    dstrength_ptr,
    depthwise_weight_grad_ptr,  # out: [C, 1, K]
    depthwise_bias_grad_ptr,  # out: [C]
    pointwise_weight_grad_ptr,  # out: [C, C, 1]
    pointwise_bias_grad_ptr,  # out: [C]
    norm_weight_grad_ptr,  # out: [C]
    norm_bias_grad_ptr,  # out: [C]
    rows,
    shares,
    windows,  # B·P
    TILES: tl.constexpr,
    C: tl.constexpr,
    K: tl.constexpr,
    CHUNKS: tl.constexpr,
    NEED_START: tl.constexpr,
    NEED_RATIO: tl.constexpr,
    NEED_STRENGTH: tl.constexpr,
    NEED_DEPTHWISE_WEIGHT: tl.constexpr,
    NEED_DEPTHWISE_BIAS: tl.constexpr,
    NEED_POINTWISE_WEIGHT: tl.constexpr,
    NEED_POINTWISE_BIAS: tl.constexpr,
    NEED_NORM_WEIGHT: tl.constexpr,
    NEED_NORM_BIAS: tl.constexpr,
    COLUMN_PROGRAMS: tl.constexpr,
    PADDED: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_R: tl.constexpr,  # rows at a time
    STAGES: tl.constexpr,  # blocks of rows are fetched so many ahead, less one
):
    """dA = C(dÂ + dâ·d₀ᵀ), da = C(dâ), dd₀ = Âᵀ·dâ, with C taking the mean off each column; dd_k, dγ, dβ; and dstart,
    dratio and dstrength.

    Grid (COLUMN_PROGRAMS + 3 + K + B·P,): one input channel of A each, da, dγ, dβ, one tap each, one window each.
    """
    # Triton wants one type per name across branches: the names in them differ
    n = tl.program_id(0)
    if n < COLUMN_PROGRAMS:
        finish_column(
            n,
            dproduct_ptr,
            dbias_ptr,
            pointwise_weight_ptr,
            depthwise_bias_ptr,
            depthwise_bias_grad_ptr,
            pointwise_weight_grad_ptr,
            rows,
            shares,
            C,
            NEED_DEPTHWISE_BIAS,
            NEED_POINTWISE_WEIGHT,
            PADDED,
            COMPUTE,
            BLOCK_R,
            STAGES,
        )
    elif n < COLUMN_PROGRAMS + 3 + K:
        c = in_groups(PADDED)
        real = c < C
        which = n - COLUMN_PROGRAMS
        if which == 0:
            if NEED_POINTWISE_BIAS:
                shift = sum_rows(dbias_ptr, rows, C, c, C, COMPUTE, BLOCK_R, STAGES)
                shift -= tl.sum(tl.sum(shift, 1), 0) / C
                tl.store(pointwise_bias_grad_ptr + c, shift.to(pointwise_bias_grad_ptr.dtype.element_ty), mask=real)
        elif which == 1:
            if NEED_NORM_WEIGHT:
                dnorm = sum_rows(dnorm_ptr, rows, C, c, C, COMPUTE, BLOCK_R, STAGES)
                tl.store(norm_weight_grad_ptr + c, dnorm.to(norm_weight_grad_ptr.dtype.element_ty), mask=real)
        elif which == 2:
            if NEED_NORM_BIAS:
                finish_norm_bias(
                    sums_ptr, strength_ptr, norm_bias_grad_ptr, windows, C, PADDED, COMPUTE, BLOCK_R, STAGES
                )
        else:
            if NEED_DEPTHWISE_WEIGHT:
                k = which - 3
                tap = sum_rows(taps_ptr + k * C, windows, K * C, c, C, COMPUTE, BLOCK_R, STAGES)
                tap_ptr = depthwise_weight_grad_ptr + c * K + k
                tl.store(tap_ptr, tap.to(depthwise_weight_grad_ptr.dtype.element_ty), mask=real)
    else:
        finish_window(
            n - (COLUMN_PROGRAMS + 3 + K),
            heard_ptr,
            sums_ptr,
            scalars_ptr,
            norm_bias_ptr,
            dstart_ptr,
            dratio_ptr,
            dstrength_ptr,
            TILES,
            C,
            CHUNKS,
            NEED_START,
            NEED_RATIO,
            NEED_STRENGTH,
            COMPUTE,
            BLOCK,
        )


def gradients(
    call: Call,
    normed: Normed,
    windowed: Windowed,
    dproduct: Tensor | None,
    weights: Weights,
    asked: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Gradients of start, ratio, strength and the six weights, None where not `asked`.

    dproduct: dÂᵀ [shares, C, C] (in, out), to be summed over shares.
    """
    names = ("start", "ratio", "strength", *Weights._fields)
    like = (call.source.start, call.source.ratio, call.strength, *weights)
    grads = [empty_gradient(v) if need else None for v, need in zip(like, asked, strict=True)]
    if not any(asked):
        return tuple(grads)
    config = call.configuration("finish_gradients")
    channels = call.shape[2]
    padded = triton.next_power_of_2(channels)
    block_r = max(1, config.constants["BLOCK_R"] * 128 // max(padded, 128))
    config = replace(config, constants={**config.constants, "BLOCK_R": block_r})
    needs = dict(zip(names, asked, strict=True))
    columns = channels if needs["pointwise_weight"] or needs["depthwise_bias"] else 0
    partial = normed.dbias if normed.dnorm is None else normed.dnorm
    pairs = call.strength.numel()
    arguments = {
        "dproduct_ptr": call.spare(dproduct),
        "dbias_ptr": call.spare(normed.dbias),
        "dnorm_ptr": call.spare(normed.dnorm),
        "taps_ptr": call.spare(windowed.taps),
        "heard_ptr": call.spare(normed.heard),
        "sums_ptr": call.spare(windowed.sums),
        "scalars_ptr": call.spare(windowed.scalars),
        "strength_ptr": call.strength,
        "norm_bias_ptr": call.prepared.norm_bias,
        "pointwise_weight_ptr": weights.pointwise_weight,
        "depthwise_bias_ptr": weights.depthwise_bias,
        **{f"d{name}_ptr": call.spare(grad) for name, grad in zip(names[:3], grads[:3], strict=True)},
        **{f"{name}_grad_ptr": call.spare(grad) for name, grad in zip(names[3:], grads[3:], strict=True)},
        "rows": 0 if partial is None else partial.shape[0],
        "shares": 0 if dproduct is None else dproduct.shape[0],
        "windows": pairs,
        "TILES": 0 if normed.heard is None else normed.heard.shape[2],
        "K": call.taps,
        "CHUNKS": 0 if windowed.scalars is None else windowed.scalars.shape[2],
        **{f"NEED_{name.upper()}": need for name, need in needs.items()},
        "COLUMN_PROGRAMS": columns,
        "PADDED": padded,
        "C": channels,
        "COMPUTE": TRITON_TYPE[call.compute],
    }
    programs = columns + 3 + call.taps + (pairs if any(asked[:3]) else 0)
    share = max(1, math.prod(call.shape) // programs)  # of the call's elements
    launch(finish_gradients, (programs,), config, arguments, outputs=share)
    return tuple(grads)
