"""Windows found by search: `refine_windows`.

From coarse to fine, in the scale space of both signals. While the blur is wide, one lattice of windows holds them all
and is scored exhaustively; where the blur gets finer than the lattice's cells, the best windows go on by the gradient
that `resample_windows` has for start and ratio.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from adaptive_window.kernels.reference import without_autocast

from ..losses.scale_space import annealed_sigma
from .descent import Side, descend
from .lattice import Windows, beside, best_windows, choose_cell, lattice
from .matching import check_features, match_features, match_score
from .refine_arguments import check_search, check_signals, given_windows
from .refine_rhythm import lags_of, refine_rhythm

CELLS = 100  # cells of the lattice along a window: 8 frames each for 800
SCORE_BLUR = 1 / 400  # of the window: blur of both signals under the score, 2 frames for 800


def refine_windows(
    x: Tensor,
    y: Tensor,
    window_frames: int,
    *,
    start_x: float | Tensor | None = None,
    ratio_x: float | Tensor | None = None,
    start_y: float | Tensor | None = None,
    ratio_y: float | Tensor | None = None,
    move: Sequence[str] = ("x",),
    features: str = "latent",
    restarts: int = 4,
    levels: int = 16,
    steps_per_level: int = 13,
    blur: float = 64.0,
    max_ratio: float = 1.5,
    backend: str = "auto",
) -> tuple[Tensor, ...]:
    """Find the window of every x that matches a window of its y, or a window of each that match.

    Both signals become features (see `match_features`), are blurred in time by σ(i) = blur·(1 − i/(levels − 1))²
    frames at level i, and the correlation of the two windows is raised, over start and ratio. Levels whose blur is at
    least a cell wide (a hundredth of the window, at least a frame) are searched exhaustively, on a lattice of such
    cells: that leaves the best of the finest of them. From there on each level takes `steps_per_level` steps of Adam
    along the gradient, of 0.1·σ + 0.02 frames. Nothing is random.

    Args:
        x: latents, `[B, C, T]`, dense and floating; 16-bit ones are computed in float32.
        y: latents, `[B, C, T']`, dtype and device of x; where it stays in place it may be W frames long.
        window_frames: W, frames of the matched window, ≥ 2.
        start_x, ratio_x, start_y, ratio_y: frames and frames per frame, each a number or `[B]`. For a signal that stays
            in place: its window (by default start 0, ratio 1). For one that moves, both or neither: a first guess. It
            descends all levels by gradient and is one of the `restarts`; with `restarts=1` it is the only one.
            Numbers are checked, the values of tensors are not: a window beyond the clip's edges reads their last frame.
        move: the signals whose window is sought: `("x",)`, `("y",)` or `("x", "y")`. With both moved, where clips share
            more than the windows hold, any part of it is an answer.
        features: `"latent"`, `"energy"` or `"difference"`; or `"rhythm"`, which finds a window of one tempo and on one
            beat with y's, whatever is played (`refine_rhythm`): for `move=("x",)`, and of the schedule it takes only
            the number of steps, levels · steps_per_level.
        restarts: places from which the gradient starts, ≥ 1; the one of best score is returned.
        levels, steps_per_level, blur: the schedule: ≥ 1, ≥ 1, and σ of the first level in frames, ≥ 0.
        max_ratio: the largest ratio that is sought, ≥ 1. A window never leaves its clip: start ≤ T − ratio·W.
        backend: as `adaptive_window.kernels.resample_windows`.

    Returns:
        (start, ratio, score), each `[B]`, float32 (float64 for float64), without gradient; with both moved (start_x,
        ratio_x, start_y, ratio_y, score). score in [−1, 1] is `matching.match_score` of the two windows' features, both
        blurred by W/400 frames: near 1 for equal content, near 0 for unrelated; `matching.MATCH_SCORE` says from where
        on it means a match. A problem with NaN in it gives NaN, and no other.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.

    Source of blurring both signals and annealing the blur: A. P. Witkin, D. Terzopoulos, M. Kass, "Signal matching
    through scale space", International Journal of Computer Vision 1 (1987).
    """
    check_signals(x, y, window_frames, move)
    if features == "rhythm":
        if tuple(move) != ("x",):
            raise ValueError(f'move must be ("x",) for features="rhythm", got {move!r}')
        check_search(restarts, levels, steps_per_level, blur, max_ratio, backend)
        return refine_rhythm(
            x, y, window_frames, start_x=start_x, ratio_x=ratio_x, start_y=start_y, ratio_y=ratio_y,
            restarts=restarts, steps=levels * steps_per_level, max_ratio=max_ratio, lags=lags_of(window_frames),
            backend=backend,
        )  # fmt: skip
    check_features(features)
    check_search(restarts, levels, steps_per_level, blur, max_ratio, backend)
    names = [name for name in ("x", "y") if name in move]
    names += [name for name in ("x", "y") if name not in move]  # whatever stays comes second
    with torch.inference_mode(False), without_autocast(x.device.type):
        given = {
            "x": given_windows("x", x, start_x, ratio_x, window_frames, moved="x" in move),
            "y": given_windows("y", y, start_y, ratio_y, window_frames, moved="y" in move),
        }
        guess = [given[name] for name in names if name in move]
        if len(guess) == 2 and (guess[0] is None) != (guess[1] is None):
            present, lacking = names if guess[0] is not None else names[::-1]
            raise ValueError(
                f"start_{lacking} and ratio_{lacking} must be given too where start_{present} is and both are moved"
            )
        sides = [
            Side(
                match_features({"x": x, "y": y}[name].clone(), features),
                None if name in move else given[name],
                float(max_ratio),
            )
            for name in names
        ]
        found = _search(sides, window_frames, guess, restarts, levels, steps_per_level, blur, backend)
        score = window_score(sides, found, window_frames, backend)  # [B, R]
        best = score.argmax(1, keepdim=True)
    result = []
    for windows, side in zip(found, sides[: len(guess)], strict=False):
        start, ratio = (v.gather(1, best)[:, 0] for v in (windows.start, windows.ratio))
        slack = side.features.shape[-1] - ratio * window_frames  # the last bits of rounding must not leave the clip
        result += [torch.minimum(start, slack).clamp(min=0), ratio.clamp(1, max_ratio)]
    return (*result, score.gather(1, best)[:, 0])


def window_score(sides: Sequence[Side], windows: Sequence[Windows], frames: int, backend: str) -> Tensor:
    """The score of couples of windows, `[B, N]`."""
    with torch.no_grad():
        pair = [
            w.read(side.blurred(SCORE_BLUR * frames), frames, backend) for side, w in zip(sides, windows, strict=True)
        ]
        return match_score(*pair)


def _search(
    sides: list[Side],
    frames: int,
    guess: list[Windows | None],
    restarts: int,
    levels: int,
    steps: int,
    blur: float,
    backend: str,
) -> list[Windows]:
    """The windows of both signals after the last level, `[B, restarts]` of each (of a signal that stays: its own)."""
    sigmas = [annealed_sigma(level, levels, float(blur)) for level in range(levels)]
    moved = [side for side in sides if side.fixed is None]
    clips = [side.features.shape[-1] for side in moved]
    cell = choose_cell(clips, frames, max(1.0, frames / CELLS), moved[0].max_ratio)
    wide = sum(sigma >= cell for sigma in sigmas)

    going_on: list[tuple[Windows, ...]] = []  # couples [B, N] each that the gradient takes further
    if guess[0] is not None:
        first = [windows for windows in guess if windows is not None]
        going_on.append(tuple(descend(sides, frames, first, sigmas[:wide], steps, backend)))
    if restarts > len(going_on):
        sigma = sigmas[max(0, wide - 1)]
        going_on.append(_exhaustive(sides, frames, cell, sigma, restarts - len(going_on), backend)[: len(moved)])
    from_there = [beside(windows) for windows in zip(*going_on, strict=True)]
    windows = descend(sides, frames, from_there, sigmas[wide:], steps, backend)
    stays = sides[1].fixed
    return windows if stays is None else [*windows, stays]


@torch.no_grad()
def _exhaustive(
    sides: list[Side], frames: int, cell: float, sigma: float, count: int, backend: str
) -> tuple[Windows, ...]:
    """The `count` best combinations of lattice windows, on signals blurred by `sigma`."""
    windows = []
    for side in sides:
        batch, _, clip = side.features.shape
        if side.fixed is None:
            grid = torch.tensor(lattice(clip, frames, cell, side.max_ratio)).to(side.features)  # [2, N]
            windows.append(Windows(grid[0].expand(batch, -1), grid[1].expand(batch, -1), frames))
        else:
            windows.append(side.fixed)
    blurred = [side.blurred(sigma) for side in sides]
    return best_windows(blurred, windows, math.ceil(frames / cell), count, 2 * max(sigma, cell), backend)
