"""Windows alone: cut out and resampled, and their gradients."""

from mutants import Mutant

RESAMPLE = [
    Mutant("one candidate frame", "resample_dx", "tl.static_range(2)", "tl.static_range(1)"),
    Mutant("too few frames for ratio < 1", "resample_dx", "tl.ceil(2.0 * pace) + 1.0", "tl.ceil(1.0 * pace)"),
    Mutant("frame at LO counted twice", "resample_dx", "tl.ceil(first)", "tl.floor(first) + 1.0"),
    Mutant("frames held at LO forgotten", "resample_dx", "first > 0", "first > 1"),
    Mutant("frames held at HI forgotten", "resample_dx", "last < W", "last < W - 1"),
    Mutant("held sample on a tile's border", "resample_dx", "lo > i0 - 1", "lo >= i0"),
    Mutant(
        "last free frame counted as held",
        "resample_dx",
        "tl.floor(last).to(tl.int32) + 1",
        "tl.floor(last).to(tl.int32)",
    ),
    Mutant("NaN in a third frame of dx", "resample_dx", "i0 + k < 2", "i0 + k < 3"),
    Mutant("NaN in one frame of dx alone", "resample_dx", "i0 + k < 2", "i0 + k < 1"),
    Mutant("dx of a window without a place", "resample_dx", "poison == poison", "lo == lo"),
    Mutant("right neighbour forgotten", "sample_weight", "tl.where(k == i + 1.0, f, 0.0)", "0.0 * f"),
    Mutant("dx: every chunk reads the first", "resample_dx", "chunk.to(tl.int64) * (BLOCK_C * STRIDE_GC)", "0"),
    Mutant(
        "dx: chunks in 32 bits",
        "resample_dx",
        "chunk.to(tl.int64) * (BLOCK_C * STRIDE_GC)",
        "chunk * (BLOCK_C * STRIDE_GC)",
    ),
    Mutant("dx offsets in 32 bits", "resample_dx", "b.to(tl.int64) * C", "b * C"),
    Mutant("dx stored behind the clip", "resample_dx", "i < T", "i <= T"),
    Mutant(
        "position gradient of one chunk alone",
        "resample_position_gradient",
        "total += g * difference",
        "total = g * difference",
    ),
    Mutant(
        "output beyond the window",
        "resample_forward",
        "channel_offsets(c, C, SPAN, W)[None, :] + t[:, None]",
        "channel_offsets(c, C, SPAN, W)[None, :] + t[:, None] + 1",
    ),
]
