"""Device functions: where output frames read a clip, with what weights, and how those places move with start and ratio.

Positions
---------
With v(t) = (t + 1/2)·r − 1/2 and M = max(r·W − 1, 0), the convention p = clamp(start + clamp(v, 0, M), 0, T − 1) is one
clamp by two scalars per window, for every start and ratio:

    p(t) = clamp(start + v(t), LO, HI),   LO = clamp(start, 0, T − 1),   HI = clamp(start + M, 0, T − 1)

because clamps are monotone; for r ≤ 0, v is negative throughout and LO = HI.

Float32 cannot hold p: at T = 200,000 its step is 1/64 of a frame. So a tile of frames gets a float64 scalar base, the
whole source frame under its middle; inside the tile everything is float32 relative to that base. The error is half a
float32 step of half the tile's span: 4e-6 frames for 128 frames at ratio 1, and never more than a plain float32
position's.

Guards
------
`read_window` makes start and ratio finite before anything else, so no position, and no address, can be NaN, infinite or
outside [0, T − 1]. A NaN comes back as `poison`, which is added to the window's weights. NaN is replaced by `tl.where`:
`tl.minimum` and `tl.maximum` treat it differently on a GPU and in the interpreter.

A clip of one frame (T = 1) is read with a frame stride of 0, which the launchers pass: both neighbours are then x[0].
"""

import triton
import triton.language as tl

START_LIMIT = tl.constexpr(1.0e12)
RATIO_LIMIT = tl.constexpr(1.0e9)


@triton.jit
def read_window(start_ptr, ratio_ptr, offset, T, W, COMPUTE: tl.constexpr):
    """Scalars of one window: (start, ratio, LO, HI) in float64, and poison, 0 or NaN, in COMPUTE."""
    start = tl.load(start_ptr + offset).to(tl.float64)
    ratio = tl.load(ratio_ptr + offset).to(tl.float64)
    poison = tl.where((start != start) | (ratio != ratio), float("nan"), 0.0).to(COMPUTE)
    start = tl.where(start != start, 0.0, start)
    ratio = tl.where(ratio != ratio, 1.0, ratio)
    start = tl.minimum(tl.maximum(start, -START_LIMIT), START_LIMIT)
    ratio = tl.minimum(tl.maximum(ratio, -RATIO_LIMIT), RATIO_LIMIT)
    end = (T - 1) * 1.0
    lo = tl.minimum(tl.maximum(start, 0.0), end)
    hi = tl.minimum(tl.maximum(start + tl.maximum(ratio * W - 1.0, 0.0), 0.0), end)
    return start, ratio, lo, hi, poison


@triton.jit
def place_tile(window, t0, T, W, BLOCK_T: tl.constexpr, COMPUTE: tl.constexpr):
    """Scalars of the frames [t0, t0 + BLOCK_T) of a window, relative to the source frame `base` (int32, in [0, T − 1]).

    (base, middle, shift, ratio, lo, hi): p(t) − base = clamp((t − middle)·ratio + shift, lo, hi), all but the first two
    in COMPUTE. The middle is that of the frames that exist, so that a short window at a large ratio loses nothing.
    """
    start, ratio, lo, hi, _ = window
    middle = t0 + tl.minimum(W - t0, BLOCK_T) // 2
    p = (middle + 0.5) * ratio + (start - 0.5)
    base = tl.minimum(tl.maximum(p, lo), hi).to(tl.int32)
    whole = base.to(tl.float64)
    return (
        base,
        middle,
        (p - whole).to(COMPUTE),
        ratio.to(COMPUTE),
        (lo - whole).to(COMPUTE),
        (hi - whole).to(COMPUTE),
    )


@triton.jit
def source_frames(t, window, tile, T, W):
    """For frames t [BLOCK_T]: i, the left source frame relative to the tile's base, and the weights of i and i + 1.

    Weights are 0 outside [0, W): that is the depthwise convolution's zero padding. base + i is in [0, T − 2] (for
    T = 1: −1, times a stride of 0).
    """
    poison = window[4]
    base, middle, shift, ratio, lo, hi = tile
    q = tl.minimum(tl.maximum((t - middle).to(shift.dtype) * ratio + shift, lo), hi)
    i = tl.minimum(tl.floor(q).to(tl.int32), T - 2 - base)
    f = q - i.to(q.dtype)
    inside = (t >= 0) & (t < W)
    w0 = tl.where(inside, 1.0 - f, 0.0) + poison
    w1 = tl.where(inside, f, 0.0) + poison
    # Not a promise (the step is the ratio): it only tells the compiler's coalescing pass which axis runs fastest, which
    # Triton 3.6 and 3.8 guess differently. Divisibility is one element, so loads stay scalar.
    return tl.max_contiguous(i, 2), w0, w1


@triton.jit
def position_slopes(t, window, tile, T, W):
    """(∂p/∂start, ∂p/∂ratio) [BLOCK_T] in the tile's dtype: right-hand derivatives, 0 outside the window.

    ∂p/∂start = [0 ≤ start + u < T − 1]. ∂p/∂ratio is that times ∂u/∂ratio: 0 where v < 0, W where v > r·W − 1 ≥ 0,
    t + 1/2 between (both ends included), and 0 throughout a window shorter than a frame (r·W < 1). The comparisons
    read (t + 1/2)·r < 1/2 and (W − t − 1/2)·r < 1/2, which no large start can blur.
    """
    start, ratio64, _, _, _ = window
    base, middle, shift, ratio, _, _ = tile
    half = t.to(shift.dtype) + 0.5
    before = half * ratio < 0.5
    after = (W - half) * ratio < 0.5
    end = (T - 1) * 1.0
    top = start + tl.maximum(ratio64 * W - 1.0, 0.0)
    q = (t - middle).to(shift.dtype) * ratio + shift
    between = (q >= (0 - base).to(q.dtype)) & (q < (T - 1 - base).to(q.dtype))
    # Scalar truths go through numbers: the interpreter cannot broadcast a comparison of float scalars.
    at_start = tl.where((start >= 0.0) & (start < end), 1.0, 0.0).to(q.dtype)
    at_top = tl.where((top >= 0.0) & (top < end), 1.0, 0.0).to(q.dtype)
    tail = tl.where(ratio64 * W >= 1.0, W * 1.0, 0.0).to(q.dtype)
    free = tl.where(before, at_start, tl.where(after, at_top, tl.where(between, 1.0, 0.0)))
    free = tl.where((t >= 0) & (t < W), free, 0.0)
    return free, free * tl.where(before, 0.0, tl.where(after, tail, half))
