"""The depthwise convolution, within a tile and as a stage of its own: windows to z, and where their frames lie."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .call import Call, Places, place_arguments
from .interpolation import channel_offsets, place_tile, position_slopes, read_window, source_frames
from .launch import launch
from .moments import Moments, store_moments
from .operands import Split, split
from .source import place_frames, read_frames


@triton.jit
def depthwise(y, c, j, weight_ptr, K: tl.constexpr, PADDED: tl.constexpr, BLOCK_C: tl.constexpr):
    """z[j] = Σ_k weight[k]·y[j + k − K // 2] within a tile [BLOCK_T, BLOCK_C], without bias; weight is [K, PADDED].

    Frames are fetched from the neighbouring rows of the tile, which wraps around: the first and last K // 2 rows of z
    are meaningless, and tiles overlap accordingly. BLOCK_T is a power of two.
    """
    BLOCK_T: tl.constexpr = y.shape[0]
    z = y * tl.load(weight_ptr + (K // 2) * PADDED + c)[None, :]
    for k in tl.static_range(K):
        if k != K // 2:
            row = (j + (k - K // 2)) & (BLOCK_T - 1)
            shifted = tl.gather(y, tl.broadcast_to(row[:, None], (BLOCK_T, BLOCK_C)), 0)
            z += tl.load(weight_ptr + k * PADDED + c)[None, :] * shifted
    return z


@triton.jit
def folded(y):
    """y [BLOCK_T, BLOCK_C] as four tensors [BLOCK_T / 4, BLOCK_C], of frames 4·n, 4·n + 1, 4·n + 2 and 4·n + 3."""
    even, odd = tl.split(tl.permute(tl.reshape(y, (y.shape[0] // 4, 2, 2, y.shape[1])), (0, 3, 1, 2)))
    y0, y2 = tl.split(even)
    y1, y3 = tl.split(odd)
    return y0, y1, y2, y3


@triton.jit
def unfolded(y0, y1, y2, y3):
    """What `folded` takes."""
    four = tl.permute(tl.join(tl.join(y0, y2), tl.join(y1, y3)), (0, 2, 3, 1))
    return tl.reshape(four, (4 * y0.shape[0], y0.shape[1]))


@triton.jit
def at_distance(ys, DISTANCE: tl.constexpr):
    """Frames 4·n + DISTANCE, from all frames as `folded` leaves them; the tile wraps around."""
    ROWS: tl.constexpr = ys[0].shape[0]
    BLOCK_C: tl.constexpr = ys[0].shape[1]
    y = ys[DISTANCE % 4]
    if DISTANCE // 4 != 0:
        row = (tl.arange(0, ROWS) + DISTANCE // 4) & (ROWS - 1)
        y = tl.gather(y, tl.broadcast_to(row[:, None], (ROWS, BLOCK_C)), 0)
    return y


@triton.jit
def depthwise_folded(y, taps, K: tl.constexpr):
    """`depthwise` of frames by fours: where a thread holds four, it fetches its neighbours' alone."""
    ys = folded(y)
    zs = ()
    for r in tl.static_range(4):
        z = taps[K // 2][None, :] * ys[r]
        for k in tl.static_range(K):
            if k != K // 2:
                z += taps[k][None, :] * at_distance(ys, r + k - K // 2)
        zs = zs + (z,)
    return unfolded(zs[0], zs[1], zs[2], zs[3])  # type: ignore[misc]  # the loop over r makes four


@triton.jit
def store_places(
    start_ptr,
    ratio_ptr,
    index_ptr,
    fraction_ptr,
    along_start_ptr,
    along_ratio_ptr,
    pair,
    t0,
    t,
    own,
    T,
    W: tl.constexpr,
    NEED_SLOPES: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """i, f, and the slopes of p, of the frames t of one window."""
    window = read_window(start_ptr, ratio_ptr, pair, T, W, COMPUTE)
    tile = place_tile(window, t0, T, COMPUTE)
    i, _, w1 = source_frames(t, window, tile, W, COMPUTE)
    offsets = pair.to(tl.int64) * W + t
    tl.store(index_ptr + offsets, tile[0] + i, mask=own)
    tl.store(fraction_ptr + offsets, w1, mask=own)
    if NEED_SLOPES:
        along_start, along_ratio = position_slopes(t, window, tile, T, W, COMPUTE)
        tl.store(along_start_ptr + offsets, along_start, mask=own)
        tl.store(along_ratio_ptr + offsets, along_ratio, mask=own)


@triton.jit
def recompute_windows(
    source_ptr,  # x [B, C, T], or y [B, P, C, W] where not RESAMPLE
    start_ptr,  # [B, P]
    ratio_ptr,
    depthwise_ptr,  # [K, PADDED]
    z_ptr,  # out: [B, P, C, W], its dtype decides the rounding
    z_lo_ptr,  # out: z − hi, only for "bf16x3"
    index_ptr,  # out: [B, P, W] int32, i
    fraction_ptr,  # out: [B, P, W], f
    along_start_ptr,  # out: [B, P, W], ∂p/∂start
    along_ratio_ptr,  # out: [B, P, W], ∂p/∂ratio
    moments_ptr,  # out: `moments.Moments`
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
    NEED_PLACES: tl.constexpr,
    NEED_SLOPES: tl.constexpr,
    NEED_MOMENTS: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    HALO: tl.constexpr,
    PRECISION: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """z without its bias; the programs of the first channels also store the places.

    One program per tile of BLOCK_T − 2·HALO frames of all windows and BLOCK_C channels, those of a tile side by side.
    """
    OWN: tl.constexpr = BLOCK_T - 2 * HALO
    TILES_PER_WINDOW: tl.constexpr = (W + OWN - 1) // OWN
    CHUNKS: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    SPAN: tl.constexpr = CHUNKS * BLOCK_C
    tile = tl.program_id(0) // CHUNKS
    chunk = tl.program_id(0) - tile * CHUNKS
    pair = tile // TILES_PER_WINDOW
    t0 = (tile - pair * TILES_PER_WINDOW) * OWN - HALO
    j = tl.arange(0, BLOCK_T)
    c = chunk * BLOCK_C + tl.arange(0, BLOCK_C)
    t = t0 + j
    inside = (t >= 0) & (t < W)
    tile_ptr, i, w0, w1 = place_frames(
        source_ptr, start_ptr, ratio_ptr, pair, t0, t, T, stride_b, stride_p, P, W, STRIDE_T, RESAMPLE, BLOCK_T, COMPUTE
    )
    y = read_frames(tile_ptr, c, i, w0, w1, inside, C, SPAN, STRIDE_C, STRIDE_T, RESAMPLE)
    z = depthwise(y, c, j, depthwise_ptr, K, PADDED, BLOCK_C)
    own = (j >= HALO) & (j < BLOCK_T - HALO) & (t < W)
    mask = own[:, None] & (c < C)[None, :] if C != SPAN else own[:, None]
    base = pair.to(tl.int64) * (C * W)
    offsets = channel_offsets(c, C, SPAN, W)[None, :] + t[:, None]
    hi, lo = split(z, PRECISION)
    tl.store(z_ptr + base + offsets, hi, mask=mask)
    if PRECISION == "bf16x3":
        tl.store(z_lo_ptr + base + offsets, lo, mask=mask)
    if NEED_MOMENTS:
        store_moments(moments_ptr, y, c, pair, chunk, CHUNKS, t, own, W, C, SPAN)
    if NEED_PLACES:
        if chunk == 0:
            store_places(
                start_ptr,
                ratio_ptr,
                index_ptr,
                fraction_ptr,
                along_start_ptr,
                along_ratio_ptr,
                pair,
                t0,
                t,
                own,
                T,
                W,
                NEED_SLOPES,
                COMPUTE,
            )


class Recomputed(NamedTuple):
    z: Split  # [B, P, C, W], as the products take it
    places: Places | None  # of a clip's windows, if asked for
    moments: Moments | None  # of frames, where they are restored


def recompute(call: Call, *, places: bool = False, slopes: bool = False) -> Recomputed:
    batch, pairs, channels, window = call.shape
    config, halo = call.with_overlap("recompute_windows")
    own, block_c = config.constants["BLOCK_T"] - 2 * halo, config.constants["BLOCK_C"]
    z, placed = call.operand(), None
    if places and call.source.resample:
        placed = Places(
            call.scratch(batch, pairs, window, dtype=torch.int32),
            call.scratch(batch, pairs, window),
            call.scratch(batch, pairs, window) if slopes else None,
            call.scratch(batch, pairs, window) if slopes else None,
        )
    blocks, moments = triton.cdiv(channels, block_c), None
    if call.restore:
        moments = Moments(call.scratch(batch, pairs, blocks, 2, window), block_c)
    arguments = {
        **call.source.arguments(pairs),
        "depthwise_ptr": call.prepared.depthwise,
        "z_ptr": z.hi,
        "z_lo_ptr": z.lo,
        **place_arguments(call, placed),
        "moments_ptr": call.spare(None if moments is None else moments.tensor),
        "NEED_MOMENTS": moments is not None,
        "NEED_PLACES": placed is not None,
        "NEED_SLOPES": placed is not None and slopes,
        "K": call.taps,
        "PADDED": call.padded,
        "HALO": halo,
        "PRECISION": call.operand_precision,
        **call.sizes(),
    }
    grid = (batch * pairs * triton.cdiv(window, own) * blocks,)
    launch(recompute_windows, grid, config, arguments, outputs=own * block_c)
    return Recomputed(z, placed, moments)
