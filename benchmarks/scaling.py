"""How the cost grows with each size: one size varied at a time, an exponent fitted to each, one plot each."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

from operations import compare
from providers import Case

# Every axis over a factor of 8 or 16, from sizes small enough for a CPU.
AXES: dict[str, tuple[str, tuple[int, ...]]] = {
    "B": ("batch", (1, 2, 4, 8)),
    "P": ("pairs", (1, 2, 4, 8)),
    "T": ("frames", (900, 1800, 3600, 7200)),
    "W": ("window", (80, 160, 320, 640)),
    "C": ("channels", (16, 32, 64, 128)),
}
STYLES = ("o-", "s--", "^-.", "D:")  # curves differ without colour too
LARGE = {"B": (8, 16, 32, 64), "P": (1, 2, 4, 8), "T": (1200, 2400, 4800, 9600), "W": (160, 320, 640, 1120)}


def fit_exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """e of the least-squares line log(seconds) = e·log(size) + constant."""
    if len(sizes) < 2:
        raise ValueError(f"an exponent needs two sizes or more, got {len(sizes)}")
    logs = [(math.log(a), math.log(b)) for a, b in zip(sizes, seconds, strict=True)]
    mean_x, mean_y = (sum(values) / len(logs) for values in zip(*logs, strict=True))
    return sum((x - mean_x) * (y - mean_y) for x, y in logs) / sum((x - mean_x) ** 2 for x, _ in logs)


def measure(
    base: Case,
    providers: Sequence[str],
    axes: Sequence[str],
    seconds: float,
    say: Callable[[str], None] = print,
    results: dict[str, Any] | None = None,
    save: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """`{axis: {provider: {"sizes", "seconds", "exponent"}}}`, seconds being the median of forward and backward.

    `save` is called after each axis, when `results["axes"]` has it.
    """
    results = {} if results is None else results
    results |= {"base": base.describe(), "axes": {}}
    for axis in axes:
        name, sizes = AXES[axis]
        if base.device == "cuda" and axis in LARGE:
            sizes = LARGE[axis]
        curves: dict[str, dict[str, Any]] = {p: {"sizes": [], "seconds": []} for p in providers}
        for size in sizes:
            for row in compare(replace(base, **{name: size}), providers, seconds, say=say):
                if "seconds" in row:
                    curves[row["provider"]]["sizes"].append(size)
                    curves[row["provider"]]["seconds"].append(row["seconds"]["both"]["median"])
                else:
                    say(f"  {axis}={size}, {row['provider']}: {row['note']}")
        for provider, curve in curves.items():
            if len(curve["sizes"]) >= 2:
                curve["exponent"] = fit_exponent(curve["sizes"], curve["seconds"])
                milliseconds = " ".join(f"{1e3 * s:.2f}" for s in curve["seconds"])
                say(f"cost ~ {axis}^{curve['exponent']:.2f}  {provider}: {milliseconds} ms at {curve['sizes']}")
        results["axes"][axis] = curves
        save()
    return results


def plot(results: dict[str, Any], folder: Path, label: str, prefix: str) -> list[Path]:
    """One SVG per axis: `PREFIX-scaling-B.svg`, ...; needs matplotlib."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "adaptive-window"  # the same input gives the same file
    from matplotlib import pyplot as plt

    paths = []
    for axis, curves in results.get("axes", {}).items():
        figure, axes = plt.subplots(figsize=(4.2, 3.0), layout="constrained")
        shown = {provider: curve for provider, curve in curves.items() if "exponent" in curve}
        for (provider, curve), style in zip(shown.items(), cycle(STYLES)):
            milliseconds = [1e3 * s for s in curve["seconds"]]
            axes.loglog(curve["sizes"], milliseconds, style, label=f"{provider}, {axis}^{curve['exponent']:.2f}")
        axes.set(xlabel=axis, ylabel="forward and backward, ms")
        axes.set_title("\n".join(textwrap.wrap(label, 48)), fontsize=8)
        axes.set_xticks(curves[next(iter(curves))]["sizes"] or [1])
        axes.xaxis.set_major_formatter(mpl.ticker.ScalarFormatter())
        axes.xaxis.set_minor_locator(mpl.ticker.NullLocator())
        axes.yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))  # a curve within one decade has ticks too
        axes.yaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
        axes.yaxis.set_minor_locator(mpl.ticker.NullLocator())
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
        paths.append(folder / f"{prefix}-scaling-{axis}.svg")
        figure.savefig(paths[-1], metadata={"Date": None})
        plt.close(figure)
    return paths
