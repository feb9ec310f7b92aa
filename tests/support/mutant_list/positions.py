"""Where windows lie, and the slopes of that."""

import numpy as np
import triton.language as tl
from mutants import Mutant
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def _maximum_drops_nan() -> bool:
    """Whether the interpreter's `tl.maximum` takes the number beside a NaN, as 3.8's does, a GPU too, and 3.6's not."""
    nan, zero = (TensorHandle(np.array([value], np.float32), tl.float32) for value in (np.nan, 0.0))
    return not np.isnan(InterpreterBuilder().create_maxnumf(nan, zero).data[0])


POSITIONS = [
    Mutant(
        "NaN goes on into positions",
        "finite",
        "tl.where(a != a, instead, a)",
        "a",
        equivalent="the clamp after it drops NaN in this interpreter, and the window is NaN anyway"
        * _maximum_drops_nan(),
    ),
    Mutant("infinity goes on", "finite", "tl.minimum(tl.maximum(a, -LIMIT), LIMIT)", "a"),
    Mutant(
        "NaN window gives numbers",
        "source_frames",
        "tl.where(below, lo[2], tl.where(above, hi[2], f)) + window[4]",
        "tl.where(below, lo[2], tl.where(above, hi[2], f))",
    ),
    Mutant("last frame never reached", "read_window", "T - 1", "T - 2"),
    Mutant(
        "window below one frame",
        "read_window",
        "start + tl.where(length >= 1.0, length - 1.0, 0.0)",
        "start + length - 1.0",
    ),
    Mutant("window's end before the clip", "read_window", "tl.maximum(hi, 0.0)", "hi"),
    Mutant(
        "window's start behind the clip",
        "read_window",
        "tl.minimum(tl.maximum(start, 0.0), end)",
        "tl.maximum(start, 0.0)",
    ),
    Mutant(
        "float32 positions",
        "place_tile",
        "(t0 + 0.5) * ratio + (start - 0.5)",
        "((t0 + 0.5) * ratio + (start - 0.5)).to(tl.float32).to(tl.float64)",
    ),
    Mutant("fine part of the ratio lost", "walk", "n * fine + fraction", "fraction"),
    Mutant("i + 1 beyond the clip", "place_tile", "T - 2", "T - 1"),
    Mutant("upper clamp does not hold T − 1", "source_frames", "q >= hi[0]", "q > hi[0]"),
    Mutant("frames behind the window count", "source_frames", "(t >= 0) & (t < W)", "t >= 0"),
    Mutant("frames before the window count", "source_frames", "(t >= 0) & (t < W)", "t < W"),
    Mutant(
        "slope: tie at v = 0", "position_slopes", "half * ratio.to(COMPUTE) < 0.5", "half * ratio.to(COMPUTE) <= 0.5"
    ),
    Mutant(
        "slope: tie at the window's end",
        "position_slopes",
        "(W - half) * ratio.to(COMPUTE) < 0.5",
        "(W - half) * ratio.to(COMPUTE) <= 0.5",
    ),
    Mutant(
        "slope of a window below one frame",
        "position_slopes",
        "tl.where(ratio * W >= 1.0, W * 1.0, 0.0)",
        "ratio * 0.0 + W",
    ),
    Mutant("slope: left edge not free", "position_slopes", "start >= 0.0", "start > 0.0"),
    Mutant(
        "slope goes on behind the clip",
        "position_slopes",
        "(q >= (0 - base).to(COMPUTE)) & (q < (T - 1 - base).to(COMPUTE))",
        "q >= (0 - base).to(COMPUTE)",
    ),
    Mutant("padded channels read", "channel_offsets", "tl.minimum(c, C - 1)", "c"),
    Mutant("channel offsets in 32 bits", "channel_offsets", "2 ** 31", "2 ** 63"),
    Mutant("frame offsets in 32 bits", "frame_offsets", "i.to(tl.int64)", "i"),
    Mutant(
        "lower clamp at equality",
        "source_frames",
        "q < lo[0]",
        "q <= lo[0]",
        equivalent="at q = LO the clamped place is the place itself: the same i and f",
    ),
    Mutant(
        "rounded-up floor not put right",
        "walk",
        "tl.where(f < 0.0, 1.0, 0.0)",
        "tl.where(f < 0.0, 0.0, 0.0)",
        equivalent="f is then above −1e-7 and y extrapolates by that much: below float32's own rounding",
    ),
]
