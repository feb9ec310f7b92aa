"""Backward of the pointwise product and LayerNorm: z and g to du, du to dz; `transform` states the formulas.

Persistent programs: each takes every n-th tile of BLOCK_T frames with all channels, keeps its share of the weight
gradients in registers and stores it once, as one partial. Tiles are plain loads, fetched STAGES − 1 tiles ahead: with
eight warps on a processor these kernels would otherwise wait for memory most of the time.

Operands of the products are stored in scratch as `operands.multiply` takes them.
"""

import triton
import triton.language as tl
from torch import Tensor

from .call import Call, Normed, moments_arguments
from .configurations import Target
from .interpolation import channel_offsets
from .launch import launch
from .loops import runtime_range
from .moments import Moments, load_moments, store_restored
from .operands import Split, load_split, multiply, split


@triton.jit
def fold_frames(q, FOLD: tl.constexpr, APART: tl.constexpr, BLOCK_T: tl.constexpr, PADDED: tl.constexpr):
    """[BLOCK_T // (FOLD·APART), APART, PADDED]: sums of FOLD frames, each APART frames from the next.

    Where one thread holds them the sum costs additions alone: 4 neighbours of a loaded tile, or, of what tensor cores
    return, 2 frames that are 8 apart.
    """
    return tl.sum(tl.reshape(q, (BLOCK_T // (FOLD * APART), FOLD, APART, PADDED)), 1)


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
    moments_ptr,  # `moments.Moments`
    du_ptr,  # out: [B, P, C, W]
    du_lo_ptr,
    heard_ptr,  # out: [B, P, tiles of a window], Σ g·(v − β)
    restored_ptr,  # out: [B, P, 3, W]: m, and by what dy grows: s·mean_c g, and s·mean_c(g·γ·n)/σ for each y − m
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
    NEED_RESTORED: tl.constexpr,
    RESTORE: tl.constexpr,
    WIDTH: tl.constexpr,  # of a block of moments
    PADDED: tl.constexpr,
    BLOCK_T: tl.constexpr,
    FOLD: tl.constexpr,
    APART: tl.constexpr,
    HOIST: tl.constexpr,  # the weight is read once; else anew for every tile (64 KB from L2), in fewer registers
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """u again, then back through LayerNorm: du, Σ g·(v − β) of each tile, this program's share of dâ and dγ.

    Grid (programs,).
    """
    TILES_PER_WINDOW: tl.constexpr = (W + BLOCK_T - 1) // BLOCK_T
    c = tl.arange(0, PADDED)
    j = tl.arange(0, BLOCK_T)
    bias = tl.load(pointwise_bias_ptr + c)
    weight_offsets = c[None, :] * PADDED + c[:, None]  # [in, out]
    dbias = tl.zeros((BLOCK_T // (FOLD * APART), APART, PADDED), COMPUTE)
    dnorm = dbias
    if HOIST:
        hi = tl.load(pointwise_hi_ptr + weight_offsets)
        lo = tl.load(pointwise_lo_ptr + weight_offsets) if PRECISION == "bf16x3" else hi
    for n in runtime_range(tl.program_id(0), tiles, tl.num_programs(0), num_stages=STAGES):
        tile = tiles - 1 - n  # the newest first, see `transform`
        pair = tile // TILES_PER_WINDOW
        t = (tile - pair * TILES_PER_WINDOW) * BLOCK_T + j
        strength = tl.load(strength_ptr + pair).to(COMPUTE)
        mask = (t < W)[:, None]
        if C != PADDED:
            mask = mask & (c < C)[None, :]
        base = pair.to(tl.int64) * (C * W)
        offsets = channel_offsets(c, C, PADDED, W)[None, :] + t[:, None]  # [BLOCK_T, PADDED]
        z_hi, z_lo = load_split(z_ptr + base, z_lo_ptr + base, offsets, mask, PRECISION)
        if not HOIST:
            hi = tl.load(pointwise_hi_ptr + weight_offsets)
            lo = tl.load(pointwise_lo_ptr + weight_offsets) if PRECISION == "bf16x3" else hi
        u = multiply(z_hi, z_lo, hi, lo, tl.broadcast_to(bias[None, :], (BLOCK_T, PADDED)), PRECISION)
        g = tl.load(grad_ptr + base + offsets, mask=mask, other=0.0).to(COMPUTE)
        gamma = tl.load(norm_weight_ptr + c)[None, :]
        inverse = tl.rsqrt(tl.sum(u * u, 1) / C + EPS)  # [BLOCK_T]
        gn = g * (u * inverse[:, None])
        heard = tl.sum(gn * gamma, 1)
        if RESTORE:
            mean, spread = load_moments(moments_ptr, pair, t, t < W, W, C, EPS, WIDTH, COMPUTE)
            amount = strength * spread  # [BLOCK_T]
            if NEED_HEARD or NEED_RESTORED:
                level = tl.sum(g, 1)
            if NEED_RESTORED:
                store_restored(restored_ptr, pair, t, mean, spread, heard, level, strength, W, C)
            if NEED_HEARD:
                tl.store(heard_ptr + tile, tl.sum(spread * heard + mean * level, 0))
            if NEED_NORM:
                dnorm += fold_frames(gn * amount[:, None], FOLD, APART, BLOCK_T, PADDED)
        else:
            amount = strength
            if NEED_HEARD:
                tl.store(heard_ptr + tile, tl.sum(heard, 0))
            if NEED_NORM:
                dnorm += strength * fold_frames(gn, FOLD, APART, BLOCK_T, PADDED)
        if NEED_DU or NEED_BIAS:
            scale = amount * inverse
            du = (g * gamma) * scale[:, None] - u * (scale * inverse * (heard / C))[:, None]
            if NEED_BIAS:
                dbias += fold_frames(du, FOLD, APART, BLOCK_T, PADDED)
            if NEED_DU:
                du_hi, du_lo = split(du, PRECISION)
                tl.store(du_ptr + base + offsets, du_hi, mask=mask)
                if PRECISION == "bf16x3":
                    tl.store(du_lo_ptr + base + offsets, du_lo, mask=mask)
    row = tl.program_id(0).to(tl.int64) * C + c
    if NEED_BIAS:
        tl.store(dbias_ptr + row, tl.sum(tl.sum(dbias, 0), 0), mask=c < C)
    if NEED_NORM:
        tl.store(dnorm_ptr + row, tl.sum(tl.sum(dnorm, 0), 0), mask=c < C)


@triton.jit
def product_backward(
    z_ptr,  # [B, P, C, W]
    z_lo_ptr,
    du_ptr,  # [B, P, C, W]
    du_lo_ptr,
    pointwise_hi_ptr,  # [PADDED, PADDED] (out, in), centred
    pointwise_lo_ptr,
    dz_ptr,  # out: [B, P, C, W]
    dpointwise_ptr,  # out: [programs, C, C] (in, out)
    tiles,  # of all windows
    W: tl.constexpr,
    C: tl.constexpr,
    NEED_DZ: tl.constexpr,
    NEED_WEIGHT: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK_T: tl.constexpr,
    TURN: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """dz = Âᵀ·du and this program's share of dÂᵀ = z·duᵀ: two products, channel-major. Grid (programs,).

    TURN: dz comes as dzᵀ = duᵀ·Â. In TF32 tensor cores take a second operand from shared memory only with channels
    next to each other, which du's frames would have to be scattered for, eight to a bank. The first one may come out
    of registers, as one that is computed does: hence the multiplication by a 1 that is known at run time only.
    """
    TILES_PER_WINDOW: tl.constexpr = (W + BLOCK_T - 1) // BLOCK_T
    c = tl.arange(0, PADDED)
    j = tl.arange(0, BLOCK_T)
    total = tl.zeros((PADDED, PADDED), COMPUTE)
    if TURN:
        weight_offsets = c[:, None] * PADDED + c[None, :]  # [out, in]
    else:
        weight_offsets = c[None, :] * PADDED + c[:, None]  # [in, out]
    hi = tl.load(pointwise_hi_ptr + weight_offsets)
    lo = tl.load(pointwise_lo_ptr + weight_offsets) if PRECISION == "bf16x3" else hi
    one = tl.where(tiles > 0, 1.0, 0.0).to(hi.dtype)
    channel = channel_offsets(c, C, PADDED, W)
    for tile in runtime_range(tl.program_id(0), tiles, tl.num_programs(0), num_stages=STAGES):
        pair = tile // TILES_PER_WINDOW
        t = (tile - pair * TILES_PER_WINDOW) * BLOCK_T + j
        mask = (t < W)[None, :]
        if C != PADDED:
            mask = mask & (c < C)[:, None]
        base = pair.to(tl.int64) * (C * W)
        offsets = channel[:, None] + t[None, :]  # [PADDED, BLOCK_T]
        du_hi, du_lo = load_split(du_ptr + base, du_lo_ptr + base, offsets, mask, PRECISION)
        if NEED_WEIGHT:
            z_hi, z_lo = load_split(z_ptr + base, z_lo_ptr + base, offsets, mask, PRECISION)
            if PRECISION == "fp64":  # the other way round it spills
                total = multiply(du_hi, du_lo, tl.trans(z_hi), tl.trans(z_lo), total, PRECISION)
            else:
                total = multiply(z_hi, z_lo, tl.trans(du_hi), tl.trans(du_lo), total, PRECISION)
        if NEED_DZ:
            if TURN:
                turned_hi = tl.trans(du_hi) * one
                turned_lo = tl.trans(du_lo) * one
                dz = multiply(turned_hi, turned_lo, hi, lo, tl.zeros((BLOCK_T, PADDED), COMPUTE), PRECISION)
                dz = tl.trans(dz)
            else:
                dz = multiply(hi, lo, du_hi, du_lo, tl.zeros((PADDED, BLOCK_T), COMPUTE), PRECISION)
            tl.store(dz_ptr + base + offsets, dz.to(dz_ptr.dtype.element_ty), mask=mask)
    if NEED_WEIGHT:
        share = dpointwise_ptr + tl.program_id(0).to(tl.int64) * (C * C)
        mask = (c < C)[:, None] & (c < C)[None, :]
        if PRECISION == "fp64":
            tl.store(share + c[None, :] * C + c[:, None], total, mask=mask)
        else:
            tl.store(share + c[:, None] * C + c[None, :], total, mask=mask)


def norm_gradients(
    call: Call,
    grad_out: Tensor,
    z: Split,
    moments: Moments | None,
    *,
    du: bool,
    bias: bool,
    norm: bool,
    heard: bool,
    restored: bool,
) -> Normed:
    """du, partial sums for dâ, dγ and dstrength, and what restoring adds to dy."""
    batch, pairs, channels, window = call.shape
    config = call.configuration("norm_backward")
    block_t = config.constants["BLOCK_T"]
    tiles = batch * pairs * triton.cdiv(window, block_t)
    programs = min(tiles, call.target.processors * config.per_processor)
    out = Normed(
        du=call.operand() if du else None,
        heard=call.scratch(batch, pairs, tiles // (batch * pairs)) if heard else None,
        restored=call.scratch(batch, pairs, 3, window) if restored else None,
        dbias=call.scratch(programs, channels) if bias else None,
        dnorm=call.scratch(programs, channels) if norm else None,
    )
    written = out.du or z
    arguments = {
        "z_ptr": z.hi,
        "z_lo_ptr": z.lo,
        "strength_ptr": call.strength,
        "pointwise_hi_ptr": call.prepared.pointwise.hi,
        "pointwise_lo_ptr": call.prepared.pointwise.lo,
        "pointwise_bias_ptr": call.prepared.bias,
        "norm_weight_ptr": call.prepared.norm,
        "grad_ptr": grad_out,
        "du_ptr": written.hi,
        "du_lo_ptr": written.lo,
        "heard_ptr": call.spare(out.heard),
        "restored_ptr": call.spare(out.restored),
        "dbias_ptr": call.spare(out.dbias),
        "dnorm_ptr": call.spare(out.dnorm),
        "tiles": tiles,
        "EPS": call.eps,
        "NEED_DU": du,
        "NEED_BIAS": bias,
        "NEED_NORM": norm,
        "NEED_HEARD": heard,
        "NEED_RESTORED": restored,
        **moments_arguments(call, moments),
        "PADDED": call.padded,
        "PRECISION": call.precision,
        **call.sizes(),
    }
    launch(norm_backward, (programs,), config, arguments, outputs=block_t * channels, looped=True)
    return out


def product_gradients(
    call: Call, z: Split, du: Split, *, dz: bool, weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """dz [B, P, C, W], and dÂᵀ [rows, C, C] (in, out), to be summed over rows, as far as asked for."""
    batch, pairs, channels, window = call.shape
    config = call.configuration("product_backward")
    block_t = config.constants["BLOCK_T"]
    tiles = batch * pairs * triton.cdiv(window, block_t)
    programs = min(tiles, call.target.processors * config.per_processor)
    out = call.scratch(*call.shape, dtype=call.passed) if dz else None
    partial = call.scratch(programs, channels, channels) if weight else None
    arguments = {
        "z_ptr": z.hi,
        "z_lo_ptr": z.lo,
        "du_ptr": du.hi,
        "du_lo_ptr": du.lo,
        "pointwise_hi_ptr": call.prepared.pointwise.hi,
        "pointwise_lo_ptr": call.prepared.pointwise.lo,
        "dz_ptr": call.spare(out),
        "dpointwise_ptr": call.spare(partial),
        "tiles": tiles,
        "PADDED": call.padded,
        "PRECISION": call.precision,
        **call.sizes(),
    }
    steps = [(dz, weight)]
    if dz and weight and not products_together(call.target, call.precision):
        steps = [(True, False), (False, True)]
    for need_dz, need_weight in steps:
        arguments |= {"NEED_DZ": need_dz, "NEED_WEIGHT": need_weight}
        launch(product_backward, (programs,), config, arguments, outputs=block_t * channels, looped=True)
    return out, partial


def products_together(target: Target, precision: str) -> bool:
    """Whether one launch computes dz and dÂ: elsewhere than on sm_90, and in float64, its registers do not suffice."""
    return target.arch != 80 and precision != "fp64"
