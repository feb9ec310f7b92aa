"""Window resampling alone: forward, and the gradients of its places; that of the clip stands in `resample_dx`.

    y[c, t] = (1 − f)·x[c, i] + f·x[c, i + 1],   p(t) = i + f

so for a gradient g of y:

    dstart    = Σ_t ∂p/∂start · Σ_c (x[c, i + 1] − x[c, i])·g[c, t],     dratio likewise with ∂p/∂ratio
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference import compute_dtype
from . import places
from .configurations import Target, configuration
from .interpolation import channel_offsets, frame_offsets, place_tile, position_slopes, read_window, source_frames
from .launch import TRITON_TYPE, launch, target_of
from .resample_dx import clip_gradient


@triton.jit
def resample_forward(
    x_ptr,  # [B, C, T]
    start_ptr,  # [B, P]
    ratio_ptr,
    out_ptr,  # [B, P, C, W]
    T,
    stride_xb,
    P: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    STRIDE_XC: tl.constexpr,
    STRIDE_XT: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """One program per window, BLOCK_T frames and BLOCK_C channels."""
    TILES: tl.constexpr = (W + BLOCK_T - 1) // BLOCK_T
    CHUNKS: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    SPAN: tl.constexpr = CHUNKS * BLOCK_C
    program = tl.program_id(0)
    pair = program // (TILES * CHUNKS)
    rest = program - pair * (TILES * CHUNKS)
    chunk = rest // TILES
    t0 = (rest - chunk * TILES) * BLOCK_T
    t = t0 + tl.arange(0, BLOCK_T)
    c = chunk * BLOCK_C + tl.arange(0, BLOCK_C)
    window = read_window(start_ptr, ratio_ptr, pair, T, W, COMPUTE)
    tile = place_tile(window, t0, T, COMPUTE)
    i, w0, w1 = source_frames(t, window, tile, W, COMPUTE)
    tile_ptr = x_ptr + (pair // P).to(tl.int64) * stride_xb + tile[0].to(tl.int64) * STRIDE_XT
    frame_ptr = tile_ptr + channel_offsets(c, C, SPAN, STRIDE_XC)[None, :] + frame_offsets(i, STRIDE_XT)[:, None]
    y = tl.load(frame_ptr).to(COMPUTE) * w0[:, None] + tl.load(frame_ptr + STRIDE_XT).to(COMPUTE) * w1[:, None]
    mask = (t < W)[:, None]
    if SPAN != C:
        mask = mask & (c < C)[None, :]
    out_offsets = channel_offsets(c, C, SPAN, W)[None, :] + t[:, None]
    tl.store(out_ptr + pair.to(tl.int64) * (C * W) + out_offsets, y.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def resample_position_gradient(
    grad_ptr,  # [B, P, C, W]
    x_ptr,  # [B, C, T]
    start_ptr,  # [B, P]
    ratio_ptr,
    partial_ptr,  # out: [B, P, tiles, 3], dstart and dratio of each tile, as `finish_windows` takes them
    T,
    stride_xb,
    stride_gb,
    stride_gp,
    P: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    STRIDE_XC: tl.constexpr,
    STRIDE_XT: tl.constexpr,
    STRIDE_GC: tl.constexpr,
    STRIDE_GW: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """One program per window and BLOCK_T frames, over all channels."""
    TILES: tl.constexpr = (W + BLOCK_T - 1) // BLOCK_T
    SPAN: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C * BLOCK_C
    program = tl.program_id(0)
    pair = program // TILES
    b = pair // P
    t0 = (program - pair * TILES) * BLOCK_T
    t = t0 + tl.arange(0, BLOCK_T)
    window = read_window(start_ptr, ratio_ptr, pair, T, W, COMPUTE)
    tile = place_tile(window, t0, T, COMPUTE)
    i, _, _ = source_frames(t, window, tile, W, COMPUTE)
    tile_ptr = x_ptr + b.to(tl.int64) * stride_xb + tile[0].to(tl.int64) * STRIDE_XT
    tile_ptr = tile_ptr + frame_offsets(i, STRIDE_XT)[:, None]
    window_ptr = grad_ptr + b.to(tl.int64) * stride_gb + (pair - b * P).to(tl.int64) * stride_gp
    held = tl.max_contiguous(tl.minimum(t, W - 1), 2)
    window_ptr = window_ptr + frame_offsets(held, STRIDE_GW)[:, None]
    total = tl.zeros((BLOCK_T, BLOCK_C), COMPUTE)
    for chunk in tl.range(0, C, BLOCK_C, num_stages=1):
        c = chunk + tl.arange(0, BLOCK_C)
        mask = (t < W)[:, None]
        if SPAN != C:
            mask = mask & (c < C)[None, :]
        frame_ptr = tile_ptr + channel_offsets(c, C, SPAN, STRIDE_XC)[None, :]
        difference = tl.load(frame_ptr + STRIDE_XT).to(COMPUTE) - tl.load(frame_ptr).to(COMPUTE)
        g = tl.load(window_ptr + channel_offsets(c, C, SPAN, STRIDE_GC)[None, :], mask=mask, other=0.0).to(COMPUTE)
        total += g * difference
    slope = tl.sum(total, 1) + window[4]  # dL/dp of each frame; NaN where start or ratio is
    by_start, by_ratio = position_slopes(t, window, tile, T, W, COMPUTE)
    out_ptr = partial_ptr + program.to(tl.int64) * 3
    tl.store(out_ptr, tl.sum(slope * by_start, 0))
    tl.store(out_ptr + 1, tl.sum(slope * by_ratio, 0))


def resample(x: Tensor, start: Tensor, ratio: Tensor, window: int, target: Target | None = None) -> Tensor:
    """y [B, P, C, W]."""
    batch, channels, frames = x.shape
    pairs = start.shape[1]
    out = torch.empty(batch, pairs, channels, window, dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    target, compute = target or target_of(x.device), compute_dtype(x.dtype)
    config = configuration("resample_forward", target, "fp64" if compute == torch.float64 else "", channels, window)
    block_t, block_c = config.constants["BLOCK_T"], config.constants["BLOCK_C"]
    arguments = {
        "x_ptr": x,
        "start_ptr": start,
        "ratio_ptr": ratio,
        "out_ptr": out,
        "T": frames,
        "P": pairs,
        "stride_xb": x.stride(0),
        "W": window,
        "C": channels,
        "STRIDE_XC": x.stride(1),
        "STRIDE_XT": 0 if frames == 1 else x.stride(2),
        "COMPUTE": TRITON_TYPE[compute],
    }
    programs = batch * pairs * triton.cdiv(window, block_t) * triton.cdiv(channels, block_c)
    launch(resample_forward, (programs,), config, arguments, outputs=block_t * block_c)
    return out


def gradients(
    grad: Tensor, x: Tensor, start: Tensor, ratio: Tensor, needs: tuple[bool, ...], target: Target | None = None
) -> tuple[Tensor | None, ...]:
    """Of x, start and ratio, as far as needed, from the gradient [B, P, C, W] of resampled windows (any strides)."""
    need_x, need_start, need_ratio = needs
    dx = clip_gradient(grad, x, start, ratio, target) if need_x else None
    if not (need_start or need_ratio):
        return dx, None, None
    if grad.numel() == 0:
        return dx, *(places.zeros(v) if need else None for v, need in zip((start, ratio), needs[1:], strict=True))
    partial = _place_gradient(grad, x, start, ratio, target or target_of(x.device))
    return dx, *places.place_gradients(partial, start, ratio, needs[1:], grad)


def _place_gradient(grad: Tensor, x: Tensor, start: Tensor, ratio: Tensor, target: Target) -> Tensor:
    """[B, P, tiles, 3]: the gradients of start and ratio of each tile, in the compute dtype; the third is not used."""
    batch, channels, frames = x.shape
    pairs, window = grad.shape[1], grad.shape[3]
    compute = compute_dtype(x.dtype)
    precision = "fp64" if compute == torch.float64 else ""
    config = configuration("resample_position_gradient", target, precision, channels, window)
    block_t = config.constants["BLOCK_T"]
    tiles = triton.cdiv(window, block_t)
    partial = torch.empty(batch, pairs, tiles, 3, dtype=compute, device=x.device)
    arguments = {
        "grad_ptr": grad,
        "x_ptr": x,
        "start_ptr": start,
        "ratio_ptr": ratio,
        "partial_ptr": partial,
        "T": frames,
        "P": pairs,
        "stride_xb": x.stride(0),
        "stride_gb": grad.stride(0),
        "stride_gp": grad.stride(1),
        "W": window,
        "C": channels,
        "STRIDE_XC": x.stride(1),
        "STRIDE_XT": 0 if frames == 1 else x.stride(2),
        "STRIDE_GC": grad.stride(2),
        "STRIDE_GW": grad.stride(3),
        "COMPUTE": TRITON_TYPE[compute],
    }
    outputs = block_t * config.constants["BLOCK_C"]
    launch(resample_position_gradient, (batch * pairs * tiles,), config, arguments, outputs=outputs, looped=True)
    return partial
