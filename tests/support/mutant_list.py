"""The mutants of the shipped kernels, file by file; see `mutants`."""

import numpy as np
import triton.language as tl
from mutants import Mutant
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

INTERPOLATION = "triton/interpolation.py"
DEPTHWISE = "triton/depthwise.py"
OPERANDS = "triton/operands.py"
PREPARE = "triton/prepare.py"
SOURCE = "triton/source.py"
RESAMPLE = "triton/resample.py"
FUSED = "triton/fused.py"
WINDOWS = "triton/windows.py"
POINTWISE = "triton/pointwise.py"
FINISH = "triton/finish.py"
WIDE = "triton/wide.py"
CALL = "triton/call.py"


def _maximum_drops_nan() -> bool:
    """Whether the interpreter's `tl.maximum` takes the number beside a NaN, as 3.8's does, a GPU too, and 3.6's not."""
    nan, zero = (TensorHandle(np.array([value], np.float32), tl.float32) for value in (np.nan, 0.0))
    return not np.isnan(InterpreterBuilder().create_maxnumf(nan, zero).data[0])


_POSITIONS = [
    Mutant(
        "NaN goes on into positions",
        INTERPOLATION,
        "a = tl.where(a != a, instead, a)",
        "a = a",
        equivalent="the clamp after it drops NaN in this interpreter, and the window is NaN anyway"
        * _maximum_drops_nan(),
    ),
    Mutant("infinity goes on", INTERPOLATION, "return tl.minimum(tl.maximum(a, -LIMIT), LIMIT)", "return a"),
    Mutant("NaN window gives numbers", INTERPOLATION, ", f)) + window[4]", ", f))"),
    Mutant("last frame never reached", INTERPOLATION, "end = (T - 1) * 1.0  # exact", "end = (T - 2) * 1.0  # exact"),
    Mutant("window below one frame", INTERPOLATION, "tl.where(length >= 1.0, length - 1.0, 0.0)", "length - 1.0"),
    Mutant(
        "window's end before the clip",
        INTERPOLATION,
        "hi = tl.minimum(tl.maximum(hi, 0.0), end",
        "hi = tl.minimum(hi, end",
    ),
    Mutant(
        "window's start behind the clip",
        INTERPOLATION,
        "lo = tl.minimum(tl.maximum(start, 0.0), end).to",
        "lo = tl.maximum(start, 0.0).to",
    ),
    Mutant(
        "float32 positions",
        INTERPOLATION,
        "place = (t0 + 0.5) * ratio + (start - 0.5)\n",
        "place = ((t0 + 0.5) * ratio + (start - 0.5)).to(tl.float32).to(tl.float64)\n",
    ),
    Mutant("fine part of the ratio lost", INTERPOLATION, "b = n * fine + fraction", "b = fraction"),
    Mutant("i + 1 beyond the clip", INTERPOLATION, "most = (T - 2) * 1.0", "most = (T - 1) * 1.0"),
    Mutant("upper clamp does not hold T − 1", INTERPOLATION, "above = q >= hi[0]", "above = q > hi[0]"),
    Mutant(
        "frames behind the window count",
        INTERPOLATION,
        "inside = (t >= 0) & (t < W)",
        "inside = t >= 0",
    ),
    Mutant("frames before the window count", INTERPOLATION, "inside = (t >= 0) & (t < W)", "inside = t < W"),
    Mutant(
        "slope: tie at v = 0",
        INTERPOLATION,
        "before = half * ratio.to(COMPUTE) < 0.5",
        "before = half * ratio.to(COMPUTE) <= 0.5",
    ),
    Mutant(
        "slope: tie at the window's end",
        INTERPOLATION,
        "after = (W - half) * ratio.to(COMPUTE) < 0.5",
        "after = (W - half) * ratio.to(COMPUTE) <= 0.5",
    ),
    Mutant(
        "slope of a window below one frame",
        INTERPOLATION,
        "tail = tl.where(ratio * W >= 1.0, W * 1.0, 0.0)",
        "tail = (ratio * 0.0 + W)",
    ),
    Mutant(
        "slope: left edge not free", INTERPOLATION, "(start >= 0.0) & (start < end)", "(start > 0.0) & (start < end)"
    ),
    Mutant("slope goes on behind the clip", INTERPOLATION, "& (q < (T - 1 - base).to(COMPUTE))", ""),
    Mutant("padded channels read", INTERPOLATION, "c = tl.minimum(c, C - 1)", "c = c"),
    Mutant("channel offsets in 32 bits", INTERPOLATION, "if C * STRIDE >= 2**31:", "if C * STRIDE >= 2**63:"),
    Mutant("frame offsets in 32 bits", INTERPOLATION, "return i.to(tl.int64) * STRIDE", "return i * STRIDE"),
    Mutant(
        "lower clamp at equality",
        INTERPOLATION,
        "below = q < lo[0]",
        "below = q <= lo[0]",
        equivalent="at q = LO the clamped place is the place itself: the same i and f",
    ),
    Mutant(
        "rounded-up floor not put right",
        INTERPOLATION,
        "slip = tl.where(f < 0.0, 1.0, 0.0)",
        "slip = tl.where(f < 0.0, 0.0, 0.0)",
        equivalent="f is then above −1e-7 and y extrapolates by that much: below float32's own rounding",
    ),
]

