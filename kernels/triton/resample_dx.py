"""The adjoint of resampling: a gradient of windows becomes one of the clip, in gather form.

No atomics, so two runs are bit-equal. With the hat function, y[c, t] = Σ_i h(p(t) − i)·x[c, i], h(d) = max(1 − |d|, 0),
so for a gradient g of y:

    dx[c, i]  = Σ_windows Σ_t h(p(t) − i)·g[c, t]

p never falls with t, so the frames that touch sample i are one interval. Frames between the clamps are 1/ratio apart in
i: at most two touch one sample for ratio ≥ 1, ⌈2/ratio⌉ for less. Frames held at LO (t < first) or at HI (t ≥ last) all
touch the same one or two samples, with the same weights: their gradients are summed first, then added once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference import compute_dtype
from . import places
from .configurations import Target, configuration
from .interpolation import channel_offsets, frame_offsets, place_tile, read_window, two_parts, walk
from .launch import TRITON_TYPE, launch, target_of
from .loops import LAST_READ, runtime_range


@triton.jit
def held_frames(
    begin,
    end,
    position,
    i0,
    k,
    grad_ptr,
    channel,  # [1, BLOCK_C], offsets
    W: tl.constexpr,
    STRIDE_GW: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_C: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """What the frames [begin, end), all at `position` (float64), give the samples i0 + k: [BLOCK_X, BLOCK_C]."""
    total = tl.zeros((BLOCK_C,), COMPUTE)
    for block in runtime_range(begin, end, BLOCK_X, num_stages=1):
        t = block + tl.arange(0, BLOCK_X)
        held = tl.max_contiguous(tl.minimum(t, W - 1), 2)
        g = tl.load(grad_ptr + frame_offsets(held, STRIDE_GW)[:, None] + channel, mask=(t < end)[:, None], other=0.0)
        total += tl.sum(g.to(COMPUTE), 0)
    whole = tl.floor(position)
    weight = sample_weight(k.to(COMPUTE), (whole - i0).to(COMPUTE), (position - whole).to(COMPUTE))
    return weight[:, None] * total[None, :]


@triton.jit
def sample_weight(k, i, f):
    """What a frame at i + f takes from sample k: h(i + f − k)."""
    return tl.where(k == i, 1.0 - f, tl.where(k == i + 1.0, f, 0.0))


@triton.jit
def resample_dx(
    grad_ptr,  # [B, P, C, W]
    start_ptr,  # [B, P]
    ratio_ptr,
    dx_ptr,  # out: [B, C, T], contiguous
    T,
    P,
    stride_gb,
    stride_gp,
    W: tl.constexpr,
    C: tl.constexpr,
    STRIDE_GC: tl.constexpr,
    STRIDE_GW: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_C: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """One program per clip, BLOCK_X samples and BLOCK_C channels, over all windows: dx is written once.

    Frames are placed exactly as in the forward kernels, so that this is their adjoint to the last bit of every weight.
    """
    CHUNKS: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    SPAN: tl.constexpr = CHUNKS * BLOCK_C
    program = tl.num_programs(0) - 1 - tl.program_id(0)  # the newest first, see `transform`
    tiles = tl.cdiv(T, BLOCK_X)
    b = program // (tiles * CHUNKS)
    rest = program - b * (tiles * CHUNKS)
    chunk = rest // tiles
    i0 = (rest - chunk * tiles) * BLOCK_X
    k = tl.arange(0, BLOCK_X)
    c = chunk * BLOCK_C + tl.arange(0, BLOCK_C)
    if SPAN == C:  # offsets known at compile time, which loads take as they are
        grad_ptr += chunk.to(tl.int64) * (BLOCK_C * STRIDE_GC)
        channel = channel_offsets(tl.arange(0, BLOCK_C), C, SPAN, STRIDE_GC)[None, :]
    else:
        channel = channel_offsets(c, C, SPAN, STRIDE_GC)[None, :]
    grad_ptr += b.to(tl.int64) * stride_gb
    acc = tl.zeros((BLOCK_X, BLOCK_C), COMPUTE)
    for p in runtime_range(0, P, 1, num_stages=1):
        window = read_window(start_ptr, ratio_ptr, b * P + p, T, W, COMPUTE)
        start, ratio, lo, hi, poison = window
        window_ptr = grad_ptr + p.to(tl.int64) * stride_gp
        pace = 1.0 / tl.maximum(ratio, 1.0e-9)  # frames per sample
        # first frame not held at LO, first frame held at HI
        first = tl.minimum(tl.maximum((lo - start + 0.5) * pace - 0.5, 0.0), W * 1.0)
        first = tl.where(ratio > 0.0, tl.ceil(first), W * 1.0).to(tl.int32)
        last = tl.minimum(tl.maximum((hi - start + 0.5) * pace - 0.5, -1.0), W - 1.0)
        last = tl.maximum(tl.floor(last).to(tl.int32) + 1, first)
        placed = poison == poison
        if poison != poison:  # a window without a place reads frames 0 and 1 with weights of NaN, as specified
            acc += tl.where(i0 + k < 2, poison, 0.0)[:, None]
        if (lo < i0 + BLOCK_X) & (hi > i0 - 1) & placed:
            if first < last:
                # where p(t) = i0 + k − 1: the first frame that touches sample i0 + k is the next whole t
                meets = (i0 - 0.5 - start) * pace - 0.5
                origin = tl.floor(tl.minimum(tl.maximum(meets, -1.0), W * 1.0))
                n, beyond, _ = walk(k.to(COMPUTE), two_parts(meets - origin, pace, COMPUTE))
                origin = origin.to(tl.int32)
                n = tl.where(beyond > 0.0, n + 1.0, n)
                n = tl.minimum(tl.maximum(n, (first - origin).to(COMPUTE)), (last - origin).to(COMPUTE))
                base, _, parts, _, _ = place_tile(window, origin, T, COMPUTE)
                sample = (k + (i0 - base)).to(COMPUTE)
                for e in tl.static_range(2):
                    t = origin + n.to(tl.int32) + e
                    i, f, _ = walk(n + e, parts)
                    weight = tl.where(t < last, sample_weight(sample, i, f), 0.0)
                    held = tl.max_contiguous(tl.minimum(t, W - 1), 2)
                    frame_ptr = window_ptr + frame_offsets(held, STRIDE_GW)[:, None]
                    g = tl.load(frame_ptr + channel, eviction_policy=LAST_READ).to(COMPUTE)
                    acc += g * weight[:, None]
                more = tl.where(ratio < 1.0, tl.minimum(tl.ceil(2.0 * pace) + 1.0, W * 1.0), 0.0).to(tl.int32)
                for e in runtime_range(2, more, 1, num_stages=1):
                    t = origin + n.to(tl.int32) + e
                    i, f, _ = walk(n + e.to(COMPUTE), parts)
                    weight = tl.where(t < last, sample_weight(sample, i, f), 0.0)
                    held = tl.max_contiguous(tl.minimum(t, W - 1), 2)
                    frame_ptr = window_ptr + frame_offsets(held, STRIDE_GW)[:, None]
                    g = tl.load(frame_ptr + channel, eviction_policy=LAST_READ).to(COMPUTE)
                    acc += g * weight[:, None]
            if (first > 0) & (lo > i0 - 1):
                acc += held_frames(0, first, lo, i0, k, window_ptr, channel, W, STRIDE_GW, BLOCK_X, BLOCK_C, COMPUTE)
            if (last < W) & (hi < i0 + BLOCK_X):
                acc += held_frames(last, W, hi, i0, k, window_ptr, channel, W, STRIDE_GW, BLOCK_X, BLOCK_C, COMPUTE)
    # As for loads in `source_frames`: which axis runs fastest, but no more than one frame a thread. Four in a row would
    # store at once, and work out four times the places, for a quarter of the channels.
    i = tl.max_contiguous(tl.multiple_of(i0 + k, 1), 2)
    mask = (i < T)[:, None]
    if SPAN != C:
        mask = mask & (c < C)[None, :]
    out_ptr = dx_ptr + (b.to(tl.int64) * C + c)[None, :] * T + i[:, None]
    tl.store(out_ptr, acc.to(dx_ptr.dtype.element_ty), mask=mask)


def clip_gradient(grad: Tensor, x: Tensor, start: Tensor, ratio: Tensor, target: Target | None = None) -> Tensor:
    """dx [B, C, T], contiguous, from the gradient [B, P, C, W] of resampled windows (any strides, any dtype)."""
    batch, channels, frames = x.shape
    pairs, window = grad.shape[1], grad.shape[3]
    if grad.numel() == 0:
        return places.zeros(x)
    dx = places.empty_gradient(x)
    target, compute = target or target_of(x.device), compute_dtype(x.dtype)
    precision = "fp64" if compute == torch.float64 else ""
    config = configuration("resample_dx", target, precision, channels, window, frames)
    block_x, block_c = config.constants["BLOCK_X"], config.constants["BLOCK_C"]
    arguments = {
        "grad_ptr": grad,
        "start_ptr": start,
        "ratio_ptr": ratio,
        "dx_ptr": dx,
        "T": frames,
        "P": pairs,
        "stride_gb": grad.stride(0),
        "stride_gp": grad.stride(1),
        "W": window,
        "C": channels,
        "STRIDE_GC": grad.stride(2),
        "STRIDE_GW": grad.stride(3),
        "COMPUTE": TRITON_TYPE[compute],
    }
    programs = batch * triton.cdiv(frames, block_x) * triton.cdiv(channels, block_c)
    launch(resample_dx, (programs,), config, arguments, outputs=block_x * block_c)
    return dx
