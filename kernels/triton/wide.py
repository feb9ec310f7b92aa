"""More channels than the registers of one program hold: the steps of the fused kernels apart, in blocks of channels.

u, du and dz then pass through memory, and are read once per block of outputs. Products take their operands as
`operands.split` leaves them, so that PyTorch's switch for convolutions decides their precision here as elsewhere.
"""

import triton
import triton.language as tl
from torch import Tensor

from .call import Call, Normed, moments_arguments
from .interpolation import channel_offsets
from .launch import launch
from .loops import runtime_range
from .moments import Moments, load_moments, store_restored
from .operands import Split, load_split, multiply, split
from .source import place_frames, read_frames


@triton.jit
def wide_product(
    a_ptr,  # [B, P, C, W]
    a_lo_ptr,
    weight_ptr,  # [PADDED, PADDED] (out, in)
    weight_lo_ptr,
    bias_ptr,  # [PADDED]
    out_ptr,  # out: [B, P, C, W] in COMPUTE
    W: tl.constexpr,
    C: tl.constexpr,
    TRANSPOSED: tl.constexpr,  # the product with weightᵀ
    BIASED: tl.constexpr,
    PADDED: tl.constexpr,
    PRECISION: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """weight·a + bias for every frame. Grid (tiles of BLOCK_T frames of all windows, blocks of BLOCK_C outputs)."""
    SPAN: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C * BLOCK_C
    TILES: tl.constexpr = (W + BLOCK_T - 1) // BLOCK_T
    pair = tl.program_id(0) // TILES
    t = (tl.program_id(0) - pair * TILES) * BLOCK_T + tl.arange(0, BLOCK_T)
    row = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (t < W)[None, :]
    base = pair.to(tl.int64) * (C * W)
    acc = tl.zeros((BLOCK_C, BLOCK_T), COMPUTE)
    for c0 in runtime_range(0, C, BLOCK_C, num_stages=1):
        c = c0 + tl.arange(0, BLOCK_C)
        offsets = channel_offsets(c, C, SPAN, W)[:, None] + t[None, :]
        a_hi, a_lo = load_split(a_ptr + base, a_lo_ptr + base, offsets, inside & (c < C)[:, None], PRECISION)
        at = c[None, :] * PADDED + row[:, None] if TRANSPOSED else row[:, None] * PADDED + c[None, :]
        hi = tl.load(weight_ptr + at)
        lo = tl.load(weight_lo_ptr + at) if PRECISION == "bf16x3" else hi
        acc = multiply(hi, lo, a_hi, a_lo, acc, PRECISION)
    if BIASED:
        acc += tl.load(bias_ptr + row)[:, None]
    offsets = channel_offsets(row, C, SPAN, W)[:, None] + t[None, :]
    tl.store(out_ptr + base + offsets, acc, mask=inside & (row < C)[:, None])


@triton.jit
def wide_weight(
    du_ptr,  # [B, P, C, W]
    du_lo_ptr,
    z_ptr,  # [B, P, C, W]
    z_lo_ptr,
    partial_ptr,  # out: [shares, C, C] (in, out)
    tiles,  # of all windows
    W: tl.constexpr,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Σ z·duᵀ over every n-th tile of BLOCK_T frames. Grid (shares, blocks of inputs, blocks of outputs)."""
    SPAN: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C * BLOCK_C
    TILES: tl.constexpr = (W + BLOCK_T - 1) // BLOCK_T
    row = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    column = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_C, BLOCK_C), COMPUTE)
    for tile in runtime_range(tl.program_id(0), tiles, tl.num_programs(0), num_stages=1):
        pair = tile // TILES
        t = (tile - pair * TILES) * BLOCK_T + tl.arange(0, BLOCK_T)
        base = pair.to(tl.int64) * (C * W)
        inside = (t < W)[None, :]
        z_offsets = channel_offsets(row, C, SPAN, W)[:, None] + t[None, :]
        du_offsets = channel_offsets(column, C, SPAN, W)[:, None] + t[None, :]
        du_mask = inside & (column < C)[:, None]
        du_hi, du_lo = load_split(du_ptr + base, du_lo_ptr + base, du_offsets, du_mask, PRECISION)
        z_mask = inside & (row < C)[:, None]
        z_hi, z_lo = load_split(z_ptr + base, z_lo_ptr + base, z_offsets, z_mask, PRECISION)
        total = multiply(z_hi, z_lo, tl.trans(du_hi), tl.trans(du_lo), total, PRECISION)
    share_ptr = partial_ptr + tl.program_id(0).to(tl.int64) * (C * C)
    mask = (row < C)[:, None] & (column < C)[None, :]
    tl.store(share_ptr + row[:, None] * C + column[None, :], total, mask=mask)


@triton.jit
def wide_norm_backward(
    u_ptr,  # [B, P, C, W] in COMPUTE
    strength_ptr,  # [B, P]
    norm_weight_ptr,  # [C]
    grad_ptr,  # [B, P, C, W]
    moments_ptr,  # `moments.Moments`
    du_ptr,  # out: [B, P, C, W]
    du_lo_ptr,
    heard_ptr,  # out: [B, P, tiles of a window]
    restored_ptr,  # out: [B, P, 3, W]
    dbias_ptr,  # out: [tiles, C]
    dnorm_ptr,  # out: [tiles, C]
    W: tl.constexpr,
    C: tl.constexpr,
    EPS: tl.constexpr,
    NEED_RESTORED: tl.constexpr,
    RESTORE: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """`norm_backward` with u given, and read twice. Grid (tiles of BLOCK_T frames of all windows,)."""
    SPAN: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C * BLOCK_C
    tiles_of_one = tl.cdiv(W, BLOCK_T)
    pair = tl.program_id(0) // tiles_of_one
    t = (tl.program_id(0) - pair * tiles_of_one) * BLOCK_T + tl.arange(0, BLOCK_T)
    j = tl.arange(0, BLOCK_C)
    base = pair.to(tl.int64) * (C * W)
    strength = tl.load(strength_ptr + pair).to(COMPUTE)
    square = tl.zeros((BLOCK_T, BLOCK_C), COMPUTE)
    gu = square
    sums = square
    for c0 in runtime_range(0, C, BLOCK_C, num_stages=1):
        c = c0 + j
        offs = base + channel_offsets(c, C, SPAN, W)[None, :] + t[:, None]
        mask = (t < W)[:, None] & (c < C)[None, :]
        u = tl.load(u_ptr + offs, mask=mask, other=0.0)
        g = tl.load(grad_ptr + offs, mask=mask, other=0.0).to(COMPUTE)
        square += u * u
        gu += g * u * tl.load(norm_weight_ptr + c, mask=c < C, other=0.0).to(COMPUTE)[None, :]
        if RESTORE:
            sums += g
    inverse = tl.rsqrt(tl.sum(square, 1) / C + EPS)
    heard = tl.sum(gu, 1) * inverse
    if RESTORE:
        mean, spread = load_moments(moments_ptr, pair, t, t < W, W, C, EPS, WIDTH, COMPUTE)
        amount = strength * spread
        level = tl.sum(sums, 1)
        tl.store(heard_ptr + tl.program_id(0), tl.sum(spread * heard + mean * level, 0))
        if NEED_RESTORED:
            store_restored(restored_ptr, pair, t, mean, spread, heard, level, strength, W, C)
    else:
        amount = strength
        tl.store(heard_ptr + tl.program_id(0), tl.sum(heard, 0))
    scale = amount * inverse
    row = tl.program_id(0).to(tl.int64) * C
    for c0 in runtime_range(0, C, BLOCK_C, num_stages=1):
        c = c0 + j
        offs = base + channel_offsets(c, C, SPAN, W)[None, :] + t[:, None]
        mask = (t < W)[:, None] & (c < C)[None, :]
        u = tl.load(u_ptr + offs, mask=mask, other=0.0)
        g = tl.load(grad_ptr + offs, mask=mask, other=0.0).to(COMPUTE)
        gamma = tl.load(norm_weight_ptr + c, mask=c < C, other=0.0).to(COMPUTE)[None, :]
        du = (g * gamma) * scale[:, None] - u * (scale * inverse * (heard / C))[:, None]
        du_hi, du_lo = split(du, PRECISION)
        tl.store(du_ptr + offs, du_hi, mask=mask)
        if PRECISION == "bf16x3":
            tl.store(du_lo_ptr + offs, du_lo, mask=mask)
        tl.store(dbias_ptr + row + c, tl.sum(du, 0), mask=c < C)
        tl.store(dnorm_ptr + row + c, tl.sum(g * u * scale[:, None], 0), mask=c < C)


@triton.jit
def norm_blend(
    source_ptr,  # as above
    start_ptr,
    ratio_ptr,
    strength_ptr,
    u_ptr,  # [B, P, C, W], centred, in COMPUTE
    moments_ptr,  # `moments.Moments`
    norm_weight_ptr,  # [PADDED]
    norm_bias_ptr,
    out_ptr,  # [B, P, C, W]
    T,
    stride_b,
    stride_p,
    P: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    EPS: tl.constexpr,
    STRIDE_C: tl.constexpr,
    STRIDE_T: tl.constexpr,
    RESAMPLE: tl.constexpr,
    RESTORE: tl.constexpr,
    WIDTH: tl.constexpr,  # of a block of moments
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """LayerNorm and blend for any number of channels, u being given. One program per window and BLOCK_T frames."""
    TILES_PER_WINDOW: tl.constexpr = (W + BLOCK_T - 1) // BLOCK_T
    SPAN: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C * BLOCK_C
    pair = tl.program_id(0) // TILES_PER_WINDOW
    t0 = (tl.program_id(0) - pair * TILES_PER_WINDOW) * BLOCK_T
    t = t0 + tl.arange(0, BLOCK_T)
    inside = t < W
    strength = tl.load(strength_ptr + pair).to(COMPUTE)
    tile_ptr, i, w0, w1 = place_frames(
        source_ptr, start_ptr, ratio_ptr, pair, t0, t, T, stride_b, stride_p, P, W, STRIDE_T, RESAMPLE, BLOCK_T, COMPUTE
    )
    u_tile_ptr = u_ptr + pair.to(tl.int64) * (C * W)
    out_tile_ptr = out_ptr + pair.to(tl.int64) * (C * W)
    squares = tl.zeros((BLOCK_T, BLOCK_C), COMPUTE)
    for chunk in tl.range(0, C, BLOCK_C, num_stages=1):
        c = chunk + tl.arange(0, BLOCK_C)
        offsets = channel_offsets(c, C, SPAN, W)[None, :] + t[:, None]
        u = tl.load(u_tile_ptr + offsets, mask=inside[:, None] & (c < C)[None, :], other=0.0)
        squares += u * u
    scale = strength * tl.rsqrt(tl.sum(squares, 1) / C + EPS)
    if RESTORE:
        mean, spread = load_moments(moments_ptr, pair, t, inside, W, C, EPS, WIDTH, COMPUTE)
        scale *= spread
        level = strength * mean
    for chunk in tl.range(0, C, BLOCK_C, num_stages=1):
        c = chunk + tl.arange(0, BLOCK_C)
        mask = inside[:, None] & (c < C)[None, :]
        offsets = channel_offsets(c, C, SPAN, W)[None, :] + t[:, None]
        u = tl.load(u_tile_ptr + offsets, mask=mask, other=0.0)
        y = read_frames(tile_ptr, c, i, w0, w1, inside, C, SPAN, STRIDE_C, STRIDE_T, RESAMPLE)
        gamma = tl.load(norm_weight_ptr + c)[None, :]
        beta = tl.load(norm_bias_ptr + c)[None, :]
        kept = (1 - strength) * y
        if RESTORE:
            kept += level[:, None]
        out = kept + (u * scale[:, None]) * gamma + strength * beta
        tl.store(out_tile_ptr + offsets, out.to(out_ptr.dtype.element_ty), mask=mask)


def product(call: Call, a: Split, *, transposed: bool = False) -> Tensor:
    """Â·a + â `[B, P, C, W]` in the compute dtype; `transposed`: Âᵀ·a."""
    batch, pairs, channels, window = call.shape
    out = call.scratch(*call.shape)
    config = call.configuration("wide_product")
    block_t, block_c = config.constants["BLOCK_T"], config.constants["BLOCK_C"]
    arguments = {
        "a_ptr": a.hi,
        "a_lo_ptr": a.lo,
        "weight_ptr": call.prepared.pointwise.hi,
        "weight_lo_ptr": call.prepared.pointwise.lo,
        "bias_ptr": call.prepared.bias,
        "out_ptr": out,
        "TRANSPOSED": transposed,
        "BIASED": not transposed,
        "PADDED": call.padded,
        "PRECISION": call.precision,
        **call.sizes(),
    }
    grid = (batch * pairs * triton.cdiv(window, block_t), triton.cdiv(channels, block_c))
    launch(wide_product, grid, config, arguments, outputs=block_t * block_c)
    return out


def blend(call: Call, u: Tensor, moments: Moments | None, out: Tensor) -> None:
    """LayerNorm of u and blend, into out."""
    batch, pairs, channels, window = call.shape
    config = call.configuration("norm_blend")
    block_t = config.constants["BLOCK_T"]
    arguments = {
        **call.source.arguments(pairs),
        "strength_ptr": call.strength,
        "u_ptr": u,
        **moments_arguments(call, moments),
        "norm_weight_ptr": call.prepared.norm,
        "norm_bias_ptr": call.prepared.norm_bias,
        "out_ptr": out,
        "EPS": call.eps,
        **call.sizes(),
    }
    programs = batch * pairs * triton.cdiv(window, block_t)
    launch(norm_blend, (programs,), config, arguments, outputs=block_t * channels)


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
    """As `pointwise.norm_gradients`; all but the last, whoever asks."""
    batch, pairs, channels, window = call.shape
    config = call.configuration("wide_norm_backward")
    block_t = config.constants["BLOCK_T"]
    tiles = batch * pairs * triton.cdiv(window, block_t)
    u = product(call, z)
    written, heard_of = call.operand(), call.scratch(batch, pairs, tiles // (batch * pairs))
    dbias, dnorm = call.scratch(tiles, channels), call.scratch(tiles, channels)
    kept = call.scratch(batch, pairs, 3, window) if restored else None
    arguments = {
        "u_ptr": u,
        "strength_ptr": call.strength,
        "norm_weight_ptr": call.prepared.norm,
        "grad_ptr": grad_out,
        "du_ptr": written.hi,
        "du_lo_ptr": written.lo,
        "heard_ptr": heard_of,
        "restored_ptr": call.spare(kept),
        "NEED_RESTORED": restored,
        **moments_arguments(call, moments),
        "dbias_ptr": dbias,
        "dnorm_ptr": dnorm,
        "EPS": call.eps,
        "PRECISION": call.precision,
        **call.sizes(),
    }
    launch(wide_norm_backward, (tiles,), config, arguments, outputs=block_t * channels)
    return Normed(written, heard_of, kept, call.summed(dbias)[None], call.summed(dnorm)[None])


def product_gradients(
    call: Call, z: Split, du: Split, *, dz: bool, weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """As `pointwise.product_gradients`."""
    return product(call, du, transposed=True) if dz else None, weight_gradient(call, du, z) if weight else None


def weight_gradient(call: Call, du: Split, z: Split) -> Tensor:
    """dÂᵀ = Σ z·duᵀ over the frames of all windows, `[shares, C, C]` (in, out), to be summed over shares."""
    batch, pairs, channels, window = call.shape
    config = call.configuration("wide_weight")
    block_t, block_c = config.constants["BLOCK_T"], config.constants["BLOCK_C"]
    tiles = batch * pairs * triton.cdiv(window, block_t)
    blocks = triton.cdiv(channels, block_c)
    shares = min(tiles, max(1, call.target.processors * config.per_processor // blocks**2))
    partial = call.scratch(shares, channels, channels)
    arguments = {
        "du_ptr": du.hi,
        "du_lo_ptr": du.lo,
        "z_ptr": z.hi,
        "z_lo_ptr": z.lo,
        "partial_ptr": partial,
        "tiles": tiles,
        "PRECISION": call.precision,
        **call.sizes(),
    }
    launch(wide_weight, (shares, blocks, blocks), config, arguments, outputs=block_t * block_c, looped=True)
    return partial
