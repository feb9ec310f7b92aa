"""Backward of the pointwise product and LayerNorm; the formulas stand in `windowed_tonality_backward`.

Persistent programs: each takes every n-th tile of BLOCK_T frames with all channels, keeps its share of the weight
gradients in registers and stores it once, as one partial. `norm_backward` reads the pointwise weight anew for every
tile (64 KB from L2, one instruction per output): kept in registers beside the rest of it, it spills on sm_80.

Operands of the products are stored in scratch as `tonality.multiply` takes them.
"""

import triton
import triton.language as tl

from .interpolation import channel_offsets
from .loops import runtime_range
from .tonality import multiply, split


@triton.jit
def load_split(hi_ptr, lo_ptr, offsets, mask, PRECISION: tl.constexpr):
    """An operand that was stored as `split` gives it."""
    hi = tl.load(hi_ptr + offsets, mask=mask, other=0.0)
    lo = tl.load(lo_ptr + offsets, mask=mask, other=0.0) if PRECISION == "bf16x3" else hi
    return hi, lo


@triton.jit
def norm_backward(
    z_ptr,  # [B, P, C, W]
    z_lo_ptr,
    strength_ptr,  # [B, P]
    pointwise_hi_ptr,  # [PADDED, PADDED] (out, in), centred
    pointwise_lo_ptr,
    pointwise_bias_ptr,  # [PADDED], centred, the depthwise bias folded in
    norm_weight_ptr,  # [PADDED]
    grad_ptr,  # [B, P, C, W]
    du_ptr,  # out: [B, P, C, W]
    du_lo_ptr,
    heard_ptr,  # out: [B, P, W], Σ_c g·γ·n
    dbias_ptr,  # out: [programs, C]
    dnorm_ptr,  # out: [programs, C]
    tiles,  # of all windows
    W: tl.constexpr,
    C: tl.constexpr,
    EPS: tl.constexpr,
    NEED_DU: tl.constexpr,
    NEED_BIAS: tl.constexpr,
    NEED_NORM: tl.constexpr,
    NEED_HEARD: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK_T: tl.constexpr,
    FOLD: tl.constexpr,
    PRECISION: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """u again, then back through LayerNorm: du, Σ_c g·γ·n, and this program's share of dâ and dγ. Grid (programs,)."""
    TILES_PER_WINDOW: tl.constexpr = (W + BLOCK_T - 1) // BLOCK_T
    c = tl.arange(0, PADDED)
    j = tl.arange(0, BLOCK_T)
    bias = tl.load(pointwise_bias_ptr + c)
    weight_offsets = c[None, :] * PADDED + c[:, None]  # [in, out]
    dbias = tl.zeros((BLOCK_T // FOLD, PADDED), COMPUTE)
    dnorm = dbias
    for tile in runtime_range(tl.program_id(0), tiles, tl.num_programs(0), num_stages=1):
        pair = tile // TILES_PER_WINDOW
        t = (tile - pair * TILES_PER_WINDOW) * BLOCK_T + j
        strength = tl.load(strength_ptr + pair).to(COMPUTE)
        mask = (t < W)[:, None]
        if C != PADDED:
            mask = mask & (c < C)[None, :]
        base = pair.to(tl.int64) * (C * W)
        offsets = channel_offsets(c, C, PADDED, W)[None, :] + t[:, None]  # [BLOCK_T, PADDED]
        z_hi, z_lo = load_split(z_ptr + base, z_lo_ptr + base, offsets, mask, PRECISION)
        hi = tl.load(pointwise_hi_ptr + weight_offsets)
        lo = tl.load(pointwise_lo_ptr + weight_offsets) if PRECISION == "bf16x3" else hi
        u = multiply(z_hi, z_lo, hi, lo, tl.broadcast_to(bias[None, :], (BLOCK_T, PADDED)), PRECISION)
        g = tl.load(grad_ptr + base + offsets, mask=mask, other=0.0).to(COMPUTE)
        gamma = tl.load(norm_weight_ptr + c)[None, :]
        inverse = tl.rsqrt(tl.sum(u * u, 1) / C + EPS)  # [BLOCK_T]
        gn = g * (u * inverse[:, None])
        heard = tl.sum(gn * gamma, 1)
        if NEED_HEARD:
            tl.store(heard_ptr + pair.to(tl.int64) * W + t, heard, mask=t < W)
        if NEED_NORM:
            dnorm += strength * tl.sum(tl.reshape(gn, (BLOCK_T // FOLD, FOLD, PADDED)), 1)
        if NEED_DU or NEED_BIAS:
            scale = strength * inverse
            du = (g * gamma) * scale[:, None] - u * (scale * inverse * (heard / C))[:, None]
            if NEED_BIAS:
                dbias += tl.sum(tl.reshape(du, (BLOCK_T // FOLD, FOLD, PADDED)), 1)
            if NEED_DU:
                du_hi, du_lo = split(du, PRECISION)
                tl.store(du_ptr + base + offsets, du_hi, mask=mask)
                if PRECISION == "bf16x3":
                    tl.store(du_lo_ptr + base + offsets, du_lo, mask=mask)
    row = tl.program_id(0).to(tl.int64) * C + c
    if NEED_BIAS:
        tl.store(dbias_ptr + row, tl.sum(dbias, 0), mask=c < C)
    if NEED_NORM:
        tl.store(dnorm_ptr + row, tl.sum(dnorm, 0), mask=c < C)


@triton.jit
def product_backward(
    z_ptr,  # [B, P, C, W]
    z_lo_ptr,
    du_ptr,  # [B, P, C, W]
    du_lo_ptr,
    pointwise_hi_ptr,  # [PADDED, PADDED] (out, in), centred
    pointwise_lo_ptr,
    dz_ptr,  # out: [B, P, C, W]
    dpointwise_ptr,  # out: [programs, C, C]
    tiles,  # of all windows
    W: tl.constexpr,
    C: tl.constexpr,
    NEED_DZ: tl.constexpr,
    NEED_WEIGHT: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK_T: tl.constexpr,
    PRECISION: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """dz = Âᵀ·du and this program's share of dÂ = du·zᵀ: two products, channel-major. Grid (programs,)."""
    TILES_PER_WINDOW: tl.constexpr = (W + BLOCK_T - 1) // BLOCK_T
    c = tl.arange(0, PADDED)
    j = tl.arange(0, BLOCK_T)
    total = tl.zeros((PADDED, PADDED), COMPUTE)
    weight_offsets = c[None, :] * PADDED + c[:, None]  # [in, out]
    hi = tl.load(pointwise_hi_ptr + weight_offsets)
    lo = tl.load(pointwise_lo_ptr + weight_offsets) if PRECISION == "bf16x3" else hi
    for tile in runtime_range(tl.program_id(0), tiles, tl.num_programs(0), num_stages=1):
        pair = tile // TILES_PER_WINDOW
        t = (tile - pair * TILES_PER_WINDOW) * BLOCK_T + j
        mask = (t < W)[None, :]
        if C != PADDED:
            mask = mask & (c < C)[:, None]
        base = pair.to(tl.int64) * (C * W)
        offsets = channel_offsets(c, C, PADDED, W)[:, None] + t[None, :]  # [PADDED, BLOCK_T]
        du_hi, du_lo = load_split(du_ptr + base, du_lo_ptr + base, offsets, mask, PRECISION)
        if NEED_WEIGHT:
            z_hi, z_lo = load_split(z_ptr + base, z_lo_ptr + base, offsets, mask, PRECISION)
            total = multiply(du_hi, du_lo, tl.trans(z_hi), tl.trans(z_lo), total, PRECISION)
        if NEED_DZ:
            dz = multiply(hi, lo, du_hi, du_lo, tl.zeros((PADDED, BLOCK_T), COMPUTE), PRECISION)
            tl.store(dz_ptr + base + offsets, dz.to(dz_ptr.dtype.element_ty), mask=mask)
    if NEED_WEIGHT:
        share = dpointwise_ptr + tl.program_id(0).to(tl.int64) * (C * C)
        mask = (c < C)[:, None] & (c < C)[None, :]
        tl.store(share + c[:, None] * C + c[None, :], total, mask=mask)
