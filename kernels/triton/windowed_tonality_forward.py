"""The fused forward kernel: resampling, depthwise and pointwise convolution, LayerNorm and blend, in one pass.

Reads the clip, writes the output, and nothing between touches memory. Up to 128 channels, padded to 64 or 128 and
walked in four chunks, so that a tile's registers hold one chunk of the convolution beside the product's accumulator.

One program walks tiles n, n + programs, ... of all windows: the pointwise weight then stays in shared memory. A tile is
BLOCK_T frames, of which the outer HALO on either side only feed the depthwise convolution.
"""

import triton
import triton.language as tl

from .interpolation import channel_offsets, frame_offsets, place_tile, read_window, source_frames
from .loops import runtime_range
from .tonality import depthwise, multiply, split


@triton.jit
def place_frames(
    source_ptr,
    start_ptr,
    ratio_ptr,
    pair,
    t0,
    t,
    T,
    stride_b,
    stride_p,
    P: tl.constexpr,
    W: tl.constexpr,
    STRIDE_T: tl.constexpr,
    RESAMPLE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """(pointer to the tile's base, i, w0, w1) for the frames t of one window, `pair` counting over [B, P]."""
    b = pair // P
    batch_ptr = source_ptr + b.to(tl.int64) * stride_b
    if RESAMPLE:
        window = read_window(start_ptr, ratio_ptr, pair, T, W, COMPUTE)
        tile = place_tile(window, t0, T, COMPUTE)
        i, w0, w1 = source_frames(t, window, tile, W, COMPUTE)
        return batch_ptr + tile[0].to(tl.int64) * STRIDE_T, i, w0, w1
    else:
        unused = tl.zeros((BLOCK_T,), COMPUTE)
        return batch_ptr + (pair - b * P).to(tl.int64) * stride_p, t, unused, unused


@triton.jit
def read_frames(
    source_ptr,
    c,
    i,
    w0,
    w1,
    inside,
    C: tl.constexpr,
    SPAN: tl.constexpr,
    STRIDE_C: tl.constexpr,
    STRIDE_T: tl.constexpr,
    RESAMPLE: tl.constexpr,
):
    """y [BLOCK_T, channels] of frames i, c < SPAN: interpolated, or as they are (0 outside the window)."""
    frame_ptr = source_ptr + channel_offsets(c, C, SPAN, STRIDE_C)[None, :] + frame_offsets(i, STRIDE_T)[:, None]
    if RESAMPLE:
        return tl.load(frame_ptr).to(w0.dtype) * w0[:, None] + tl.load(frame_ptr + STRIDE_T).to(w0.dtype) * w1[:, None]
    else:
        return tl.load(frame_ptr, mask=inside[:, None], other=0.0).to(w0.dtype)


@triton.jit
def windowed_tonality_forward(
    source_ptr,  # x [B, C, T], or y [B, P, C, W] where not RESAMPLE
    start_ptr,  # [B, P]
    ratio_ptr,
    strength_ptr,
    depthwise_ptr,  # this and the next five as `prepare_weights` leaves them; [K, PADDED]
    pointwise_hi_ptr,  # [PADDED, PADDED]
    pointwise_lo_ptr,
    pointwise_bias_ptr,  # [PADDED]
    norm_weight_ptr,
    norm_bias_ptr,
    out_ptr,  # [B, P, C, W]
    T,
    tiles,  # of all windows
    stride_b,  # of source; the strides in capitals are compiled in: as run-time values they cost spills
    stride_p,
    P: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    K: tl.constexpr,
    EPS: tl.constexpr,
    STRIDE_C: tl.constexpr,
    STRIDE_T: tl.constexpr,
    RESAMPLE: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK_T: tl.constexpr,
    HALO: tl.constexpr,
    PRECISION: tl.constexpr,
    COMPUTE: tl.constexpr,
    HOIST: tl.constexpr,
):
    OWN: tl.constexpr = BLOCK_T - 2 * HALO
    BLOCK_C: tl.constexpr = PADDED // 4
    TILES_PER_WINDOW: tl.constexpr = (W + OWN - 1) // OWN
    j = tl.arange(0, BLOCK_T)
    c = tl.arange(0, BLOCK_C)
    out_c = tl.arange(0, PADDED)
    weight_offsets = out_c[None, :] * PADDED + c[:, None]  # [BLOCK_C in, PADDED out]
    bias = tl.load(pointwise_bias_ptr + out_c)
    weights = ()
    if HOIST:
        for n in tl.static_range(4):
            hi = tl.load(pointwise_hi_ptr + weight_offsets + n * BLOCK_C)
            lo = tl.load(pointwise_lo_ptr + weight_offsets + n * BLOCK_C) if PRECISION == "bf16x3" else hi
            weights = weights + ((hi, lo),)
    for tile_id in runtime_range(tl.program_id(0), tiles, tl.num_programs(0), num_stages=1):
        pair = tile_id // TILES_PER_WINDOW
        t0 = (tile_id - pair * TILES_PER_WINDOW) * OWN - HALO
        t = t0 + j
        inside = (t >= 0) & (t < W)
        strength = tl.load(strength_ptr + pair).to(COMPUTE)
        tile_ptr, i, w0, w1 = place_frames(
            source_ptr,
            start_ptr,
            ratio_ptr,
            pair,
            t0,
            t,
            T,
            stride_b,
            stride_p,
            P,
            W,
            STRIDE_T,
            RESAMPLE,
            BLOCK_T,
            COMPUTE,
        )
        u = tl.broadcast_to(bias[None, :], (BLOCK_T, PADDED))
        ys = ()
        for n in tl.static_range(4):
            y = read_frames(tile_ptr, c + n * BLOCK_C, i, w0, w1, inside, C, PADDED, STRIDE_C, STRIDE_T, RESAMPLE)
            z = depthwise(y, c + n * BLOCK_C, j, depthwise_ptr, K, PADDED, BLOCK_C)
            z_hi, z_lo = split(z, PRECISION)
            if HOIST:
                hi, lo = weights[n]
            else:
                hi = tl.load(pointwise_hi_ptr + weight_offsets + n * BLOCK_C)
                lo = tl.load(pointwise_lo_ptr + weight_offsets + n * BLOCK_C) if PRECISION == "bf16x3" else hi
            u = multiply(z_hi, z_lo, hi, lo, u, PRECISION)
            ys = ys + (y,)

        scale = strength * tl.rsqrt(tl.sum(u * u, 1) / C + EPS)  # [BLOCK_T]
        even, odd = tl.split(tl.permute(tl.reshape(u, (BLOCK_T, 2, 2, BLOCK_C)), (0, 3, 1, 2)))
        u0, u2 = tl.split(even)
        u1, u3 = tl.split(odd)
        us = (u0, u1, u2, u3)
        own = (j >= HALO) & (j < BLOCK_T - HALO) & (t < W)
        out_tile_ptr = out_ptr + pair.to(tl.int64) * (C * W)
        for n in tl.static_range(4):
            cn = c + n * BLOCK_C
            gamma = tl.load(norm_weight_ptr + cn)[None, :]
            beta = tl.load(norm_bias_ptr + cn)[None, :]
            out = (1 - strength) * ys[n] + (us[n] * scale[:, None]) * gamma + strength * beta
            mask = own[:, None] & (cn < C)[None, :] if C != PADDED else own[:, None]
            out_offsets = channel_offsets(cn, C, PADDED, W)[None, :] + t[:, None]
            tl.store(out_tile_ptr + out_offsets, out.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def norm_blend(
    source_ptr,  # as above
    start_ptr,
    ratio_ptr,
    strength_ptr,
    u_ptr,  # [B, P, C, W], centred, in COMPUTE
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
    for chunk in tl.range(0, C, BLOCK_C, num_stages=1):
        c = chunk + tl.arange(0, BLOCK_C)
        mask = inside[:, None] & (c < C)[None, :]
        offsets = channel_offsets(c, C, SPAN, W)[None, :] + t[:, None]
        u = tl.load(u_tile_ptr + offsets, mask=mask, other=0.0)
        y = read_frames(tile_ptr, c, i, w0, w1, inside, C, SPAN, STRIDE_C, STRIDE_T, RESAMPLE)
        gamma = tl.load(norm_weight_ptr + c)[None, :]
        beta = tl.load(norm_bias_ptr + c)[None, :]
        out = (1 - strength) * y + (u * scale[:, None]) * gamma + strength * beta
        tl.store(out_tile_ptr + offsets, out.to(out_ptr.dtype.element_ty), mask=mask)
