"""What is prepared of the weights, and the forward pass."""

from mutants import Mutant

TONALITY = [
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

FORWARD = [
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
