"""Configurations worth timing, beside the shipped ones: for `tune.py`."""

from __future__ import annotations

from adaptive_window.kernels.triton.configurations import Configuration

PRECISIONS = ("tf32", "bf16x3", "bf16")


def _c(num_warps: int, per_processor: int = 1, **constants: int) -> Configuration:
    return Configuration(constants, num_warps, 1, per_processor)


def _forward() -> list[Configuration]:
    """BLOCK_T, warps, programs a processor, weights prepared within, when the next tile is read, and asked for."""
    shapes = (
        (128, 8, 1, True, 0, 4), (128, 8, 1, True, 1, 4), (128, 8, 1, True, 2, 4), (128, 8, 1, True, 3, 4),
        (128, 8, 1, True, 4, 4), (128, 8, 1, False, 1, 4), (64, 4, 2, True, 1, 4),
        (128, 8, 1, True, 1, 0), (128, 8, 1, True, 1, 1), (128, 8, 1, True, 1, 2),
    )  # fmt: skip
    return [
        _c(warps, per, BLOCK_T=t, PREPARE=within, AHEAD=ahead, FETCH=fetch)
        for t, warps, per, within, ahead, fetch in shapes
    ]


def _norm() -> list[Configuration]:
    """BLOCK_T, warps, programs a processor, tiles ahead + 1, the weight read once, frames folded and how far apart."""
    shapes = (
        (32, 4, 2, 2, False, 2, 8), (32, 4, 2, 2, False, 4, 1), (32, 4, 2, 2, True, 2, 8), (32, 4, 2, 3, True, 2, 8),
        (32, 4, 3, 1, False, 4, 1), (32, 8, 1, 3, True, 2, 8), (32, 8, 1, 3, False, 2, 8), (32, 8, 2, 2, True, 2, 8),
        (64, 8, 1, 1, False, 4, 1), (64, 8, 1, 2, True, 2, 8), (64, 8, 1, 3, True, 2, 8), (64, 4, 2, 2, False, 4, 1),
    )  # fmt: skip
    return [
        _c(warps, per, BLOCK_T=t, FOLD=fold, APART=apart, HOIST=hoist, STAGES=stages)
        for t, warps, per, stages, hoist, fold, apart in shapes
    ]


def _product() -> list[Configuration]:
    shapes = (
        (32, 8, 1, 3, True), (32, 8, 1, 2, True), (32, 8, 2, 2, True), (32, 4, 2, 2, True), (64, 8, 1, 2, True),
        (32, 8, 1, 3, False), (32, 4, 2, 1, False), (64, 8, 1, 3, False), (64, 8, 1, 1, False), (64, 4, 2, 2, False),
    )  # fmt: skip
    return [_c(warps, per, BLOCK_T=t, TURN=turn, STAGES=stages) for t, warps, per, stages, turn in shapes]


def _joint() -> list[Configuration]:
    shapes = ((64, 3, True), (64, 3, False), (64, 2, True), (32, 3, True), (32, 3, False), (32, 4, False))
    return [_c(8, BLOCK_T=t, STAGES=stages, WEIGHT_FIRST=first) for t, stages, first in shapes]


def _tiles(first: str, shapes: tuple[tuple[int, int, int], ...]) -> list[Configuration]:
    return [_c(warps, **{first: size, "BLOCK_C": channels}) for size, channels, warps in shapes]


CANDIDATES: dict[str, list[Configuration]] = {
    "windowed_tonality_forward": _forward(),
    "recompute_windows": _tiles("BLOCK_T", ((128, 8, 4), (128, 8, 2), (128, 16, 4), (128, 16, 2), (128, 32, 4))),
    "joint_backward": _joint(),
    "norm_backward": _norm(),
    "product_backward": _product(),
    "window_backward": [
        _c(warps, BLOCK_T=128, BLOCK_C=channels, FOLD=4, COLUMNS=warps)
        for channels, warps in ((32, 8), (16, 4), (16, 8), (8, 2), (8, 4), (64, 16))
    ],
    "finish_gradients": [
        _c(warps, BLOCK=256, BLOCK_R=rows, STAGES=stages)
        for warps, rows, stages in ((8, 8, 9), (8, 8, 5), (8, 16, 5), (8, 16, 7), (8, 32, 3), (4, 8, 9))
    ],
    "resample_dx": _tiles("BLOCK_X", ((32, 32, 1), (32, 16, 1), (32, 64, 1), (64, 32, 1), (64, 32, 2), (128, 32, 4))),
    "prepare_weights": [_c(warps, BLOCK=size) for warps, size in ((8, 8), (8, 16), (16, 8), (16, 16), (16, 32))],
}
