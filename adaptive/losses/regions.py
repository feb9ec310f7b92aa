"""Where the pairs of a clip look: apart from each other in place and in ratio."""

from __future__ import annotations

import torch
from torch import Tensor


def _couples(windows: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Indices (i, j), i < j, of all couples of pairs."""
    ratio = windows["ratio_input"]
    i, j = torch.triu_indices(ratio.shape[1], ratio.shape[1], offset=1, device=ratio.device)
    return i, j


def _distance(values: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """|v_j − v_i| `[B, couples]`; where both are equal, the derivative is that of v_j − v_i.

    abs and the likes of minimum have derivative 0 there, or the same one for both: equal pairs would stay equal for
    ever. Here the order of the pairs breaks the tie: the later one moves up, the earlier one down.
    """
    difference = values[:, j] - values[:, i]
    return torch.where(difference < 0, -difference, difference)


def window_overlap_penalty(windows: dict[str, Tensor], window_frames: int) -> Tensor:
    """How much different pairs choose the same region: 0 for disjoint windows, 1 for windows around one centre.

        overlap = max(0, 1 − |c_j − c_i| / ((L_i + L_j)/2)),   c = s + L/2,  L = r·W

    of windows [s, s + L] in frames; the mean over couples of pairs, samples and both streams. Where the windows overlap
    partly this is Dice's coefficient, shared frames over the mean length. Where one lies inside the other Dice's (and
    Jaccard's) is a plateau, from which no start moves, so there the line is continued to the centre instead. Windows
    that are equal have the gradient that separates them (`_distance`). 0 for a single pair.

    Args:
        windows: `metadata["windows"]`: start_input, ratio_input, start_target, ratio_target, each `[B, P]`.
        window_frames: W.
    """
    if windows["start_input"].shape[1] < 2:
        return windows["start_input"].new_zeros(())
    i, j = _couples(windows)
    overlaps = []
    for stream in ("input", "target"):
        length = windows[f"ratio_{stream}"] * window_frames
        centre = windows[f"start_{stream}"] + length / 2
        overlaps.append((1 - _distance(centre, i, j) / ((length[:, i] + length[:, j]) / 2)).relu())
    return torch.stack(overlaps).mean()


def ratio_diversity(windows: dict[str, Tensor], spread: float = 0.1) -> Tensor:
    """How far the pairs' ratios are apart, counted up to `spread`: from 0 (all equal) to 1 (far enough).

        diversity = min(1, |r_j − r_i| / spread),   the mean over couples of pairs, samples and both streams

    To be subtracted from a loss. It pulls equal ratios apart (`_distance`) and lets go of those that differ by
    `spread`, so that P ratios span (P − 1)·`spread`, wherever in the range the rest of the loss wants them; a variance
    would drive them to the ends of the range, and leave equal ratios equal. 0 for a single pair.

    Args:
        windows: `metadata["windows"]`: ratio_input, ratio_target, each `[B, P]`.
        spread: the difference that is enough, > 0.
    """
    if not 0 < spread < float("inf"):
        raise ValueError(f"spread must be positive and finite, got {spread}")
    if windows["ratio_input"].shape[1] < 2:
        return windows["ratio_input"].new_zeros(())
    i, j = _couples(windows)
    distances = [_distance(windows[f"ratio_{stream}"], i, j) for stream in ("input", "target")]
    return (torch.stack(distances) / spread).clamp(max=1).mean()
