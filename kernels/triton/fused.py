"""The fused forward kernel: resampling, depthwise and pointwise convolution, LayerNorm and blend, in one pass.

Reads the clip, writes the output, and nothing between touches memory. Up to 128 channels, padded to 64 or 128 and
walked in four chunks, so that a tile's registers hold one chunk of the convolution beside the product's accumulator.

One program walks tiles n, n + programs, ... of all windows: the pointwise weight then stays in shared memory. It
prepares it there itself where PREPARE, and the rest of the weights in memory of its own (`prepare_within`): a launch
for that alone takes 4 us (measured). What the backward pass wants of it, the last one keeps.

A tile is BLOCK_T frames, of which the outer HALO on either side only feed the depthwise convolution. Windows stand in
one row, JOINED − W ≥ K // 2 frames of padding after each, and a tile may hold the end of one and the beginning of the
next: were each window a whole number of tiles, B = 32, P = 3 and W = 800 would give 672, six rounds of 132 programs. It
gives 644.

Channels are read while those before them are convolved, and the next tile's first while this one is finished: before
channels AHEAD·BLOCK_C are stored. 4: nothing is read ahead, which takes fewer registers. Before channels FETCH·BLOCK_C
are convolved, the next tile's cache lines are asked for, by every fourth frame; 4: not at all.

Channels stand in an order of the kernel's own: within a chunk, 0, 4, 8, ..., then 1, 5, 9, ... A warp holds all frames
of every (BLOCK_C / 4)th, so that those of a thread are four neighbours, and taps, γ and β of these are one load, not
four: 1.5 of 16.8 wavefronts an output.
"""

import triton
import triton.language as tl
from torch import Tensor

from ..weights import Weights
from .call import Call
from .depthwise import depthwise_folded
from .interpolation import channel_offsets
from .launch import FUSED_CHANNELS, launch
from .loops import runtime_range
from .moments import tile_moments
from .operands import multiply, split
from .prepare import prepare, prepare_within, weight_arguments
from .source import interpolated, place_joined, prefetch_joined, read_at


