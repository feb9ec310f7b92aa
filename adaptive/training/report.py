"""What the windows did over the held-out set: the epoch's table, and the things that practice warns of."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..config import TrainConfig

NEAR_SECONDS = 1.0  # pairs whose windows start nearer than that look at one place
AT_BOUND = 0.02  # share of its range within which a parameter is at its end

COLUMNS = ("start_input", "ratio_input", "start_target", "ratio_target", "strength")


@dataclass
class WindowReport:
    """Mean and spread (standard deviation) of every pair's windows over examples.

    `values[name]` is `[N, P]`, starts in frames; the tables show seconds.
    """

    values: dict[str, NDArray[np.float64]]
    frame_rate: float
    window_seconds: float
    clip_seconds: float | None = None
    max_ratio: float = 1.5
    max_strength: float = 1.0

    @property
    def songs(self) -> int:
        return len(self.values["strength"])

    @property
    def pairs(self) -> int:
        return int(self.values["strength"].shape[1])

    def near_share(self) -> float:
        """Share of couples of pairs, over songs and both streams, whose windows start within a second; 0 for one."""
        distances = self._distances()
        return float((distances < NEAR_SECONDS).mean()) if distances.size else 0.0

    def pair_distance(self) -> float:
        """Mean distance of two pairs' starts in seconds, over couples, songs and both streams; 0 for one pair."""
        distances = self._distances()
        return float(distances.mean()) if distances.size else 0.0

    def _distances(self) -> NDArray[np.float64]:
        first, second = np.triu_indices(self.pairs, 1)
        starts = [self._scaled(f"start_{stream}") for stream in ("input", "target")]
        return np.abs(np.stack([s[:, first] - s[:, second] for s in starts]))

    def song_spread(self) -> float:
        """Standard deviation of a pair's start over songs in seconds, the mean over pairs and both streams."""
        return float(np.mean([self.spread(f"start_{stream}") for stream in ("input", "target")]))

    def at_bounds(self) -> float:
        """Share of starts, ratios and strengths within 2 % of an end of what they can be.

        Ranges that leave no choice do not count, nor do starts where the clip's length is not known.
        """
        shares: list[NDArray[np.float64]] = []
        ratio_range = self.max_ratio - 1
        if self.clip_seconds is not None:
            ratio_range = min(ratio_range, self.clip_seconds / self.window_seconds - 1)
            for stream in ("input", "target"):
                room = self.clip_seconds - self.values[f"ratio_{stream}"] * self.window_seconds
                free = room > 1e-6
                shares.append(self._scaled(f"start_{stream}")[free] / room[free])
        if ratio_range > 0:
            shares += [(self.values[f"ratio_{stream}"] - 1).ravel() / ratio_range for stream in ("input", "target")]
        if self.max_strength > 0:
            shares.append(self.values["strength"].ravel() / self.max_strength)
        if not shares:
            return 0.0
        share = np.concatenate(shares)
        return float((np.minimum(share, 1 - share) < AT_BOUND).mean())

    def summary(self) -> str:
        """One line for the epoch's table."""
        return (
            f"starts: {self.pair_distance():.2f} s between pairs ({self.near_share():.0%} within 1 s), "
            f"{self.song_spread():.2f} s spread over songs; {self.at_bounds():.0%} of parameters at a bound"
        )

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
        found["windows/pair_distance_s"] = self.pair_distance()
        found["windows/within_1s"] = self.near_share()
        found["windows/song_spread_s"] = self.song_spread()
        found["windows/at_bounds"] = self.at_bounds()
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
        room = None if self.clip_seconds is None else self.clip_seconds - self.window_seconds
        if not same and self.pairs > 1 and (room is None or room > 2 * NEAR_SECONDS) and self.near_share() > 0.5:
            found.append(
                f"warning: all pairs on one place: {self.near_share():.0%} of them start within 1 s of each other; "
                "--selector content keeps them apart"
            )
        ends = self.at_bounds()
        if ends > 0.25:
            found.append(f"warning: windows at the ends of their range: {ends:.0%} of starts, ratios and strengths")
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
    """Mean loss and its parts over the held-out set, the windows chosen there, and what is heard (`measures`)."""

    step: int
    loss: float
    parts: dict[str, float]
    windows: WindowReport
    heard: dict[str, float] = field(default_factory=dict)


def report_of(values: dict[str, NDArray[np.float64]], frame_rate: float, config: TrainConfig) -> WindowReport:
    """The report of a run's windows, by its lengths and ranges."""
    return WindowReport(
        values, frame_rate, config.window_seconds, config.clip_seconds, config.max_ratio, config.max_strength
    )
