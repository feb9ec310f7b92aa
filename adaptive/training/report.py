"""What the windows did over the held-out set: the epoch's table, and the three things practice warns of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

COLUMNS = ("start_input", "ratio_input", "start_target", "ratio_target", "strength")


@dataclass
class WindowReport:
    """Mean and spread (standard deviation) of every pair's windows over examples.

    `values[name]` is `[N, P]`, starts in frames; the tables show seconds.
    """

    values: dict[str, NDArray[np.float64]]
    frame_rate: float
    window_seconds: float

    def mean(self, name: str) -> NDArray[np.float64]:
        return self._scaled(name).mean(axis=0)

    def spread(self, name: str) -> NDArray[np.float64]:
        return self._scaled(name).std(axis=0)

    def _scaled(self, name: str) -> NDArray[np.float64]:
        return self.values[name] / (self.frame_rate if name.startswith("start") else 1.0)

    def table(self) -> str:
        """One line a pair: start in seconds, ratio, strength, each with its spread over the held-out set."""
        titles = ("start in (s)", "ratio in", "start out (s)", "ratio out", "strength")
        lines = ["  pair  " + "  ".join(f"{title:>15}" for title in titles)]
        means = {name: self.mean(name) for name in COLUMNS}
        spreads = {name: self.spread(name) for name in COLUMNS}
        for pair in range(len(means["strength"])):
            cells = []
            for name in COLUMNS:
                digits = 2 if name.startswith("start") else 3
                cells.append(f"{means[name][pair]:.{digits}f} ± {spreads[name][pair]:.{digits}f}")
            lines.append(f"  {pair:>4}  " + "  ".join(f"{cell:>15}" for cell in cells))
        return "\n".join(lines)

    def scalars(self) -> dict[str, float]:
        """Flat names for the logs."""
        found = {}
        for name in COLUMNS:
            unit = "_s" if name.startswith("start") else ""
            for pair, (mean, spread) in enumerate(zip(self.mean(name), self.spread(name), strict=True)):
                found[f"windows/pair{pair}/{name}{unit}"] = float(mean)
                found[f"windows/pair{pair}/{name}{unit}_spread"] = float(spread)
        return found

    def warnings(self) -> list[str]:
        """Pairs that choose alike, ratios that stay unused, strengths at their ends."""
        found = []
        same = [name for name in ("input", "target") if self._all_pairs_alike(name)]
        if same:
            found.append(
                f"warning: all pairs choose the same window of the {' and the '.join(same)}: "
                "--overlap-weight pushes them apart"
            )
        ratios = np.concatenate([self.values["ratio_input"], self.values["ratio_target"]], axis=1)
        if np.abs(ratios - 1.0).max() < 0.02:
            found.append(
                "warning: compression is unused, every ratio is within 0.02 of 1: train longer, or raise "
                "--ratio-diversity-weight"
            )
        strength = self.values["strength"]
        if np.minimum(strength, 1 - strength).max() < 0.05:
            found.append("note: every tonality strength is near 0 or 1; this is normal, the transform is on or off")
        return found

    def _all_pairs_alike(self, stream: str) -> bool:
        """More than one pair, and on average their windows overlap by more than 90 %."""
        starts = self._scaled(f"start_{stream}")  # [N, P], seconds
        lengths = self.values[f"ratio_{stream}"] * self.window_seconds
        pairs = starts.shape[1]
        if pairs < 2:
            return False
        shares = []
        for a in range(pairs):
            for b in range(a + 1, pairs):
                end = np.minimum(starts[:, a] + lengths[:, a], starts[:, b] + lengths[:, b])
                common = np.clip(end - np.maximum(starts[:, a], starts[:, b]), 0, None)
                shares.append((common / np.minimum(lengths[:, a], lengths[:, b])).mean())
        return bool(np.min(shares) > 0.9)


@dataclass
class Evaluation:
    """Mean loss and its parts over the held-out set, and the windows chosen there."""

    step: int
    loss: float
    parts: dict[str, float]
    windows: WindowReport
