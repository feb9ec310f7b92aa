"""Device functions: where output frames read a clip, with what weights, and how those places move with start and ratio.

Positions
---------
With v(t) = (t + 1/2)·r − 1/2 and M = max(r·W − 1, 0), the convention p = clamp(start + clamp(v, 0, M), 0, T − 1) is one
clamp by two scalars per window, for every start and ratio:

    p(t) = clamp(start + v(t), LO, HI),   LO = clamp(start, 0, T − 1),   HI = clamp(start + M, 0, T − 1)

because clamps are monotone; for r ≤ 0, v is negative throughout and LO = HI.

Float32 cannot hold p: at T = 200,000 its step is 1/64 of a frame, and even within a tile of 128 frames f would lose
seven bits. So float64 scalars place the tile's first frame, relative to a source frame `base` near it, and the n-th
is stepped from there, with everything in two parts: the ratio is coarse + fine, coarse having the 8 bits of a bfloat16,
and the first frame's place is whole + fraction:

    a = n·coarse + whole,   b = n·fine + fraction,   i = floor(a + b),   f = (a − i) + b

a and a − i are exact, so f has float32's own error, 1e-7, at any T, with or without fused multiply-adds. Only the floor
can be wrong, where a + b rounds up to a whole number: f is then negative, and both are put right.

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
def finite(a, instead, LIMIT: tl.constexpr):
    """a, `instead` where it is NaN, held to ±LIMIT; at least float32. In its own precision: float64 clamps are dear."""
    if a.dtype != tl.float64:
        a = a.to(tl.float32)
    a = tl.where(a != a, instead, a)
    return tl.minimum(tl.maximum(a, -LIMIT), LIMIT)


@triton.jit
def read_window(start_ptr, ratio_ptr, offset, T, W, COMPUTE: tl.constexpr):
    """Scalars of one window: (start, ratio, LO, HI) in float64, and poison, 0 or NaN, in COMPUTE."""
    start = tl.load(start_ptr + offset)
    ratio = tl.load(ratio_ptr + offset)
    poison = tl.where((start != start) | (ratio != ratio), float("nan"), 0.0).to(COMPUTE)
    start = finite(start, 0.0, START_LIMIT)
    ratio = finite(ratio, 1.0, RATIO_LIMIT).to(tl.float64)
    end = (T - 1) * 1.0  # exact: T is below 2²⁴
    lo = tl.minimum(tl.maximum(start, 0.0), end).to(tl.float64)
    start = start.to(tl.float64)
    length = ratio * W
    hi = start + tl.where(length >= 1.0, length - 1.0, 0.0)
    hi = tl.minimum(tl.maximum(hi, 0.0), end)
    return start, ratio, lo, hi, poison


@triton.jit
def two_parts(place, step, COMPUTE: tl.constexpr):
    """What `walk` takes, from float64 scalars: (whole, fraction, coarse, fine) of place + n·step."""
    whole = tl.floor(place)
    coarse = step.to(tl.float32).to(tl.bfloat16).to(tl.float32)
    fine = step - coarse.to(tl.float64)
    return whole.to(COMPUTE), (place - whole).to(COMPUTE), coarse.to(COMPUTE), fine.to(COMPUTE)


@triton.jit
def walk(n, parts):
    """i, f and q = i + f of place + n·step; n whole, of a floating type."""
    whole, fraction, coarse, fine = parts
    a = n * coarse + whole
    b = n * fine + fraction
    q = a + b
    i = tl.floor(q)
    f = (a - i) + b
    slip = tl.where(f < 0.0, 1.0, 0.0).to(f.dtype)
    return i - slip, f + slip, q


@triton.jit
def place_tile(window, t0, T, COMPUTE: tl.constexpr):
    """What places the frames of a window from t0 on, scalars: (base, t0, parts, lo, hi), relative to the source frame
    `base` (int32, in [0, T − 1]). parts: for `walk`. lo, hi: (bound, whole, fraction), whole being at most T − 2, so
    that i + 1 exists.
    """
    start, ratio, lo, hi, _ = window
    place = (t0 + 0.5) * ratio + (start - 0.5)
    base = tl.minimum(tl.maximum(place.to(tl.float32), lo.to(tl.float32)), hi.to(tl.float32)).to(tl.int32)
    origin = base.to(tl.float64)
    most = (T - 2) * 1.0
    lo_whole = tl.minimum(tl.floor(lo).to(tl.float32), most).to(tl.float64)
    hi_whole = tl.minimum(tl.floor(hi).to(tl.float32), most).to(tl.float64)
    return (
        base,
        t0,
        two_parts(place - origin, ratio, COMPUTE),
        ((lo - origin).to(COMPUTE), (lo_whole - origin).to(COMPUTE), (lo - lo_whole).to(COMPUTE)),
        ((hi - origin).to(COMPUTE), (hi_whole - origin).to(COMPUTE), (hi - hi_whole).to(COMPUTE)),
    )


@triton.jit
def source_frames(t, window, tile, W, COMPUTE: tl.constexpr):
    """For frames t [BLOCK_T]: i, the left source frame relative to the tile's base, and the weights of i and i + 1.

    Weights are 0 outside [0, W): that is the depthwise convolution's zero padding. base + i is in [0, T − 2] (for
    T = 1: −1, times a stride of 0).
    """
    _, t0, parts, lo, hi = tile
    i, f, q = walk((t - t0).to(COMPUTE), parts)
    below = q < lo[0]
    above = q >= hi[0]
    i = tl.where(below, lo[1], tl.where(above, hi[1], i))
    f = tl.where(below, lo[2], tl.where(above, hi[2], f)) + window[4]
    inside = (t >= 0) & (t < W)
    w0 = tl.where(inside, 1.0 - f, 0.0)
    w1 = tl.where(inside, f, 0.0)
    # Not a promise (the step is the ratio): it only tells the compiler's coalescing pass which axis runs fastest, which
    # Triton 3.6 and 3.8 guess differently. Divisibility is one element, so loads stay scalar.
    return tl.max_contiguous(i.to(tl.int32), 2), w0, w1


@triton.jit
def either(second, ones, others):
    """Of two tuples of three or four scalars, the latter where `second`."""
    chosen = ()
    for n in tl.static_range(len(ones)):
        chosen = chosen + (tl.where(second, others[n], ones[n]),)
    return chosen


@triton.jit
def joined_frames(t, second, window, tile, next_window, next_tile, W, COMPUTE: tl.constexpr):
    """`source_frames` of a tile whose frames t are the next window's where `second`, relative to each window's base."""
    one = (
        tile[0],
        tl.where(second, next_tile[1], tile[1]),
        either(second, tile[2], next_tile[2]),
        either(second, tile[3], next_tile[3]),
        either(second, tile[4], next_tile[4]),
    )
    poison = tl.where(second, next_window[4], window[4])
    return source_frames(t, (window[0], window[1], window[2], window[3], poison), one, W, COMPUTE)


@triton.jit
def position_slopes(t, window, tile, T, W, COMPUTE: tl.constexpr):
    """(∂p/∂start, ∂p/∂ratio) [BLOCK_T] in COMPUTE: right-hand derivatives, 0 outside the window.

    ∂p/∂start = [0 ≤ start + u < T − 1]. ∂p/∂ratio is that times ∂u/∂ratio: 0 where v < 0, W where v > r·W − 1 ≥ 0,
    t + 1/2 between (both ends included), and 0 throughout a window shorter than a frame (r·W < 1). The comparisons
    read (t + 1/2)·r < 1/2 and (W − t − 1/2)·r < 1/2, which no large start can blur.
    """
    start, ratio, _, _, _ = window
    base, t0, parts, _, _ = tile
    half = t.to(COMPUTE) + 0.5
    before = half * ratio.to(COMPUTE) < 0.5
    after = (W - half) * ratio.to(COMPUTE) < 0.5
    end = (T - 1) * 1.0
    top = start + tl.maximum(ratio * W - 1.0, 0.0)
    _, _, q = walk((t - t0).to(COMPUTE), parts)
    between = (q >= (0 - base).to(COMPUTE)) & (q < (T - 1 - base).to(COMPUTE))
    # Scalar truths go through numbers: the interpreter cannot broadcast a comparison of float scalars.
    at_start = tl.where((start >= 0.0) & (start < end), 1.0, 0.0).to(COMPUTE)
    at_top = tl.where((top >= 0.0) & (top < end), 1.0, 0.0).to(COMPUTE)
    tail = tl.where(ratio * W >= 1.0, W * 1.0, 0.0).to(COMPUTE)
    free = tl.where(before, at_start, tl.where(after, at_top, tl.where(between, 1.0, 0.0)))
    free = tl.where((t >= 0) & (t < W), free, 0.0).to(COMPUTE)
    return free, free * tl.where(before, 0.0, tl.where(after, tail, half))


@triton.jit
def channel_offsets(c, C: tl.constexpr, SPAN: tl.constexpr, STRIDE: tl.constexpr):
    """Element offsets of channels c < SPAN, those beyond C − 1 held there; 64 bits where 32 do not suffice."""
    if SPAN != C:
        c = tl.minimum(c, C - 1)
    if C * STRIDE >= 2**31:
        return c.to(tl.int64) * STRIDE
    else:
        return c * STRIDE


@triton.jit
def frame_offsets(i, STRIDE: tl.constexpr):
    """Element offsets of frames i; 64 bits unless they are neighbours in memory (frame numbers stay below 2²⁴)."""
    if STRIDE == 1:
        return i
    else:
        return i.to(tl.int64) * STRIDE