@triton.jit
def tile_frames(tile_id, j, OWN: tl.constexpr, HALO: tl.constexpr, JOINED: tl.constexpr):
    """(pair, t0, t, second): a tile's frames are those of window `pair` from t0 on, or of the next one where second."""
    first = tile_id.to(tl.int64) * OWN
    pair = (first // JOINED).to(tl.int32)
    t0 = (first - pair.to(tl.int64) * JOINED).to(tl.int32) - HALO
    second = t0 + j >= JOINED
    return pair, t0, t0 + j - tl.where(second, JOINED, 0), second


@triton.jit
def by_fours(row_ptr, BLOCK_C: tl.constexpr):
    """Numbers of BLOCK_C channels, in the kernel's order: four neighbours to a thread, read in one."""
    GROUPS: tl.constexpr = BLOCK_C // 4
    four = tl.arange(0, GROUPS)[:, None] * 4 + tl.arange(0, 4)[None, :]
    return tl.reshape(tl.trans(tl.load(row_ptr + four)), (BLOCK_C,))


@triton.jit
def turned_weight(a, BLOCK_C: tl.constexpr):
    """[BLOCK_C in, 4·BLOCK_C out] of the pointwise weight [out, in], outputs in the kernel's order."""
    GROUPS: tl.constexpr = BLOCK_C // 4
    fives = tl.permute(tl.reshape(a, (4, GROUPS, 4, GROUPS, 4)), (3, 4, 0, 2, 1))
    return tl.reshape(fives, (BLOCK_C, 4 * BLOCK_C))


@triton.jit
def windowed_tonality_forward(
    source_ptr,  # x [B, C, T], or y [B, P, C, W] where not RESAMPLE
    start_ptr,  # [B, P]
    ratio_ptr,
    strength_ptr,
    depthwise_weight_ptr,  # this and the next ten as in `prepare_weights`
    depthwise_bias_ptr,
    pointwise_weight_ptr,
    pointwise_bias_ptr,
    norm_weight_ptr,
    norm_bias_ptr,
    vectors_ptr,
    hi_ptr,
    lo_ptr,
    half_hi_ptr,
    half_lo_ptr,
    own_ptr,  # scratch where PREPARE: [programs, 3 + K, PADDED], what each prepares for itself
    out_ptr,  # [B, P, C, W]
    T,
    tiles,  # of all windows
    pairs,  # B·P
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
    RESTORE: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK_T: tl.constexpr,
    HALO: tl.constexpr,
    JOINED: tl.constexpr,
    PRECISION: tl.constexpr,
    COMPUTE: tl.constexpr,
    PREPARE: tl.constexpr,
    KEEP: tl.constexpr,  # what was prepared, for the backward pass
    AHEAD: tl.constexpr,
    FETCH: tl.constexpr,
):
    OWN: tl.constexpr = BLOCK_T - 2 * HALO
    BLOCK_C: tl.constexpr = PADDED // 4
    j = tl.arange(0, BLOCK_T)
    q = tl.arange(0, BLOCK_C)
    c = (q & (BLOCK_C // 4 - 1)) * 4 + q // (BLOCK_C // 4)  # of a chunk, in the kernel's order
    out_c = tl.arange(0, PADDED)
    weights = ()
    if PREPARE:
        last = tl.program_id(0) == tl.num_programs(0) - 1  # which often has a tile less to do
        mine_ptr = own_ptr + tl.program_id(0).to(tl.int64) * ((3 + K) * PADDED)
        vectors_ptr = tl.where(last, vectors_ptr, mine_ptr) if KEEP else mine_ptr
        operands = prepare_within(
            depthwise_weight_ptr, depthwise_bias_ptr, pointwise_weight_ptr, pointwise_bias_ptr, norm_weight_ptr,
            norm_bias_ptr, vectors_ptr, hi_ptr, lo_ptr, half_hi_ptr, half_lo_ptr, last, C, K, PADDED, KEEP, PRECISION,
            COMPUTE,
        )  # fmt: skip
        for n in tl.static_range(4):
            hi = turned_weight(operands[n][0], BLOCK_C)
            weights = weights + ((hi, turned_weight(operands[n][1], BLOCK_C) if PRECISION == "bf16x3" else hi),)
    wide_c = c.to(tl.int64)  # in 64 bits, constants in an offset become part of the load
    if AHEAD < 4:
        pair, t0, t, second = tile_frames(tl.program_id(0), j, OWN, HALO, JOINED)
        frame_ptr, w0, w1 = place_joined(
            source_ptr, start_ptr, ratio_ptr, pair, pairs, second, t0, t, T, stride_b, stride_p,
            P, W, STRIDE_T, RESAMPLE, COMPUTE,
        )  # fmt: skip
        read = read_at(frame_ptr, wide_c, (t >= 0) & (t < W), C, PADDED, STRIDE_C, STRIDE_T, RESAMPLE)
    for tile_id in runtime_range(tl.program_id(0), tiles, tl.num_programs(0), num_stages=1):
        pair, t0, t, second = tile_frames(tile_id, j, OWN, HALO, JOINED)
        next_id = tl.minimum(tile_id + tl.num_programs(0), tiles - 1)
        inside = (t >= 0) & (t < W)
        next_strength = tl.load(strength_ptr + tl.minimum(pair + 1, pairs - 1))
        strength = tl.where(second, next_strength, tl.load(strength_ptr + pair)).to(COMPUTE)
        if AHEAD == 4:
            frame_ptr, w0, w1 = place_joined(
                source_ptr, start_ptr, ratio_ptr, pair, pairs, second, t0, t, T, stride_b, stride_p,
                P, W, STRIDE_T, RESAMPLE, COMPUTE,
            )  # fmt: skip
            read = read_at(frame_ptr, wide_c, inside, C, PADDED, STRIDE_C, STRIDE_T, RESAMPLE)
        bias = tl.reshape(tl.load(vectors_ptr + out_c), (4, BLOCK_C // 4, 4))
        bias = tl.reshape(tl.permute(bias, (0, 2, 1)), (PADDED,))
        u = tl.broadcast_to(bias[None, :], (BLOCK_T, PADDED))
        ys = ()
        for n in tl.static_range(4):
            if n == FETCH and RESAMPLE and STRIDE_T == 1:
                later, _, later_t, later_second = tile_frames(
                    next_id, tl.arange(0, BLOCK_T // 4) * 4, OWN, HALO, JOINED
                )
                prefetch_joined(
                    source_ptr, start_ptr, ratio_ptr, later, pairs, later_second, later_t, out_c.to(tl.int64), T,
                    stride_b, P, C, PADDED, STRIDE_C,
                )  # fmt: skip
            if AHEAD == 4 and n > 0:
                read = read_at(frame_ptr, wide_c + n * BLOCK_C, inside, C, PADDED, STRIDE_C, STRIDE_T, RESAMPLE)
            now = read
            if AHEAD < 4 and n < 3:  # the next channels are on their way while these are convolved
                read = read_at(frame_ptr, wide_c + (n + 1) * BLOCK_C, inside, C, PADDED, STRIDE_C, STRIDE_T, RESAMPLE)
            y = interpolated(now, w0, w1, RESAMPLE)
            taps = ()
            for k in tl.static_range(K):
                taps = taps + (by_fours(vectors_ptr + (3 + k) * PADDED + n * BLOCK_C, BLOCK_C),)
            z = depthwise_folded(y, taps, K)
            # inputs of the product in their own order, so that the weight's come by fours from its rows
            z = tl.reshape(tl.permute(tl.reshape(z, (BLOCK_T, 4, BLOCK_C // 4)), (0, 2, 1)), (BLOCK_T, BLOCK_C))
            z_hi, z_lo = split(z, PRECISION)
            if not PREPARE:
                offsets = out_c[:, None] * PADDED + (n * BLOCK_C + q)[None, :]  # [PADDED out, BLOCK_C in]
                hi = turned_weight(tl.load(hi_ptr + offsets), BLOCK_C)
                lo = turned_weight(tl.load(lo_ptr + offsets), BLOCK_C) if PRECISION == "bf16x3" else hi
            else:
                hi, lo = weights[n]
            u = multiply(z_hi, z_lo, hi, lo, u, PRECISION)
            ys = ys + (y,)

        u *= tl.rsqrt(tl.sum(u * u, 1) / C + EPS)[:, None]
        scale = strength
        if RESTORE:
            mean, spread = tile_moments(ys, c, C, PADDED, BLOCK_C, EPS)
            scale *= spread
            level = strength * mean
        even, odd = tl.split(tl.permute(tl.reshape(u, (BLOCK_T, 2, 2, BLOCK_C)), (0, 3, 1, 2)))
        u0, u2 = tl.split(even)
        u1, u3 = tl.split(odd)
        us = (u0, u1, u2, u3)
        # A gather of each row from itself: only its layout counts. Without it the compiler finishes in the product's
        # layout, and brings not only u into that of the stores but also y into that of the product.
        rows = tl.broadcast_to(j[:, None], (BLOCK_T, BLOCK_C))
        scales = tl.gather(tl.broadcast_to(scale[:, None], (BLOCK_T, BLOCK_C)), rows, 0)
        own = (j >= HALO) & (j < BLOCK_T - HALO) & (t < W) & (pair + tl.where(second, 1, 0) < pairs)
        out_tile_ptr = out_ptr + pair.to(tl.int64) * (C * W)
        out_t = t.to(tl.int64) + tl.where(second, C * W, 0)
        # By fours, frames are neighbours of one window: Triton 3.8 is told, or reads and stores differ in layout. Where
        # frames are read from apart, they differ anyway, and this would spill 16 B.
        if W % 4 == 0 and STRIDE_T == 1:
            own = tl.max_constancy(own, 4)
            out_t = tl.max_contiguous(tl.multiple_of(out_t, 4), 4)
        for n in tl.static_range(4):
            if n == AHEAD:  # the next tile's first channels are on their way while this one is finished
                next_pair, next_t0, next_t, next_second = tile_frames(next_id, j, OWN, HALO, JOINED)
                frame_ptr, w0, w1 = place_joined(
                    source_ptr, start_ptr, ratio_ptr, next_pair, pairs, next_second, next_t0, next_t, T,
                    stride_b, stride_p, P, W, STRIDE_T, RESAMPLE, COMPUTE,
                )  # fmt: skip
                read = read_at(frame_ptr, wide_c, (next_t >= 0) & (next_t < W), C, PADDED, STRIDE_C, STRIDE_T, RESAMPLE)
            cn = c + n * BLOCK_C
            gamma = by_fours(vectors_ptr + PADDED + n * BLOCK_C, BLOCK_C)[None, :]
            beta = by_fours(vectors_ptr + 2 * PADDED + n * BLOCK_C, BLOCK_C)[None, :]
            out = (1 - strength)[:, None] * ys[n]
            if RESTORE:
                out += level[:, None]
            out += (us[n] * scales) * gamma + strength[:, None] * beta
            mask = own[:, None] & (cn < C)[None, :] if C != PADDED else own[:, None]
            out_offsets = channel_offsets(cn, C, PADDED, W)[None, :] + out_t[:, None]
            tl.store(out_tile_ptr + out_offsets, out.to(out_ptr.dtype.element_ty), mask=mask)


def fits(call: Call) -> bool:
    """Whether a tile holds all channels, and frames beside those of the overlap."""
    block_t = call.configuration("windowed_tonality_forward").constants["BLOCK_T"]
    return call.shape[2] <= FUSED_CHANNELS and 4 * call.halo <= block_t


def windowed_tonality(call: Call, weights: Weights, out: Tensor, *, keep: bool) -> None:
    """Everything, into out `[B, P, C, W]`; the prepared weights into `call.prepared`, if they are to be kept."""
    batch, pairs, channels, window = call.shape
    config = call.configuration("windowed_tonality_forward")
    own = config.constants["BLOCK_T"] - 2 * call.halo
    # The gap between windows, of at least K // 2 frames, is the padding of both; a tile meets no third window.
    joined = max(4 * triton.cdiv(window + call.taps // 2, 4), config.constants["BLOCK_T"])
    tiles = triton.cdiv(batch * pairs * joined, own)
    programs = min(tiles, call.target.processors * config.per_processor)
    within = config.constants["PREPARE"]
    if not within:
        prepare(weights, call.target, call.precision, call.prepared)
    arguments = {
        **call.source.arguments(pairs),
        "strength_ptr": call.strength,
        **weight_arguments(weights, call.prepared),
        "own_ptr": call.spare(call.scratch(programs, *call.prepared.vectors.shape) if within else None),
        "out_ptr": out,
        "tiles": tiles,
        "pairs": batch * pairs,
        "JOINED": joined,
        "EPS": call.eps,
        "RESTORE": call.restore,
        "KEEP": keep,
        "K": call.taps,
        "PADDED": call.padded,
        "HALO": call.halo,
        "PRECISION": call.precision,
        **call.sizes(),
    }
    launch(windowed_tonality_forward, (programs,), config, arguments, outputs=own * channels, looped=True)
