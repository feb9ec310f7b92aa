"""Exhaustive search: every window of a lattice of starts and ratios, compared on blurred and thinned-out signals."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from adaptive_window.kernels import resample_windows

from .matching import unit_windows

WORKSPACE = 2**24  # values of windows in memory at a time
MOST_SCORES = 2**25  # of one problem; where two lattices have more, their cells grow


@dataclass(frozen=True)
class Windows:
    """Windows of every problem's signal: start and ratio, each `[B, N]`, of `frames` output frames."""

    start: Tensor
    ratio: Tensor
    frames: int

    @property
    def coordinates(self) -> Tensor:
        """`[B, N, 2]`: centre, and length over √12, in frames.

        Output frame t lies at centre + (t + 1/2 − W/2)·r − 1/2. A change of either coordinate by one frame moves the
        window's frames by one frame in root mean square, and the two changes are orthogonal.
        """
        length = self.ratio * self.frames
        return torch.stack((self.start + length / 2, length / math.sqrt(12)), -1)

    @classmethod
    def at(cls, coordinates: Tensor, frames: int) -> Windows:
        centre, spread = coordinates.unbind(-1)
        length = spread * math.sqrt(12)
        return cls(centre - length / 2, length / frames, frames)

    def read(self, x: Tensor, count: int, backend: str) -> Tensor:
        """Every (W / count)-th frame of the windows of x `[B, F, T]`: `[B, N, F, count]`.

        That is windows of `count` frames with ratios r·W/count: the same stretches, read at fewer places.
        """
        return resample_windows(x, self.start, self.ratio * (self.frames / count), count, backend=backend)

    def part(self, problems: slice, windows: slice) -> Windows:
        return Windows(self.start[problems, windows], self.ratio[problems, windows], self.frames)


def lattice(clip: int, window: int, cell: float, max_ratio: float) -> tuple[list[float], list[float]]:
    """Starts and ratios of windows of a clip of `clip` frames, such that any window that fits has one nearby.

    Starts are at most `cell` frames apart, and ratios 2·cell/W: to the next ratio, either end moves by at most `cell`
    about the centre. Ratios go from 1 to `max_ratio`, or to what the clip holds.
    """
    starts: list[float] = []
    ratios: list[float] = []
    for ratio in _spread(1.0, min(max_ratio, clip / window), 2 * cell / window):
        here = _spread(0.0, max(0.0, clip - ratio * window), cell)
        starts += here
        ratios += [ratio] * len(here)
    return starts, ratios


def _spread(low: float, high: float, step: float) -> list[float]:
    count = math.ceil((high - low) / step - 1e-9)
    return [low + (high - low) * k / count for k in range(count + 1)] if count > 0 else [low]


def choose_cell(clips: list[int], window: int, cell: float, max_ratio: float) -> float:
    """`cell`, or the least larger one for which every combination of the clips' windows can be scored."""
    while math.prod(len(lattice(clip, window, cell, max_ratio)[0]) for clip in clips) > MOST_SCORES:
        cell *= 1.25
    return cell


def scores(x: Tensor, x_windows: Windows, y: Tensor, y_windows: Windows, count: int, backend: str) -> Tensor:
    """Correlation of every window of x `[B, F, T]` with every one of y, at `count` frames each: `[B, N, M]`."""
    size = x.shape[1] * count
    most = max(1, WORKSPACE // size)  # windows at a time
    at_once = max(1, most // max(x_windows.start.shape[1], y_windows.start.shape[1]))
    rows = []
    for b in range(0, len(x), at_once):
        some = slice(b, b + at_once)
        theirs = unit_windows(y_windows.part(some, slice(None)).read(y[some], count, backend)).flatten(2)
        row = []
        for n in range(0, x_windows.start.shape[1], most):
            ours = unit_windows(x_windows.part(some, slice(n, n + most)).read(x[some], count, backend)).flatten(2)
            row.append(ours @ theirs.transpose(1, 2))
        rows.append(torch.cat(row, 1))
    return torch.cat(rows)


def distinct_best(
    score: Tensor, x_windows: Windows, y_windows: Windows, count: int, apart: float
) -> tuple[Windows, ...]:
    """The `count` best of `score` `[B, N, M]`, each `apart` frames (see `Windows.coordinates`) from better ones.

    Returns the windows of x and of y, each with N = `count`. Where no more are left, the first ones are repeated.
    """
    best: tuple[list[Tensor], list[Tensor]] = ([], [])
    places = x_windows.coordinates, y_windows.coordinates
    left = score.clone()
    for _ in range(count):
        first = left.flatten(1).argmax(1)
        index = first // score.shape[2], first % score.shape[2]
        distance = torch.zeros_like(left)
        for side in (0, 1):
            here = places[side].gather(1, index[side][:, None, None].expand(-1, 1, 2))  # [B, 1, 2]
            best[side].append(here)
            squared = (places[side] - here).square().sum(-1)  # [B, N] or [B, M]
            distance = distance + squared.unsqueeze(2 - side)
        left = left.masked_fill(distance < apart**2, -2.0)
    return tuple(Windows.at(torch.cat(found, 1), x_windows.frames) for found in best)
