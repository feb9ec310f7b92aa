"""Exhaustive search: every window of a lattice of starts and ratios, compared on blurred and thinned-out signals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adaptive_window.kernels import resample_windows

from .matching import unit_windows

WORKSPACE = 2**24  # values of windows in memory at a time
MOST_SCORES = 2**25  # in memory at a time; where two lattices of one problem have more, their cells grow


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


def best_windows(
    signals: Sequence[Tensor], windows: Sequence[Windows], thin: int, count: int, apart: float, backend: str
) -> tuple[Windows, Windows]:
    """The `count` best combinations of a window of the first signal `[B, F, T]` with one of the second, `apart` frames
    from each other, by their correlation at `thin` frames each. Problems are taken as many at a time as memory allows.
    """
    (x, y), (ours, theirs) = signals, windows
    n, m = ours.start.shape[1], theirs.start.shape[1]
    at_once = max(1, min(WORKSPACE // (max(n, m) * x.shape[1] * thin), MOST_SCORES // (n * m)))
    best: list[tuple[Windows, Windows]] = []
    for b in range(0, len(x), at_once):
        some, every = slice(b, b + at_once), slice(None)
        part = ours.part(some, every), theirs.part(some, every)
        table = scores(x[some], part[0], y[some], part[1], thin, backend)
        best.append(distinct_best(table, *part, count, apart))
    first, second = zip(*best, strict=True)
    return joined(first), joined(second)


def scores(x: Tensor, ours: Windows, y: Tensor, theirs: Windows, thin: int, backend: str) -> Tensor:
    """Correlation of every window of x `[B, F, T]` with every one of y: `[B, N, M]`."""
    at_once = max(1, WORKSPACE // (x.shape[0] * x.shape[1] * thin))
    every = slice(None)
    others = unit_windows(theirs.read(y, thin, backend)).flatten(2)  # [B, M, F·thin]
    parts = []
    for n in range(0, ours.start.shape[1], at_once):
        part = unit_windows(ours.part(every, slice(n, n + at_once)).read(x, thin, backend)).flatten(2)
        parts.append(part @ others.transpose(1, 2))
    return torch.cat(parts, 1)


def distinct_best(score: Tensor, ours: Windows, theirs: Windows, count: int, apart: float) -> tuple[Windows, Windows]:
    """The `count` best of `score` `[B, N, M]`, each `apart` frames (see `Windows.coordinates`) from better ones.

    Returns the windows of both signals, `[B, count]` each. Where no more are left, the first one is repeated.
    """
    places = ours.coordinates, theirs.coordinates
    best: tuple[list[Tensor], list[Tensor]] = ([], [])
    left = score.clone()
    for _ in range(count):
        highest = left.flatten(1).argmax(1)  # of equals the first
        squared = []
        for place, chosen, index in zip(
            places, best, (highest // score.shape[2], highest % score.shape[2]), strict=True
        ):
            here = place.gather(1, index[:, None, None].expand(-1, 1, 2))  # [B, 1, 2]
            chosen.append(here)
            squared.append((place - here).square().sum(-1))  # [B, N], [B, M]
        left.masked_fill_(squared[0][:, :, None] + squared[1][:, None, :] < apart**2, -2.0)
    return Windows.at(torch.cat(best[0], 1), ours.frames), Windows.at(torch.cat(best[1], 1), theirs.frames)


def joined(windows: Sequence[Windows]) -> Windows:
    """Windows of some problems after those of others."""
    return Windows(torch.cat([w.start for w in windows]), torch.cat([w.ratio for w in windows]), windows[0].frames)


def beside(windows: Sequence[Windows]) -> Windows:
    """More windows of the same problems."""
    return Windows(
        torch.cat([w.start for w in windows], 1), torch.cat([w.ratio for w in windows], 1), windows[0].frames
    )
