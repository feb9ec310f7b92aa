"""Backward of LayerNorm and of the pointwise product in one kernel: z and g to dz; du never leaves the processor.

What `pointwise` does in two, without writing du and without reading it and z again: 118 MB less in float32. It is
channel-major, and its operands have 16 bits: tensor cores then take every operand from shared memory as it lies there,
z as it is loaded, the weight in either direction, and du, which is written there once for both of its products. TF32's
products are computed as three of bfloat16, which are more exact: a 32-bit operand would have to be turned around.

dz goes on in 24 bits with TF32, whose products it bears the error of (`Call.packs`).

Sums over frames (dâ, dγ) are kept folded, as one thread holds them: two registers each.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .call import Call, Normed, moments_arguments
from .configurations import Configuration
from .interpolation import channel_offsets
from .launch import launch
from .loops import runtime_range, sum_both
from .moments import Moments, load_moments, store_restored
from .operands import Split, load_split, multiply, pack, split


@triton.jit
def fold_columns(q, PADDED: tl.constexpr, BLOCK_T: tl.constexpr):
    """[PADDED, 4]: sums over frames that one thread holds, of what tensor cores return: 2 neighbours of every 8."""
    return tl.sum(tl.sum(tl.reshape(q, (PADDED, BLOCK_T // 8, 4, 2)), 3), 1)


@triton.jit
def joint_backward(
    z_ptr,  # [B, P, C, W]
    z_lo_ptr,
    strength_ptr,  # [B, P]
    pointwise_hi_ptr,  # [PADDED, PADDED] (out, in), centred
    pointwise_lo_ptr,
    pointwise_bias_ptr,  # [PADDED], centred, the depthwise bias folded in
    norm_weight_ptr,  # [PADDED]
    grad_ptr,  # [B, P, C, W]
    moments_ptr,  # `moments.Moments`
    dz_ptr,  # out: [B, P, C, W]
    dz_lo_ptr,  # out, where PACK
    heard_ptr,  # out: [B, P, tiles of a window], Σ g·(v − β)
    restored_ptr,  # out: [B, P, 3, W], as `norm_backward` leaves it
    dpointwise_ptr,  # out: [programs, C, C] (in, out)
    dbias_ptr,  # out: [programs, C]
    dnorm_ptr,  # out: [programs, C]
    tiles,  # of all windows
    W: tl.constexpr,
    C: tl.constexpr,
    EPS: tl.constexpr,
    NEED_DZ: tl.constexpr,
    NEED_WEIGHT: tl.constexpr,
    NEED_BIAS: tl.constexpr,
    NEED_NORM: tl.constexpr,
    NEED_HEARD: tl.constexpr,
    NEED_RESTORED: tl.constexpr,
    RESTORE: tl.constexpr,
    WIDTH: tl.constexpr,  # of a block of moments
    PADDED: tl.constexpr,
    BLOCK_T: tl.constexpr,
    STAGES: tl.constexpr,
    WEIGHT_FIRST: tl.constexpr,  # dÂ before dz: in fewer registers, a little slower
    PACK: tl.constexpr,  # dz in 24 bits
    PRECISION: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """u again, back through LayerNorm to du, and its two products: dz, and this program's share of dÂᵀ = z·duᵀ, dâ and
    dγ. Grid (programs,).
    """
    TILES_PER_WINDOW: tl.constexpr = (W + BLOCK_T - 1) // BLOCK_T
    c = tl.arange(0, PADDED)
    j = tl.arange(0, BLOCK_T)
    weight_offsets = c[:, None] * PADDED + c[None, :]  # [out, in]
    hi = tl.load(pointwise_hi_ptr + weight_offsets)
    lo = tl.load(pointwise_lo_ptr + weight_offsets) if PRECISION == "bf16x3" else hi
    bias = tl.load(pointwise_bias_ptr + c)
    gamma = tl.load(norm_weight_ptr + c)[:, None]
    channel = channel_offsets(c, C, PADDED, W)
    total = tl.zeros((PADDED, PADDED), COMPUTE)
    dbias = tl.zeros((PADDED, 4), COMPUTE)
    dnorm = dbias
    for n in runtime_range(tl.program_id(0), tiles, tl.num_programs(0), num_stages=STAGES):
        tile = tiles - 1 - n  # the newest first, see `transform`
        pair = tile // TILES_PER_WINDOW
        t = (tile - pair * TILES_PER_WINDOW) * BLOCK_T + j
        mask = (t < W)[None, :]
        if C != PADDED:
            mask = mask & (c < C)[:, None]
        base = pair.to(tl.int64) * (C * W)
        offsets = channel[:, None] + t[None, :]  # [PADDED, BLOCK_T]
        z_hi, z_lo = load_split(z_ptr + base, z_lo_ptr + base, offsets, mask, PRECISION)
        g = tl.load(grad_ptr + base + offsets, mask=mask, other=0.0).to(COMPUTE)
        strength = tl.load(strength_ptr + pair).to(COMPUTE)
        u = multiply(hi, lo, z_hi, z_lo, tl.broadcast_to(bias[:, None], (PADDED, BLOCK_T)), PRECISION)
        gg = g * gamma
        square, gu = sum_both(u * u, gg * u, 0)
        inverse = tl.rsqrt(square / C + EPS)  # [BLOCK_T]
        heard = gu * inverse
        if RESTORE:
            mean, spread = load_moments(moments_ptr, pair, t, t < W, W, C, EPS, WIDTH, COMPUTE)
            amount = strength * spread  # [BLOCK_T]
            if NEED_HEARD or NEED_RESTORED:
                level = tl.sum(g, 0)
            if NEED_HEARD:
                tl.store(heard_ptr + tile, tl.sum(spread * heard + mean * level, 0))
            if NEED_RESTORED:
                store_restored(restored_ptr, pair, t, mean, spread, heard, level, strength, W, C)
        else:
            amount = strength
            if NEED_HEARD:
                tl.store(heard_ptr + tile, tl.sum(heard, 0))
        scale = amount * inverse
        if NEED_NORM:
            dnorm += fold_columns(g * u * scale[None, :], PADDED, BLOCK_T)
        du = gg * scale[None, :] - u * (scale * inverse * (heard / C))[None, :]
        if NEED_BIAS:
            dbias += fold_columns(du, PADDED, BLOCK_T)
        du_hi, du_lo = split(du, PRECISION)
        if NEED_WEIGHT and WEIGHT_FIRST:
            total = multiply(z_hi, z_lo, tl.trans(du_hi), tl.trans(du_lo), total, PRECISION)
        if NEED_DZ:
            dz = tl.zeros((PADDED, BLOCK_T), COMPUTE)
            dz = multiply(tl.trans(hi), tl.trans(lo), du_hi, du_lo, dz, PRECISION)
            if PACK:
                upper, lower = pack(dz)
                tl.store(dz_ptr + base + offsets, upper, mask=mask)
                tl.store(dz_lo_ptr + base + offsets, lower, mask=mask)
            else:
                tl.store(dz_ptr + base + offsets, dz.to(dz_ptr.dtype.element_ty), mask=mask)
        if NEED_WEIGHT and not WEIGHT_FIRST:
            total = multiply(z_hi, z_lo, tl.trans(du_hi), tl.trans(du_lo), total, PRECISION)
    program = tl.program_id(0).to(tl.int64)
    if NEED_WEIGHT:
        mask = (c < C)[:, None] & (c < C)[None, :]
        tl.store(dpointwise_ptr + program * (C * C) + c[:, None] * C + c[None, :], total, mask=mask)
    if NEED_BIAS:
        tl.store(dbias_ptr + program * C + c, tl.sum(dbias, 1), mask=c < C)
    if NEED_NORM:
        tl.store(dnorm_ptr + program * C + c, tl.sum(dnorm, 1), mask=c < C)


class Joint(NamedTuple):
    """What the kernel leaves, as far as it was asked for."""

    normed: Normed  # without du
    dz: Split | None  # [B, P, C, W], in 24 bits where `Call.packs`
    dproduct: Tensor | None  # dÂᵀ [rows, C, C] (in, out), to be summed over rows


def gradients(
    call: Call,
    grad_out: Tensor,
    z: Split,
    moments: Moments | None,
    config: Configuration,
    *,
    dz: bool,
    weight: bool,
    bias: bool,
    norm: bool,
    heard: bool,
    restored: bool,
) -> Joint:
    """dz, partial sums for dÂ, dâ, dγ and dstrength, and what restoring adds to dy; z as `Call.operand` has it."""
    batch, pairs, channels, window = call.shape
    block_t = config.constants["BLOCK_T"]
    tiles_of_one = triton.cdiv(window, block_t)
    tiles = batch * pairs * tiles_of_one
    programs = min(tiles, call.target.processors * config.per_processor)
    normed = Normed(
        heard=call.scratch(batch, pairs, tiles_of_one) if heard else None,
        restored=call.scratch(batch, pairs, 3, window) if restored else None,
        dbias=call.scratch(programs, channels) if bias else None,
        dnorm=call.scratch(programs, channels) if norm else None,
    )
    out = None
    if dz and call.packs:
        out = Split(call.scratch(*call.shape, dtype=torch.int16), call.scratch(*call.shape, dtype=torch.int8))
    elif dz:
        out = Split.whole(call.scratch(*call.shape, dtype=call.passed))
    partial = call.scratch(programs, channels, channels) if weight else None
    pointwise = call.prepared.operand
    arguments = {
        "z_ptr": z.hi,
        "z_lo_ptr": z.lo,
        "strength_ptr": call.strength,
        "pointwise_hi_ptr": pointwise.hi,
        "pointwise_lo_ptr": pointwise.lo,
        "pointwise_bias_ptr": call.prepared.bias,
        "norm_weight_ptr": call.prepared.norm,
        "grad_ptr": grad_out,
        "dz_ptr": call.spare(out and out.hi),
        "dz_lo_ptr": call.spare(out and out.lo),
        "PACK": call.packs,
        "heard_ptr": call.spare(normed.heard),
        "restored_ptr": call.spare(normed.restored),
        "dpointwise_ptr": call.spare(partial),
        "dbias_ptr": call.spare(normed.dbias),
        "dnorm_ptr": call.spare(normed.dnorm),
        "tiles": tiles,
        "EPS": call.eps,
        "NEED_DZ": dz,
        "NEED_WEIGHT": weight,
        "NEED_BIAS": bias,
        "NEED_NORM": norm,
        "NEED_HEARD": heard,
        "NEED_RESTORED": restored,
        **moments_arguments(call, moments),
        "PADDED": call.padded,
        "PRECISION": call.operand_precision,
        **call.sizes(),
    }
    launch(joint_backward, (programs,), config, arguments, outputs=block_t * channels, looped=True)
    return Joint(normed, out, partial)
