"""The depthwise convolution, within a tile and as a stage of its own: windows to z."""

import triton
import triton.language as tl

from .call import Call
from .interpolation import channel_offsets
from .launch import launch
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


def recompute(call: Call) -> Split:
    """z `[B, P, C, W]`, as the products take it."""
    batch, pairs, channels, window = call.shape
    config, halo = call.with_overlap("recompute_windows")
    own, block_c = config.constants["BLOCK_T"] - 2 * halo, config.constants["BLOCK_C"]
    z = call.operand()
    arguments = {
        **call.source.arguments(pairs),
        "depthwise_ptr": call.prepared.depthwise,
        "z_ptr": z.hi,
        "z_lo_ptr": z.lo,
        "K": call.taps,
        "PADDED": call.padded,
        "HALO": halo,
        "PRECISION": call.precision,
        **call.sizes(),
    }
    grid = (batch * pairs * triton.cdiv(window, own), triton.cdiv(channels, block_c))
    launch(recompute_windows, grid, config, arguments, outputs=own * block_c)
    return z
