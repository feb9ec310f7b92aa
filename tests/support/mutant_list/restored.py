"""Restored statistics; and the launchers."""

from mutants import Mutant

RESTORED = [
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

HOST = [
    Mutant(
        "one frame: neighbour read", "Source.arguments", "0 if single else stride[-1]", "1 if single else stride[-1]"
    ),
    Mutant("places read as if contiguous", "Calls._inputs", "inputs[n].contiguous()", "inputs[n]"),
    Mutant("no halo", "Call.halo", "max(4, triton.cdiv(self.taps // 2, 4) * 4)", "0 * self.taps"),
]
