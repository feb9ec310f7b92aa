"""The mutants of the shipped kernels, stage by stage; see `mutants`."""

import numpy as np
import triton.language as tl
from mutants import Mutant
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def _maximum_drops_nan() -> bool:
    """Whether the interpreter's `tl.maximum` takes the number beside a NaN, as 3.8's does, a GPU too, and 3.6's not."""
    nan, zero = (TensorHandle(np.array([value], np.float32), tl.float32) for value in (np.nan, 0.0))
    return not np.isnan(InterpreterBuilder().create_maxnumf(nan, zero).data[0])


_POSITIONS = [
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

_TONALITY = [
    Mutant("convolution reversed", "depthwise", "j + (k - K // 2)", "j - (k - K // 2)"),
    Mutant("one tap short", "depthwise", "tl.static_range(K)", "tl.static_range(K - 1)"),
    Mutant("weight not centred", "centred", "tl.sum(a, 0) / C", "tl.sum(a, 0) / PADDED"),
    Mutant("padded weights not zero", "centred", "tl.where(mask, a - (tl.sum(a, 0) / C)[None, :], 0.0)", "a - 0.1"),
    Mutant("depthwise bias not folded in", "store_vectors", "vectors[0] + shift", "vectors[0]"),
    Mutant("within: depthwise bias taken for ones", "prepare_within", "a * d[None, :]", "a"),
    Mutant(
        "within: the last channels' bias alone", "prepare_within", "shift += a * d[None, :]", "shift = a * d[None, :]"
    ),
    Mutant(
        "weight kept: zeros",
        "store_operands",
        "tl.store(hi_ptr + offsets, hi, mask=keep)",
        "tl.store(hi_ptr + offsets, hi * 0, mask=keep)",
    ),
    Mutant("bias not centred", "store_vectors", "b - tl.sum(b, 0) / C", "b"),
    Mutant("taps in the places of others", "store_vectors", "n * PADDED", "(n - n % 2) * PADDED"),
    Mutant("three products: one dropped", "multiply", "acc = tl.dot(a_lo, b_hi, acc)", "pass"),
]

_FORWARD = [
    Mutant(
        "numbers by fours in their own order",
        "by_fours",
        "tl.trans(tl.load(row_ptr + four))",
        "tl.load(row_ptr + four)",
    ),
    Mutant("products in their own order", "turned_weight", "(3, 4, 0, 2, 1)", "(3, 4, 0, 1, 2)"),
    Mutant(
        "within: biases not kept",
        "windowed_tonality_forward",
        "tl.where(last, vectors_ptr, mine_ptr) if KEEP else mine_ptr",
        "mine_ptr",
    ),
    Mutant(
        "within: weight not kept", "windowed_tonality_forward", "last", "last & (tl.program_id(0) < 0)", count=2, nth=0
    ),
    Mutant("tiles do not overlap", "tile_frames", "tile_id.to(tl.int64) * OWN", "tile_id.to(tl.int64) * (OWN + HALO)"),
    Mutant("second window as the first", "tile_frames", "t0 + j >= JOINED", "t0 + j < 0"),
    Mutant("second window begins early", "tile_frames", "t0 + j >= JOINED", "t0 + j >= JOINED - 4"),
    Mutant(
        "second window's clip forgotten", "place_joined", "(b_next - b).to(tl.int64) * stride_b", "b.to(tl.int64) * 0"
    ),
    Mutant("second window's place forgotten", "place_joined", "(next_tile[0] - tile[0])", "(tile[0] - tile[0])"),
    Mutant("second window's ratio forgotten", "joined_frames", "either(second, tile[2], next_tile[2])", "tile[2]"),
    Mutant("second window's clamp forgotten", "joined_frames", "either(second, tile[4], next_tile[4])", "tile[4]"),
    Mutant(
        "second window's poison forgotten", "joined_frames", "tl.where(second, next_window[4], window[4])", "window[4]"
    ),
    Mutant(
        "second window's strength forgotten",
        "windowed_tonality_forward",
        "tl.where(second, next_strength, tl.load(strength_ptr + pair))",
        "tl.load(strength_ptr + pair) + 0 * t",
    ),
    Mutant(
        "frames behind the last window",
        "windowed_tonality_forward",
        "pair + tl.where(second, 1, 0) < pairs",
        "(t < W)",
    ),
    Mutant(
        "the next tile's channels are this one's",
        "windowed_tonality_forward",
        "tl.minimum(tile_id + tl.num_programs(0), tiles - 1)",
        "tile_id",
    ),
    Mutant(
        "channels read ahead are those at hand",
        "windowed_tonality_forward",
        "wide_c + (n + 1) * BLOCK_C",
        "wide_c + n * BLOCK_C",
    ),
    Mutant(
        "cache lines asked for behind the clip",
        "prefetch_joined",
        "tl.minimum(tl.maximum(place, 0.0), (T - 1) * 1.0)",
        "tl.maximum(place, 0.0) + T",
    ),
    Mutant("cache lines asked for before the clip", "prefetch_joined", "tl.maximum(place, 0.0)", "place"),
    Mutant(
        "neighbour's frames from the wrong side",
        "at_distance",
        "tl.arange(0, ROWS) + DISTANCE // 4",
        "tl.arange(0, ROWS) - DISTANCE // 4",
    ),
    Mutant("first own frame left out", "windowed_tonality_forward", "j >= HALO", "j > HALO"),
    Mutant("halo stored as well", "windowed_tonality_forward", "(j >= HALO) & (j < BLOCK_T - HALO)", "j >= HALO"),
    Mutant(
        "stored beyond the window",
        "windowed_tonality_forward",
        "(j >= HALO) & (j < BLOCK_T - HALO) & (t < W)",
        "(j >= HALO) & (j < BLOCK_T - HALO) & (t <= W)",
    ),
    Mutant(
        "variance over padded channels",
        "windowed_tonality_forward",
        "tl.sum(u * u, 1) / C",
        "tl.sum(u * u, 1) / PADDED",
    ),
    Mutant("eps left out", "windowed_tonality_forward", "tl.sum(u * u, 1) / C + EPS", "tl.sum(u * u, 1) / C"),
    Mutant("blend keeps all of y", "windowed_tonality_forward", "(1 - strength)[:, None] * ys[n]", "ys[n]"),
    Mutant("blend: bias unscaled", "windowed_tonality_forward", "strength[:, None] * beta", "beta"),
    Mutant("window offsets in 32 bits", "windowed_tonality_forward", "pair.to(tl.int64)", "pair"),
    Mutant("clip offsets in 32 bits", "place_frames", "b.to(tl.int64)", "b"),
    Mutant(
        "every program takes every tile",
        "windowed_tonality_forward",
        "runtime_range(tl.program_id(0), tiles, tl.num_programs(0), num_stages=1)",
        "runtime_range(tl.program_id(0), tiles, 1, num_stages=1)",
    ),
    Mutant(
        "windows read beyond their end",
        "read_frames",
        "tl.load(frame_ptr, mask=inside[:, None], other=0.0)",
        "tl.load(frame_ptr)",
    ),
    Mutant(
        "interpolation in 16 bits",
        "read_frames",
        "tl.load(frame_ptr).to(w0.dtype) * w0[:, None]",
        "(tl.load(frame_ptr) * w0.to(source_ptr.dtype.element_ty)[:, None]).to(w0.dtype)",
    ),
    Mutant(
        "windows read beyond their end, forward",
        "read_at",
        "tl.load(ptr, mask=inside[:, None], other=0.0)",
        "tl.load(ptr)",
    ),
    Mutant("wide: second chunk's squares forgotten", "norm_blend", "squares += u * u", "squares = u * u"),
]

_RESAMPLE = [
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

_BACKWARD = [
    Mutant("dy: blend forgotten", "window_backward", "(1 - strength) * g", "g"),
    Mutant("dy: convolution not transposed", "window_backward", "K // 2 - k", "k - K // 2"),
    Mutant(
        "dz of the halo missing",
        "window_backward",
        "tl.load(dz_ptr + offsets, mask=inside, other=0.0, eviction_policy=LAST_READ)",
        "tl.load(dz_ptr + offsets, mask=mask, other=0.0)",
    ),
    Mutant("24 bits: not rounded", "pack", "tl.where(a == a, 0x80, 0)", "0"),
    Mutant("24 bits: NaN beyond all numbers", "pack", "tl.where(a == a, 0x80, 0)", "0x80"),
    Mutant("24 bits: the lower ones signed", "unpack", "lower.to(tl.int32) & 0xFF", "lower.to(tl.int32)"),
    Mutant(
        "24 bits: the lower ones left out",
        "joint_backward",
        "tl.store(dz_lo_ptr + base + offsets, lower, mask=mask)",
        "tl.store(dz_lo_ptr + base + offsets, lower * 0, mask=mask)",
    ),
    Mutant(
        "24 bits: dz of the halo missing",
        "window_backward",
        "tl.load(dz_ptr + offsets, mask=inside, other=0, eviction_policy=LAST_READ)",
        "tl.load(dz_ptr + offsets, mask=mask, other=0)",
    ),
    Mutant(
        "24 bits: the halo's lower ones missing",
        "window_backward",
        "tl.load(dz_lo_ptr + offsets, mask=inside, other=0, eviction_policy=LAST_READ)",
        "tl.load(dz_lo_ptr + offsets, mask=mask, other=0)",
    ),
    Mutant("24 bits: lower ones of the first window", "window_backward", "dz_lo_ptr += base", "pass"),
    Mutant(
        "gradient of the halo counted",
        "window_backward",
        "tl.load(grad_ptr + offsets, mask=mask, other=0.0, eviction_policy=LAST_READ)",
        "tl.load(grad_ptr + offsets, mask=inside, other=0.0)",
    ),
    Mutant("every chunk of a window is the first", "window_backward", "program - pair * CHUNKS", "0 * program"),
    Mutant("z: every chunk of a tile is the first", "recompute_windows", "chunk * BLOCK_C", "0 * chunk"),
    Mutant("the newest tile left out", "joint_backward", "tiles - 1 - n", "tiles - 2 - n"),
    Mutant("norm: the newest tile left out", "norm_backward", "tiles - 1 - n", "tiles - 2 - n"),
    Mutant(
        "dx: the newest samples left out",
        "resample_dx",
        "tl.num_programs(0) - 1 - tl.program_id(0)",
        "tl.maximum(tl.num_programs(0) - 2 - tl.program_id(0), 0)",
    ),
    Mutant(
        "chunks write one place",
        "window_backward",
        "pair.to(tl.int64) * CHUNKS + chunk",
        "pair.to(tl.int64) * CHUNKS",
    ),
    Mutant(
        "slope to start forgotten",
        "window_backward",
        "by_p * tl.load(along_start_ptr + t, mask=own, other=0.0)[:, None]",
        "by_p",
    ),
    Mutant(
        "placed behind the window",
        "store_places",
        "tl.store(index_ptr + offsets, tile[0] + i, mask=own)",
        "tl.store(index_ptr + offsets, tile[0] + i, mask=t <= W)",
    ),
    Mutant(
        "variance of padded channels, backward", "norm_backward", "tl.sum(u * u, 1) / C", "tl.sum(u * u, 1) / PADDED"
    ),
    Mutant("LayerNorm's second term", "norm_backward", "heard / C", "heard / PADDED"),
    Mutant(
        "dγ without strength",
        "norm_backward",
        "strength * fold_frames(gn, FOLD, APART, BLOCK_T, PADDED)",
        "fold_frames(gn, FOLD, APART, BLOCK_T, PADDED)",
    ),
    Mutant(
        "partials share one row",
        "norm_backward",
        "tl.program_id(0).to(tl.int64) * C",
        "tl.program_id(0).to(tl.int64) * 0",
    ),
    Mutant("product read beyond the window", "product_backward", "t < W", "t <= W"),
    Mutant("in one: read beyond the window", "joint_backward", "(t < W)[None, :]", "(t <= W)[None, :]"),
    Mutant("in one: heard in another tile", "joint_backward", "heard_ptr + tile", "heard_ptr + n", count=2, nth=1),
    Mutant("in one: one frame heard", "joint_backward", "tl.sum(heard, 0)", "tl.max(heard, 0)"),
    Mutant("heard in another tile", "norm_backward", "heard_ptr + tile", "heard_ptr + n", count=2, nth=1),
    Mutant("one frame heard", "norm_backward", "tl.sum(heard, 0)", "tl.max(heard, 0)"),
    Mutant(
        "wide: heard in one tile",
        "wide_norm_backward",
        "heard_ptr + tl.program_id(0)",
        "heard_ptr + 0 * tl.program_id(0)",
        count=2,
        nth=1,
    ),
    Mutant("in one: padded channels read", "joint_backward", "mask = mask & (c < C)[:, None]", "pass"),
    Mutant("in one: variance of padded channels", "joint_backward", "square / C", "square / PADDED"),
    Mutant("in one: eps left out", "joint_backward", "square / C + EPS", "square / C"),
    Mutant("in one: LayerNorm's second term", "joint_backward", "heard / C", "heard / PADDED"),
    Mutant("in one: heard without γ", "joint_backward", "sum_both(u * u, gg * u, 0)", "sum_both(u * u, g * u, 0)"),
    Mutant(
        "in one: u without bias",
        "joint_backward",
        "tl.load(pointwise_bias_ptr + c)",
        "tl.load(pointwise_bias_ptr + c) * 0",
    ),
    Mutant(
        "in one: dγ without its scale",
        "joint_backward",
        "fold_columns(g * u * scale[None, :], PADDED, BLOCK_T)",
        "fold_columns(g * u * inverse[None, :], PADDED, BLOCK_T)",
    ),
    Mutant(
        "in one: dâ of the last tile alone",
        "joint_backward",
        "dbias += fold_columns(du, PADDED, BLOCK_T)",
        "dbias = fold_columns(du, PADDED, BLOCK_T)",
    ),
    Mutant(
        "in one: dγ of the last tile alone",
        "joint_backward",
        "dnorm += fold_columns(g * u * scale[None, :], PADDED, BLOCK_T)",
        "dnorm = fold_columns(g * u * scale[None, :], PADDED, BLOCK_T)",
    ),
    Mutant(
        "in one: dÂ of the last tile alone",
        "joint_backward",
        "total = multiply(z_hi, z_lo, tl.trans(du_hi), tl.trans(du_lo), total, PRECISION)",
        "total = multiply(z_hi, z_lo, tl.trans(du_hi), tl.trans(du_lo), total * 0, PRECISION)",
        count=2,
        nth=1,
    ),
    Mutant(
        "in one: dz by the weight not turned",
        "joint_backward",
        "multiply(tl.trans(hi), tl.trans(lo), du_hi, du_lo, dz, PRECISION)",
        "multiply(hi, lo, du_hi, du_lo, dz, PRECISION)",
    ),
    Mutant("in one: windows in 32 bits", "joint_backward", "pair.to(tl.int64) * (C * W)", "pair * (C * W)"),
    Mutant("in one: partials share one row", "joint_backward", "dbias_ptr + program * C + c", "dbias_ptr + c"),
    Mutant("in one: every program takes every tile", "joint_backward", "tl.num_programs(0)", "1"),
    Mutant(
        "in one: frames forgotten",
        "fold_columns",
        "tl.sum(tl.sum(tl.reshape(q, (PADDED, BLOCK_T // 8, 4, 2)), 3), 1)",
        "tl.max(tl.sum(tl.reshape(q, (PADDED, BLOCK_T // 8, 4, 2)), 3), 1)",
    ),
    Mutant("in one, restored: du without spread", "joint_backward", "strength * spread", "strength + 0 * spread"),
    Mutant(
        "TF32's weight: the rest forgotten",
        "store_operands",
        "tl.store(half_lo_ptr + offsets, half_lo, mask=keep)",
        "tl.store(half_lo_ptr + offsets, half_lo * 0, mask=keep)",
    ),
    Mutant(
        "weight gradient of the last tile alone",
        "product_backward",
        "multiply(z_hi, z_lo, tl.trans(du_hi), tl.trans(du_lo), total, PRECISION)",
        "multiply(z_hi, z_lo, tl.trans(du_hi), tl.trans(du_lo), total * 0, PRECISION)",
    ),
    Mutant(
        "dz: the weight not turned",
        "product_backward",
        "c[:, None] * PADDED + c[None, :]",
        "c[None, :] * PADDED + c[:, None]",
    ),
    Mutant(
        "partials: frames forgotten",
        "fold_frames",
        "tl.sum(tl.reshape(q, (BLOCK_T // (FOLD * APART), FOLD, APART, PADDED)), 1)",
        "tl.sum(tl.reshape(q, (BLOCK_T // (FOLD * APART), FOLD, APART, PADDED)), 1) * 0",
    ),
    Mutant(
        "wide: norm's second chunk",
        "wide_norm_backward",
        "gu += g * u * tl.load(norm_weight_ptr + c, mask=c < C, other=0.0).to(COMPUTE)[None, :]",
        "gu = g * u * tl.load(norm_weight_ptr + c, mask=c < C, other=0.0).to(COMPUTE)[None, :]",
    ),
    Mutant(
        "wide: offsets in 32 bits",
        "wide_norm_backward",
        "channel_offsets(c, C, SPAN, W)[None, :]",
        "c[None, :] * W",
        count=2,
    ),
    Mutant(
        "wide: product of the last block alone",
        "wide_product",
        "multiply(hi, lo, a_hi, a_lo, acc, PRECISION)",
        "multiply(hi, lo, a_hi, a_lo, acc * 0, PRECISION)",
    ),
    Mutant(
        "wide: product not transposed",
        "wide_product",
        "c[None, :] * PADDED + row[:, None] if TRANSPOSED else row[:, None] * PADDED + c[None, :]",
        "c[None, :] * PADDED + row[:, None] if False else row[:, None] * PADDED + c[None, :]",
    ),
    Mutant("wide: bias forgotten", "wide_product", "tl.load(bias_ptr + row)[:, None]", "0"),
    Mutant(
        "wide: weight's first tile alone",
        "wide_weight",
        "total = multiply(z_hi, z_lo, tl.trans(du_hi), tl.trans(du_lo), total, PRECISION)",
        ("total += 0 * tile + 0 * multiply(z_hi, z_lo, tl.trans(du_hi), tl.trans(du_lo), total, PRECISION)"),
    ),
    Mutant("wide: frames behind the window", "wide_product", "t < W", "t <= W"),
    Mutant(
        "strength: β forgotten",
        "finish_window",
        "beta * tl.load(sums_ptr + pair * C + c, mask=c < C, other=0.0)",
        "0 * beta * tl.load(sums_ptr + pair * C + c, mask=c < C, other=0.0)",
    ),
    Mutant("strength: the first window's tiles", "finish_window", "pair * TILES", "0 * pair"),
    Mutant("strength: tiles that are not there", "finish_window", "tile < TILES", "tile <= TILES"),
    Mutant("dA: centring forgotten", "finish_column", "da -= tl.sum(tl.sum(da, 1), 0) / C", "pass"),
    Mutant("dA: depthwise bias forgotten", "finish_column", "d * dbias", "0 * d"),
    Mutant("dd₀: A not centred", "finish_column", "a -= tl.sum(tl.sum(a, 1), 0) / C", "pass"),
    Mutant("sums: rows that are not there", "load_rows", "row < rows", "row <= rows"),
    Mutant("sums: columns that are not there", "load_rows", "c < C", "c <= C"),
    Mutant("dA: the first channel's", "finish_column", "dproduct_ptr + n * C", "dproduct_ptr + 0 * n"),
    Mutant(
        "dA: the last shares alone",
        "finish_column",
        "total += load_rows(dproduct_ptr + n * C, first, shares, C * C, c, C, BLOCK_R)",
        "total = load_rows(dproduct_ptr + n * C, first, shares, C * C, c, C, BLOCK_R)",
    ),
    Mutant(
        "dA: the last bias alone",
        "finish_column",
        "bias += load_rows(dbias_ptr, first, rows, C, c, C, BLOCK_R)",
        "bias = load_rows(dbias_ptr, first, rows, C, c, C, BLOCK_R)",
    ),
    Mutant("dA: shares over one another", "finish_column", "C * C", "0"),
    Mutant("dA: as many shares as rows", "finish_column", "tl.maximum(rows, shares)", "rows + 0 * shares"),
    Mutant("dA: as many rows as shares", "finish_column", "tl.maximum(rows, shares)", "shares + 0 * rows"),
    Mutant(
        "dβ without strength",
        "finish_norm_bias",
        "strength[None, :, None] * load_rows(sums_ptr, first, windows, C, c, C, BLOCK_R)",
        "load_rows(sums_ptr, first, windows, C, c, C, BLOCK_R)",
    ),
    Mutant(
        "dβ: strength of windows that are not there",
        "finish_norm_bias",
        "tl.load(strength_ptr + row, mask=row < windows, other=0.0)",
        "tl.load(strength_ptr + row)",
    ),
    Mutant("taps: the next one's", "finish_gradients", "k * C", "(k + 1) % K * C"),
    Mutant(
        "only the last rows summed",
        "sum_rows",
        "total += load_rows(ptr, first, rows, stride, c, C, BLOCK_R)",
        "total = load_rows(ptr, first, rows, stride, c, C, BLOCK_R)",
    ),
]

_RESTORED = [
    Mutant("restored: spread forgotten", "windowed_tonality_forward", "scale *= spread", "pass"),
    Mutant("restored: mean unscaled", "windowed_tonality_forward", "strength * mean", "mean"),
    Mutant("restored, wide: spread forgotten", "norm_blend", "scale *= spread", "pass"),
    Mutant("restored, wide: mean unscaled", "norm_blend", "strength * mean", "mean"),
    Mutant(
        "restored: padded channels in the mean",
        "tile_moments",
        "tl.where((c < C)[None, :], ys[0], 0.0) if C != PADDED else ys[0]",
        "ys[0]",
    ),
    Mutant(
        "restored: later padded channels in the mean",
        "tile_moments",
        "tl.where((c + n * BLOCK_C < C)[None, :], ys[n], 0.0) if C != PADDED else ys[n]",
        "ys[n]",
    ),
    Mutant(
        "restored: padded channels in the variance",
        "tile_moments",
        "away = tl.where((c + n * BLOCK_C < C)[None, :], away, 0.0)",
        "pass",
    ),
    Mutant("restored: the last squares alone", "tile_moments", "square += away * away", "square = away * away"),
    Mutant("restored: mean of PADDED", "tile_moments", "tl.sum(total, 1) / C", "tl.sum(total, 1) / PADDED"),
    Mutant("restored: eps left out", "tile_moments", "tl.sum(square, 1) / C + EPS", "tl.sum(square, 1) / C"),
    Mutant("restored: last block is full", "store_moments", "tl.minimum(C - block * BLOCK_C, BLOCK_C)", "BLOCK_C"),
    Mutant(
        "restored: padded channels in a block's mean",
        "store_moments",
        "tl.where((c < C)[None, :], y, 0.0) if C != SPAN else y",
        "y",
    ),
    Mutant(
        "restored: padded channels in a block's squares",
        "store_moments",
        "away = tl.where((c < C)[None, :], away, 0.0)",
        "pass",
    ),
    Mutant("restored: blocks write one place", "store_moments", "pair.to(tl.int64) * BLOCKS + block", "pair * BLOCKS"),
    Mutant("restored: moments in 32 bits", "store_moments", "pair.to(tl.int64)", "pair"),
    Mutant(
        "restored: halo stored as well",
        "store_moments",
        "tl.store(row_ptr + t, mean, mask=own)",
        "tl.store(row_ptr + t, mean)",
    ),
    Mutant(
        "restored: last block's mean counts as a full one's",
        "load_moments",
        "tl.load(block_ptr, mask=inside, other=0.0) * min(WIDTH, C - k * WIDTH)",
        "tl.load(block_ptr, mask=inside, other=0.0) * WIDTH",
    ),
    Mutant(
        "restored: variance between blocks forgotten",
        "load_moments",
        "away * away * min(WIDTH, C - k * WIDTH)",
        "0 * away",
    ),
    Mutant("restored: moments read in 32 bits", "load_moments", "pair.to(tl.int64)", "pair"),
    Mutant(
        "restored: moments read beyond the window",
        "load_moments",
        "tl.load(block_ptr + W, mask=inside, other=0.0)",
        "tl.load(block_ptr + W)",
    ),
    Mutant("restored: eps left out, backward", "load_moments", "square / C + EPS", "square / C"),
    *(
        Mutant(f"restored, {name}: strength through the mean", name, "spread * heard + mean * level", "spread * heard")
        for name in ("joint_backward", "norm_backward", "wide_norm_backward")
    ),
    Mutant("restored: gradient of the mean unscaled", "store_restored", "strength * level / C", "level / C"),
    Mutant(
        "restored: gradient of the spread",
        "store_restored",
        "strength * heard / (spread * C)",
        "strength * heard / C",
    ),
    Mutant("restored: stored beyond the window", "store_restored", "t < W", "t <= W", count=3, nth=2),
    Mutant("restored: rows in 32 bits", "store_restored", "pair.to(tl.int64)", "pair"),
    Mutant("restored: rows read in 32 bits", "load_restored", "pair.to(tl.int64)", "pair"),
    Mutant("restored: spread's gradient about 0", "load_restored", "y - mean[:, None]", "y"),
    Mutant(
        "restored: padded channels move windows",
        "window_backward",
        "tl.where(real, added, 0.0) if C != SPAN else added",
        "added",
    ),
    Mutant("restored: du without spread", "norm_backward", "strength * spread", "strength + 0 * spread"),
    Mutant("restored: dγ without spread", "norm_backward", "gn * amount[:, None]", "gn * strength"),
    Mutant("restored, wide: du without spread", "wide_norm_backward", "strength * spread", "strength + 0 * spread"),
    Mutant("restored, wide: the last chunk's sum", "wide_norm_backward", "sums += g", "sums = g"),
    Mutant(
        "restored: no places for x alone",
        "_chain",
        "place or needs.depthwise_weight or needs.strength or need_restored",
        "place or needs.depthwise_weight or needs.strength",
    ),
    Mutant(
        "restored: not for windows' places",
        "_chain",
        "needs.dy is not None or place",
        "needs.dy is not None",
    ),
]

_HOST = [
    Mutant(
        "one frame: neighbour read", "Source.arguments", "0 if single else stride[-1]", "1 if single else stride[-1]"
    ),
    Mutant("places read as if contiguous", "Calls._inputs", "inputs[n].contiguous()", "inputs[n]"),
    Mutant("no halo", "Call.halo", "max(4, triton.cdiv(self.taps // 2, 4) * 4)", "0 * self.taps"),
]

MUTANTS = [*_POSITIONS, *_TONALITY, *_FORWARD, *_RESAMPLE, *_BACKWARD, *_RESTORED, *_HOST]
