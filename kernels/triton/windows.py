"""Backward of what acts on each channel by itself: dz and g to dy, and the sums over a window's frames."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .call import Call, Places, Windowed, place_arguments
from .interpolation import channel_offsets, frame_offsets
from .launch import launch
from .loops import LAST_READ, runtime_range
from .moments import load_restored
from .operands import Split, unpack


@triton.jit
def fold_rows(q, FOLD: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr):
    """[BLOCK_T // FOLD, BLOCK_C]: sums of FOLD neighbouring frames, which one thread holds."""
    return tl.sum(tl.reshape(q, (BLOCK_T // FOLD, FOLD, BLOCK_C)), 1)


@triton.jit
def fold_channels(q, COLUMNS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr):
    """[BLOCK_T, COLUMNS]: sums of every COLUMNS-th channel, which one thread holds where COLUMNS warps share a tile."""
    return tl.sum(tl.reshape(q, (BLOCK_T, BLOCK_C // COLUMNS, COLUMNS)), 1)


@triton.jit
def window_backward(
    source_ptr,  # x [B, C, T], or y [B, P, C, W] where not RESAMPLE
    index_ptr,  # this and the next three as `recompute_windows` leaves them
    fraction_ptr,
    along_start_ptr,
    along_ratio_ptr,
    strength_ptr,  # [B, P]
    depthwise_ptr,  # [K, PADDED]
    grad_ptr,  # [B, P, C, W]
    dz_ptr,  # [B, P, C, W]
    dz_lo_ptr,  # where PACKED
    restored_ptr,  # [B, P, 3, W]
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
    RESTORE: tl.constexpr,
    NEED_DY: tl.constexpr,
    NEED_PLACE: tl.constexpr,  # dstart, dratio
    NEED_TAPS: tl.constexpr,
    NEED_BLEND: tl.constexpr,  # Σ g·y, for strength
    NEED_SUMS: tl.constexpr,  # Σ_t g, for strength and β
    PACKED: tl.constexpr,  # dz in 24 bits
    PADDED: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    HALO: tl.constexpr,
    FOLD: tl.constexpr,
    COLUMNS: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """One window and BLOCK_C of its channels, all frames in turn. Grid (B·P·chunks of BLOCK_C channels,)."""
    OWN: tl.constexpr = BLOCK_T - 2 * HALO
    CONVOLVE: tl.constexpr = NEED_DY or NEED_PLACE
    READ: tl.constexpr = NEED_PLACE or NEED_TAPS or NEED_BLEND or (CONVOLVE and RESTORE)
    CHUNKS: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    SPAN: tl.constexpr = CHUNKS * BLOCK_C
    program = tl.program_id(0)
    pair = program // CHUNKS
    chunk = program - pair * CHUNKS
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
    if PACKED:
        dz_lo_ptr += base
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
        g = tl.load(grad_ptr + offsets, mask=mask, other=0.0, eviction_policy=LAST_READ).to(COMPUTE)
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
            if PACKED:
                lower = tl.load(dz_lo_ptr + offsets, mask=inside, other=0, eviction_policy=LAST_READ)
                upper = tl.load(dz_ptr + offsets, mask=inside, other=0, eviction_policy=LAST_READ)
                dz = unpack(upper, lower)
            else:
                dz = tl.load(dz_ptr + offsets, mask=inside, other=0.0, eviction_policy=LAST_READ).to(COMPUTE)
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
            if CONVOLVE and RESTORE:
                added = load_restored(restored_ptr, y, pair, t, own, W)
                dy += tl.where(real, added, 0.0) if C != SPAN else added  # dp sums over all channels of the tile
            if NEED_TAPS:
                by_tap = summed
            if NEED_DY:
                tl.store(dy_ptr + offsets, dy.to(dy_ptr.dtype.element_ty), mask=mask)
            if NEED_PLACE:
                by_p = fold_channels(dy * (x1 - x0), COLUMNS, BLOCK_T, BLOCK_C)
                by_start += by_p * tl.load(along_start_ptr + t, mask=own, other=0.0)[:, None]
                by_ratio += by_p * tl.load(along_ratio_ptr + t, mask=own, other=0.0)[:, None]
    scalars = scalars_ptr + (pair.to(tl.int64) * CHUNKS + chunk) * 3
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


def gradients(
    call: Call,
    grad_out: Tensor,
    dz: Split | None,
    restored: Tensor | None,
    placed: Places | None,
    *,
    dy: torch.dtype | None,
    place: bool,
    taps: bool,
    blend: bool,
    sums: bool,
) -> Windowed:
    """dy in the dtype given, and partial sums for dd, dstart, dratio, dstrength and dβ."""
    batch, pairs, channels, _ = call.shape
    width = call.taps
    config, halo = call.with_overlap("window_backward")
    own, block_c = config.constants["BLOCK_T"] - 2 * halo, config.constants["BLOCK_C"]
    chunks = triton.cdiv(channels, block_c)
    out = Windowed(
        call.scratch(*call.shape, dtype=dy) if dy else None,
        call.scratch(batch, pairs, width, channels) if taps else None,
        call.scratch(batch, pairs, channels) if sums else None,
        call.scratch(batch, pairs, chunks, 3) if place or blend else None,
    )
    source = call.source.arguments(pairs)
    for name in ("start_ptr", "ratio_ptr", "T"):
        del source[name]
    arguments = {
        **source,
        **place_arguments(call, placed),
        "strength_ptr": call.strength,
        "depthwise_ptr": call.prepared.depthwise,
        "grad_ptr": grad_out,
        "dz_ptr": call.spare(dz and dz.hi),
        "dz_lo_ptr": call.spare(dz and dz.lo),
        "PACKED": dz is not None and call.packs,
        "restored_ptr": call.spare(restored),
        "RESTORE": restored is not None,
        "dy_ptr": call.spare(out.dy),
        "taps_ptr": call.spare(out.taps),
        "sums_ptr": call.spare(out.sums),
        "scalars_ptr": call.spare(out.scalars),
        "NEED_DY": dy is not None,
        "NEED_PLACE": place,
        "NEED_TAPS": taps,
        "NEED_BLEND": blend,
        "NEED_SUMS": sums,
        "K": width,
        "PADDED": call.padded,
        "HALO": halo,
        **call.sizes(),
    }
    launch(window_backward, (batch * pairs * chunks,), config, arguments, outputs=own * block_c, looped=True)
    return out