_TONALITY = [
    Mutant("convolution reversed", DEPTHWISE, "row = (j + (k - K // 2))", "row = (j - (k - K // 2))"),
    Mutant(
        "one tap short",
        DEPTHWISE,
        "for k in tl.static_range(K):\n        if k != K // 2",
        "for k in tl.static_range(K - 1):\n        if k != K // 2",
    ),
    Mutant(
        "weight not centred", PREPARE, "(tl.sum(a, 0) / C)[None, :], 0.0)", "(tl.sum(a, 0) / PADDED)[None, :], 0.0)"
    ),
    Mutant("depthwise bias not folded in", PREPARE, " + tl.sum(whole * d[None, :], 1)", ""),
    Mutant("three products: one dropped", OPERANDS, "        acc = tl.dot(a_lo, b_hi, acc)\n", ""),
]

_FORWARD = [
    Mutant("tiles do not overlap", FUSED, ") * OWN - HALO", ") * BLOCK_T - HALO"),
    Mutant("first own frame left out", FUSED, "own = (j >= HALO) &", "own = (j > HALO) &"),
    Mutant(
        "halo stored as well",
        FUSED,
        "own = (j >= HALO) & (j < BLOCK_T - HALO) & (t < W)",
        "own = (j >= HALO) & (t < W)",
    ),
    Mutant(
        "stored beyond the window",
        FUSED,
        "own = (j >= HALO) & (j < BLOCK_T - HALO) & (t < W)",
        "own = (j >= HALO) & (j < BLOCK_T - HALO) & (t <= W)",
    ),
    Mutant("variance over padded channels", FUSED, "tl.sum(u * u, 1) / C + EPS", "tl.sum(u * u, 1) / PADDED + EPS"),
    Mutant("eps left out", FUSED, "tl.sum(u * u, 1) / C + EPS", "tl.sum(u * u, 1) / C"),
    Mutant("blend keeps all of y", FUSED, "out = (1 - strength) * ys[n]", "out = ys[n]"),
    Mutant(
        "blend: bias unscaled", FUSED, "gamma + strength * beta\n            mask", "gamma + beta\n            mask"
    ),
    Mutant(
        "window offsets in 32 bits",
        FUSED,
        "out_tile_ptr = out_ptr + pair.to(tl.int64) * (C * W)",
        "out_tile_ptr = out_ptr + pair * (C * W)",
    ),
    Mutant("clip offsets in 32 bits", SOURCE, "source_ptr + b.to(tl.int64) * stride_b", "source_ptr + b * stride_b"),
    Mutant(
        "every program takes every tile",
        FUSED,
        "tl.program_id(0), tiles, tl.num_programs(0)",
        "tl.program_id(0), tiles, 1",
    ),
    Mutant(
        "windows read beyond their end",
        SOURCE,
        "return tl.load(frame_ptr, mask=inside[:, None], other=0.0)",
        "return tl.load(frame_ptr)",
    ),
    Mutant(
        "interpolation in 16 bits",
        SOURCE,
        "return tl.load(frame_ptr).to(w0.dtype) * w0[:, None]",
        "return (tl.load(frame_ptr) * w0.to(source_ptr.dtype.element_ty)[:, None]).to(w0.dtype)",
    ),
    Mutant("wide: second chunk's squares forgotten", WIDE, "squares += u * u", "squares = u * u"),
]

