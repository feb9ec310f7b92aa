"""Backward of the fused op: recomputation of the windows, and everything that acts on each channel by itself.

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

    recompute_windows   x -> z                                    scratch
    norm_backward       z, g -> du, Σ_c g·γ·n, partial dâ, dγ     scratch      (`pointwise_backward`)
    product_backward    z, du -> dz, partial dÂ                   scratch      (`pointwise_backward`)
    place_windows       start, ratio -> i, f, ∂p/∂start, ∂p/∂ratio of every frame, once for all channels
    window_backward     x, g, dz -> dy, partial dd_k, dstart, dratio, Σ g·y, Σ_t g
    finish_windows, finish_weights    partial sums -> gradients                (`backward_sums`)
    resample_dx         dy -> dx                                               (`resample`)

The same kernels serve `tonality_blend`: it gives y itself (not RESAMPLE), and dy is its result.

Sums over programs are made from partials in a fixed order: no atomics, so every run gives the same bits.
"""

import triton
import triton.language as tl

from .interpolation import channel_offsets, frame_offsets, place_tile, position_slopes, read_window, source_frames
from .loops import runtime_range
from .tonality import depthwise, split
from .windowed_tonality_forward import place_frames, read_frames


@triton.jit
def fold_rows(q, FOLD: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr):
    """[BLOCK_T // FOLD, BLOCK_C]: sums of FOLD neighbouring frames, which one thread holds."""
    return tl.sum(tl.reshape(q, (BLOCK_T // FOLD, FOLD, BLOCK_C)), 1)


@triton.jit
def fold_channels(q, COLUMNS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr):
    """[BLOCK_T, COLUMNS]: sums of every COLUMNS-th channel, which one thread holds where COLUMNS warps share a tile."""
    return tl.sum(tl.reshape(q, (BLOCK_T, BLOCK_C // COLUMNS, COLUMNS)), 1)


@triton.jit
def recompute_windows(
    source_ptr,  # x [B, C, T], or y [B, P, C, W] where not RESAMPLE
    start_ptr,  # [B, P]
    ratio_ptr,
    depthwise_ptr,  # [K, PADDED]
    z_ptr,  # out: [B, P, C, W], its dtype decides the rounding
    z_lo_ptr,  # out: z − hi, only for "bf16x3"
    T,
    stride_b,
    stride_p,
    P: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    K: tl.constexpr,
    STRIDE_C: tl.constexpr,
    STRIDE_T: tl.constexpr,
    RESAMPLE: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    HALO: tl.constexpr,
    PRECISION: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """z without its bias. Grid (tiles of BLOCK_T − 2·HALO frames of all windows, chunks of BLOCK_C channels)."""
    OWN: tl.constexpr = BLOCK_T - 2 * HALO
    TILES_PER_WINDOW: tl.constexpr = (W + OWN - 1) // OWN
    SPAN: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C * BLOCK_C
    pair = tl.program_id(0) // TILES_PER_WINDOW
    t0 = (tl.program_id(0) - pair * TILES_PER_WINDOW) * OWN - HALO
    j = tl.arange(0, BLOCK_T)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    t = t0 + j
    inside = (t >= 0) & (t < W)
    tile_ptr, i, w0, w1 = place_frames(
        source_ptr, start_ptr, ratio_ptr, pair, t0, t, T, stride_b, stride_p, P, W, STRIDE_T, RESAMPLE, BLOCK_T, COMPUTE
    )
    y = read_frames(tile_ptr, c, i, w0, w1, inside, C, SPAN, STRIDE_C, STRIDE_T, RESAMPLE)
    z = depthwise(y, c, j, depthwise_ptr, K, PADDED, BLOCK_C)
    own = ((j >= HALO) & (j < BLOCK_T - HALO) & (t < W))[:, None]
    mask = own & (c < C)[None, :] if C != SPAN else own
    base = pair.to(tl.int64) * (C * W)
    offsets = channel_offsets(c, C, SPAN, W)[None, :] + t[:, None]
    hi, lo = split(z, PRECISION)
    tl.store(z_ptr + base + offsets, hi, mask=mask)
    if PRECISION == "bf16x3":
        tl.store(z_lo_ptr + base + offsets, lo, mask=mask)


@triton.jit
def place_windows(
    start_ptr,  # [B, P]
    ratio_ptr,
    index_ptr,  # out: [B, P, W] int32, i
    fraction_ptr,  # out: [B, P, W], f
    along_start_ptr,  # out: [B, P, W], ∂p/∂start
    along_ratio_ptr,  # out: [B, P, W], ∂p/∂ratio
    T,
    W: tl.constexpr,
    NEED_PLACE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Where the frames of a window lie. Grid (tiles of BLOCK_T frames of all windows,)."""
    TILES_PER_WINDOW: tl.constexpr = (W + BLOCK_T - 1) // BLOCK_T
    pair = tl.program_id(0) // TILES_PER_WINDOW
    t0 = (tl.program_id(0) - pair * TILES_PER_WINDOW) * BLOCK_T
    t = t0 + tl.arange(0, BLOCK_T)
    window = read_window(start_ptr, ratio_ptr, pair, T, W, COMPUTE)
    tile = place_tile(window, t0, T, COMPUTE)
    i, _, w1 = source_frames(t, window, tile, W, COMPUTE)
    offsets = pair.to(tl.int64) * W + t
    tl.store(index_ptr + offsets, tile[0] + i, mask=t < W)
    tl.store(fraction_ptr + offsets, w1, mask=t < W)
    if NEED_PLACE:
        along_start, along_ratio = position_slopes(t, window, tile, T, W, COMPUTE)
        tl.store(along_start_ptr + offsets, along_start, mask=t < W)
        tl.store(along_ratio_ptr + offsets, along_ratio, mask=t < W)


@triton.jit
def window_backward(
    source_ptr,  # x [B, C, T], or y [B, P, C, W] where not RESAMPLE
    index_ptr,  # this and the next three as `place_windows` leaves them
    fraction_ptr,
    along_start_ptr,
    along_ratio_ptr,
    strength_ptr,  # [B, P]
    depthwise_ptr,  # [K, PADDED]
    grad_ptr,  # [B, P, C, W]
    dz_ptr,  # [B, P, C, W]
    dy_ptr,  # out: [B, P, C, W]
    taps_ptr,  # out: [B, P, K, C], partial depthwise weight gradients
    sums_ptr,  # out: [B, P, C], Σ_t g
    scalars_ptr,  # out: [B, P, chunks, 3], partial dstart, dratio and Σ g·y
    stride_b,
    stride_p,
    P: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    K: tl.constexpr,
    STRIDE_C: tl.constexpr,
    STRIDE_T: tl.constexpr,
    RESAMPLE: tl.constexpr,
    NEED_DY: tl.constexpr,
    NEED_PLACE: tl.constexpr,  # dstart, dratio
    NEED_TAPS: tl.constexpr,
    NEED_BLEND: tl.constexpr,  # Σ g·y, for strength
    NEED_SUMS: tl.constexpr,  # Σ_t g, for strength and β
    PADDED: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    HALO: tl.constexpr,
    FOLD: tl.constexpr,
    COLUMNS: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """One window and BLOCK_C of its channels, all frames in turn. Grid (B·P, chunks of BLOCK_C channels)."""
    OWN: tl.constexpr = BLOCK_T - 2 * HALO
    CONVOLVE: tl.constexpr = NEED_DY or NEED_PLACE
    READ: tl.constexpr = NEED_PLACE or NEED_TAPS or NEED_BLEND
    SPAN: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C * BLOCK_C
    pair = tl.program_id(0)
    chunk = tl.program_id(1)
    b = pair // P
    j = tl.arange(0, BLOCK_T)
    c = chunk * BLOCK_C + tl.arange(0, BLOCK_C)
    real = (c < C)[None, :]
    strength = tl.load(strength_ptr + pair).to(COMPUTE)
    rows = tl.zeros((BLOCK_T // FOLD, BLOCK_C), COMPUTE)
    columns = tl.zeros((BLOCK_T, COLUMNS), COMPUTE)
    by_g = rows
    by_y, by_start, by_ratio = columns, columns, columns
    taps = ()
    by_tap = ()
    for k in tl.static_range(K):
        taps = taps + (tl.load(depthwise_ptr + k * PADDED + c)[None, :],)
        by_tap = by_tap + (rows,)
    source_ptr += b.to(tl.int64) * stride_b
    if not RESAMPLE:
        source_ptr += (pair - b * P).to(tl.int64) * stride_p
    index_ptr += pair.to(tl.int64) * W
    fraction_ptr += pair.to(tl.int64) * W
    along_start_ptr += pair.to(tl.int64) * W
    along_ratio_ptr += pair.to(tl.int64) * W
    channel = channel_offsets(c, C, SPAN, W)[None, :]
    source_channel = channel_offsets(c, C, SPAN, STRIDE_C)[None, :]
    base = pair.to(tl.int64) * (C * W)
    grad_ptr += base
    dz_ptr += base
    dy_ptr += base
    for t0 in runtime_range(-HALO, W - HALO, OWN, num_stages=1):
        t = t0 + j
        own = (j >= HALO) & (j < BLOCK_T - HALO) & (t < W)
        inside = ((t >= 0) & (t < W))[:, None]
        mask = own[:, None]
        if C != SPAN:
            inside = inside & real
            mask = mask & real
        offsets = channel + t[:, None]  # [BLOCK_T, BLOCK_C]
        g = tl.load(grad_ptr + offsets, mask=mask, other=0.0).to(COMPUTE)
        if READ and RESAMPLE:
            i = tl.max_contiguous(tl.load(index_ptr + t, mask=own, other=0), 2)  # see `source_frames`
            w1 = tl.load(fraction_ptr + t, mask=own, other=0.0)
            w0 = tl.where(own, 1.0 - w1, 0.0)
            frame_ptr = source_ptr + source_channel + frame_offsets(i, STRIDE_T)[:, None]
            x0 = tl.load(frame_ptr).to(COMPUTE)
            x1 = tl.load(frame_ptr + STRIDE_T).to(COMPUTE)
            y = x0 * w0[:, None] + x1 * w1[:, None]
        elif READ:
            frame_ptr = source_ptr + source_channel + frame_offsets(t, STRIDE_T)[:, None]
            y = tl.load(frame_ptr, mask=mask, other=0.0).to(COMPUTE)
        if NEED_BLEND:
            by_y += fold_channels(g * y, COLUMNS, BLOCK_T, BLOCK_C)
        if NEED_SUMS:
            by_g += fold_rows(g, FOLD, BLOCK_T, BLOCK_C)
        if CONVOLVE or NEED_TAPS:
            dz = tl.load(dz_ptr + offsets, mask=inside, other=0.0).to(COMPUTE)
            dy = (1 - strength) * g
            summed = ()
            for k in tl.static_range(K):
                if k == K // 2:
                    shifted = dz
                else:
                    row = (j + (K // 2 - k)) & (BLOCK_T - 1)
                    shifted = tl.gather(dz, tl.broadcast_to(row[:, None], (BLOCK_T, BLOCK_C)), 0)
                if CONVOLVE:
                    dy += taps[k] * shifted
                if NEED_TAPS:
                    partial = by_tap[k] + fold_rows(y * shifted, FOLD, BLOCK_T, BLOCK_C)
                    summed = summed + (partial,)
            if NEED_TAPS:
                by_tap = summed
            if NEED_DY:
                tl.store(dy_ptr + offsets, dy.to(dy_ptr.dtype.element_ty), mask=mask)
            if NEED_PLACE:
                by_p = fold_channels(dy * (x1 - x0), COLUMNS, BLOCK_T, BLOCK_C)
                by_start += by_p * tl.load(along_start_ptr + t, mask=own, other=0.0)[:, None]
                by_ratio += by_p * tl.load(along_ratio_ptr + t, mask=own, other=0.0)[:, None]
    scalars = scalars_ptr + (pair.to(tl.int64) * tl.num_programs(1) + chunk) * 3
    if NEED_PLACE:
        tl.store(scalars, tl.sum(tl.sum(by_start, 0), 0))
        tl.store(scalars + 1, tl.sum(tl.sum(by_ratio, 0), 0))
    if NEED_BLEND:
        tl.store(scalars + 2, tl.sum(tl.sum(by_y, 0), 0))
    if NEED_SUMS:
        tl.store(sums_ptr + pair.to(tl.int64) * C + c, tl.sum(by_g, 0), mask=c < C)
    if NEED_TAPS:
        for k in tl.static_range(K):
            tl.store(taps_ptr + (pair.to(tl.int64) * K + k) * C + c, tl.sum(by_tap[k], 0), mask=c < C)
