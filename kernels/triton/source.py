"""What the windows are made of: clips with places, or windows that are there already; on the host and in kernels."""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .interpolation import (
    RATIO_LIMIT,
    START_LIMIT,
    channel_offsets,
    finite,
    frame_offsets,
    joined_frames,
    place_tile,
    read_window,
    source_frames,
)
from .loops import prefetch


class Source(NamedTuple):
    """What the windows are made of: x [B, C, T] with start and ratio, or y [B, P, C, W] itself."""

    tensor: Tensor
    start: Tensor  # [B, P], contiguous
    ratio: Tensor  # likewise
    resample: bool

    @classmethod
    def of_clips(cls, x: Tensor, start: Tensor, ratio: Tensor) -> "Source":
        return cls(x, start, ratio, True)

    @classmethod
    def of_windows(cls, y: Tensor) -> "Source":
        return cls(y, y, y, False)

    def arguments(self, pairs: int) -> dict[str, Any]:
        """Arguments of the kernels that read windows."""
        stride = self.tensor.stride()
        single = self.tensor.shape[-1] == 1  # both neighbours of a single frame are itself
        return {
            "source_ptr": self.tensor,
            "start_ptr": self.start,
            "ratio_ptr": self.ratio,
            "T": self.tensor.shape[-1],
            "P": pairs,
            "stride_b": stride[0],
            "stride_p": stride[1],
            "STRIDE_C": stride[-2],
            "STRIDE_T": 0 if single else stride[-1],
            "RESAMPLE": self.resample,
        }


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
def place_joined(
    source_ptr,
    start_ptr,
    ratio_ptr,
    pair,
    pairs,
    second,
    t0,
    t,
    T,
    stride_b,
    stride_p,
    P: tl.constexpr,
    W: tl.constexpr,
    STRIDE_T: tl.constexpr,
    RESAMPLE: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """(frame_ptr, w0, w1) [BLOCK_T] for the frames t of window `pair` and, where `second`, of the next one."""
    following = tl.minimum(pair + 1, pairs - 1)
    b = pair // P
    b_next = following // P
    batch_ptr = source_ptr + b.to(tl.int64) * stride_b
    step = (b_next - b).to(tl.int64) * stride_b
    if RESAMPLE:
        window = read_window(start_ptr, ratio_ptr, pair, T, W, COMPUTE)
        tile = place_tile(window, t0, T, COMPUTE)
        next_window = read_window(start_ptr, ratio_ptr, following, T, W, COMPUTE)
        next_tile = place_tile(next_window, 0, T, COMPUTE)
        i, w0, w1 = joined_frames(t, second, window, tile, next_window, next_tile, W, COMPUTE)
        step += (next_tile[0] - tile[0]).to(tl.int64) * STRIDE_T
        tile_ptr = batch_ptr + tile[0].to(tl.int64) * STRIDE_T
        return tile_ptr + (frame_offsets(i, STRIDE_T) + tl.where(second, step, 0)), w0, w1
    else:
        step += ((following - b_next * P) - (pair - b * P)).to(tl.int64) * stride_p
        unused = tl.zeros(t.shape, COMPUTE)
        tile_ptr = batch_ptr + (pair - b * P).to(tl.int64) * stride_p
        return tile_ptr + (frame_offsets(t, STRIDE_T) + tl.where(second, step, 0)), unused, unused


@triton.jit
def prefetch_joined(
    source_ptr,
    start_ptr,
    ratio_ptr,
    pair,
    pairs,
    second,
    t,
    c,
    T,
    stride_b,
    P: tl.constexpr,
    C: tl.constexpr,
    SPAN: tl.constexpr,
    STRIDE_C: tl.constexpr,
):
    """Asks for the lines of channels c < SPAN that frames t read, as `place_joined` has them, where frames are
    neighbours in memory. A float32 place is a few frames off in a long clip, which only costs what it fetches.
    """
    following = tl.minimum(pair + 1, pairs - 1)
    start = tl.where(second, tl.load(start_ptr + following), tl.load(start_ptr + pair))
    ratio = tl.where(second, tl.load(ratio_ptr + following), tl.load(ratio_ptr + pair))
    place = finite(start, 0.0, START_LIMIT) + t * finite(ratio, 1.0, RATIO_LIMIT)
    i = tl.minimum(tl.maximum(place, 0.0), (T - 1) * 1.0).to(tl.int32)
    frame_ptr = source_ptr + (tl.where(second, following // P, pair // P).to(tl.int64) * stride_b + i)
    # Channels by frames: where nothing else decides, neighbouring threads get neighbours along the last axis.
    prefetch(frame_ptr[None, :] + channel_offsets(c, C, SPAN, STRIDE_C)[:, None])


@triton.jit
def read_at(
    frame_ptr,
    c,
    inside,
    C: tl.constexpr,
    SPAN: tl.constexpr,
    STRIDE_C: tl.constexpr,
    STRIDE_T: tl.constexpr,
    RESAMPLE: tl.constexpr,
):
    """What `interpolated` makes y of, from the frames at frame_ptr [BLOCK_T]: (left, right), or (y, y)."""
    ptr = frame_ptr[:, None] + channel_offsets(c, C, SPAN, STRIDE_C)[None, :]
    if RESAMPLE:
        return tl.load(ptr), tl.load(ptr + STRIDE_T)
    else:
        y = tl.load(ptr, mask=inside[:, None], other=0.0)
        return y, y


@triton.jit
def interpolated(read, w0, w1, RESAMPLE: tl.constexpr):
    """y [BLOCK_T, channels] of what `read_at` has read."""
    if RESAMPLE:
        return read[0].to(w0.dtype) * w0[:, None] + read[1].to(w0.dtype) * w1[:, None]
    else:
        return read[0].to(w0.dtype)


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