_RESAMPLE = [
    Mutant("one candidate frame", RESAMPLE, "for e in tl.static_range(2):", "for e in tl.static_range(1):"),
    Mutant("too few frames for ratio < 1", RESAMPLE, "tl.ceil(2.0 * pace) + 1.0", "tl.ceil(1.0 * pace)"),
    Mutant(
        "frame at LO counted twice",
        RESAMPLE,
        "tl.where(ratio > 0.0, tl.ceil(first), W * 1.0)",
        "tl.where(ratio > 0.0, tl.floor(first) + 1.0, W * 1.0)",
    ),
    Mutant(
        "frames held at LO forgotten", RESAMPLE, "if (first > 0) & (lo > i0 - 1):", "if (first > 1) & (lo > i0 - 1):"
    ),
    Mutant(
        "frames held at HI forgotten",
        RESAMPLE,
        "if (last < W) & (hi < i0 + BLOCK_X):",
        "if (last < W - 1) & (hi < i0 + BLOCK_X):",
    ),
    Mutant(
        "held sample on a tile's border", RESAMPLE, "if (first > 0) & (lo > i0 - 1):", "if (first > 0) & (lo >= i0):"
    ),
    Mutant(
        "last free frame counted as held",
        RESAMPLE,
        "last = tl.maximum(tl.floor(last).to(tl.int32) + 1, first)",
        "last = tl.maximum(tl.floor(last).to(tl.int32), first)",
    ),
    Mutant("right neighbour forgotten", RESAMPLE, "tl.where(k == i + 1.0, f, 0.0)", "0.0 * f"),
    Mutant(
        "dx offsets in 32 bits",
        RESAMPLE,
        "out_ptr = dx_ptr + (b.to(tl.int64) * C + c)[None, :] * (T",
        "out_ptr = dx_ptr + (b * C + c)[None, :] * (T",
    ),
    Mutant(
        "dx stored behind the clip",
        RESAMPLE,
        "mask = (i < T)[:, None]",
        "mask = (i <= T)[:, None]",
    ),
    Mutant("position gradient of one chunk alone", RESAMPLE, "total += g * difference", "total = g * difference"),
    Mutant(
        "output beyond the window",
        RESAMPLE,
        "out_offsets = channel_offsets(c, C, SPAN, W)[None, :] + t[:, None]",
        "out_offsets = channel_offsets(c, C, SPAN, W)[None, :] + t[:, None] + 1",
    ),
]

_BACKWARD = [
    Mutant("dy: blend forgotten", WINDOWS, "dy = (1 - strength) * g", "dy = g"),
    Mutant("dy: convolution not transposed", WINDOWS, "row = (j + (K // 2 - k))", "row = (j + (k - K // 2))"),
    Mutant(
        "dz of the halo missing",
        WINDOWS,
        "dz = tl.load(dz_ptr + offsets, mask=inside, other=0.0)",
        "dz = tl.load(dz_ptr + offsets, mask=mask, other=0.0)",
    ),
    Mutant(
        "gradient of the halo counted",
        WINDOWS,
        "g = tl.load(grad_ptr + offsets, mask=mask, other=0.0)",
        "g = tl.load(grad_ptr + offsets, mask=inside, other=0.0)",
    ),
    Mutant("chunks write one place", WINDOWS, "tl.num_programs(1) + chunk) * 3", "tl.num_programs(1)) * 3"),
    Mutant(
        "slope to start forgotten",
        WINDOWS,
        "by_start += by_p * tl.load(along_start_ptr + t, mask=own, other=0.0)[:, None]",
        "by_start += by_p",
    ),
    Mutant(
        "placed behind the window",
        DEPTHWISE,
        "tl.store(index_ptr + offsets, tile[0] + i, mask=own)",
        "tl.store(index_ptr + offsets, tile[0] + i, mask=t <= W)",
    ),
    Mutant(
        "variance of padded channels, backward",
        POINTWISE,
        "inverse = tl.rsqrt(tl.sum(u * u, 1) / C + EPS)",
        "inverse = tl.rsqrt(tl.sum(u * u, 1) / PADDED + EPS)",
    ),
    Mutant(
        "LayerNorm's second term",
        POINTWISE,
        "- u * (scale * inverse * (heard / C))[:, None]",
        "- u * (scale * inverse * (heard / PADDED))[:, None]",
    ),
    Mutant("dγ without strength", POINTWISE, "dnorm += strength * fold_frames(", "dnorm += fold_frames("),
    Mutant(
        "partials share one row",
        POINTWISE,
        "row = tl.program_id(0).to(tl.int64) * C + c",
        "row = tl.program_id(0).to(tl.int64) * 0 + c",
    ),
    Mutant("product read beyond the window", POINTWISE, "mask = (t < W)[None, :]", "mask = (t <= W)[None, :]"),
    Mutant(
        "weight gradient of the last tile alone",
        POINTWISE,
        "tl.trans(du_lo), total, PRECISION)",
        "tl.trans(du_lo), total * 0, PRECISION)",
    ),
    Mutant(
        "dz: the weight not turned",
        POINTWISE,
        "weight_offsets = c[:, None] * PADDED + c[None, :]  # [out, in]",
        "weight_offsets = c[None, :] * PADDED + c[:, None]",
    ),
    Mutant(
        "partials: every second frame",
        POINTWISE,
        "(BLOCK_T // (FOLD * APART), FOLD, APART, PADDED)), 1)",
        "(BLOCK_T // (FOLD * APART), FOLD, APART, PADDED)), 1) * 0",
    ),
    Mutant("wide: norm's second chunk", WIDE, "gu += g * u * tl.load", "gu = g * u * tl.load"),
    Mutant(
        "wide: offsets in 32 bits",
        WIDE,
        "offs = base + channel_offsets(c, C, SPAN, W)[None, :]",
        "offs = base + c[None, :] * W",
        count=2,
    ),
    Mutant(
        "wide: product of the last block alone", WIDE, "a_hi, a_lo, acc, PRECISION", "a_hi, a_lo, acc * 0, PRECISION"
    ),
    Mutant(
        "wide: product not transposed", WIDE, "PADDED + row[:, None] if TRANSPOSED", "PADDED + row[:, None] if False"
    ),
    Mutant("wide: bias forgotten", WIDE, "acc += tl.load(bias_ptr + row)[:, None]", "acc += 0"),
    Mutant("wide: weight's first tile alone", WIDE, "total = multiply(z", "total += 0 * tile + 0 * multiply(z"),
    Mutant("wide: frames behind the window", WIDE, "inside = (t < W)[None, :]", "inside = (t <= W)[None, :]", count=2),
    Mutant("strength: β forgotten", FINISH, "strength += beta * tl.load", "strength += 0 * beta * tl.load"),
    Mutant("dA: centring forgotten", FINISH, "        da -= (tl.sum(da, 1) / C)[:, None]\n", ""),
    Mutant("dA: depthwise bias forgotten", FINISH, "+ d[:, None] * dbias[None, :]", "+ 0 * d[:, None]"),
    Mutant(
        "dA: the last shares alone",
        FINISH,
        "            total += tl.load(dproduct_ptr",
        "            total = tl.load(dproduct_ptr",
    ),
    Mutant("dA: shares over one another", FINISH, "[:, None, None] * (C * C) +", "[:, None, None] * 0 +"),
    Mutant("dβ without strength", FINISH, "total += strength[:, None] * tl.load(", "total += tl.load("),
    Mutant("taps: the next one's", FINISH, "taps_ptr + k * C, windows", "taps_ptr + (k + 1) % K * C, windows"),
    Mutant(
        "only the last rows summed",
        FINISH,
        "        total += tl.load(ptr + offsets",
        "        total = tl.load(ptr + offsets",
    ),
]

_HOST = [
    Mutant("one frame: neighbour read", SOURCE, '"STRIDE_T": 0 if single else', '"STRIDE_T": 1 if single else'),
    Mutant(
        "places read as if contiguous",
        SOURCE,
        "return cls(x, start.contiguous(), ratio.contiguous(), True)",
        "return cls(x, start, ratio, True)",
    ),
    Mutant(
        "no halo",
        CALL,
        "return max(4, triton.cdiv(self.taps // 2, 4) * 4)",
        "return 0 * self.taps",
    ),
]

MUTANTS = [*_POSITIONS, *_TONALITY, *_FORWARD, *_RESAMPLE, *_BACKWARD, *_HOST]
