"""How far the model of device time is off: fitted to kernels that a GPU has timed, and tested on those left out.

    python -m tools.calibration            # prints the error, kernel by kernel

The points are configurations of six kernels, timed on an H100 one by one (`POINTS`, which says how). Of each it holds
what `processor` says with the constants named there, and how that changes with each constant of `FITTED`: so much in
the logarithm per unit of the constant's. Only these two are fitted, by least squares of logarithms, each kernel
counting the same; all others are the datasheet's or what microbenchmarks have found. "Left out" is the error on a
kernel of constants fitted to the other five. Kernels that spill over 16 bytes are left aside: none is shipped.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

POINTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results" / "h100-2026-11-27" / "points.json"
FITTED = ("memory", "memory_bytes")


@dataclass(frozen=True)
class Point:
    kernel: str
    measured_us: float
    simulated_us: float
    slopes: tuple[float, ...]  # of its logarithm, along the logarithm of each of FITTED

    def predicted(self, factors: np.ndarray) -> float:
        """With the fitted constants multiplied by `factors`."""
        return float(self.simulated_us * np.exp(np.dot(self.slopes, np.log(factors))))

    def error(self, factors: np.ndarray) -> float:
        return self.predicted(factors) / self.measured_us - 1


def load(path: Path = POINTS) -> list[Point]:
    found = json.loads(path.read_text())["points"]
    return [
        Point(one["kernel"], one["measured_us"], one["simulated_us"], tuple(one["slopes"][name] for name in FITTED))
        for one in found
    ]


def fit(points: Sequence[Point]) -> np.ndarray:
    """Factors of the constants; each kernel weighs the same, and 1 is preferred where the points say nothing."""
    count = {point.kernel: sum(other.kernel == point.kernel for other in points) for point in points}
    weight = np.array([1 / count[point.kernel] for point in points])
    slopes = np.array([point.slopes for point in points])
    gap = np.array([np.log(point.measured_us / point.simulated_us) for point in points])
    normal = (slopes * weight[:, None]).T @ slopes + 0.2 * np.eye(len(FITTED))
    return np.exp(np.linalg.solve(normal, (slopes * weight[:, None]).T @ gap))


def left_out(points: Sequence[Point]) -> dict[str, list[float]]:
    """Errors on each kernel of factors fitted to the others."""
    errors = {}
    for kernel in dict.fromkeys(point.kernel for point in points):
        factors = fit([point for point in points if point.kernel != kernel])
        errors[kernel] = [point.error(factors) for point in points if point.kernel == kernel]
    return errors


def fitted(points: Sequence[Point]) -> dict[str, list[float]]:
    factors = fit(points)
    kernels = dict.fromkeys(point.kernel for point in points)
    return {kernel: [point.error(factors) for point in points if point.kernel == kernel] for kernel in kernels}


def median(errors: dict[str, list[float]]) -> float:
    return float(np.median([abs(error) for kernel in errors.values() for error in kernel]))


def table(points: Sequence[Point]) -> str:
    """For people."""
    kinds: dict[str, Callable[[Sequence[Point]], dict[str, list[float]]]] = {"fitted": fitted, "left out": left_out}
    lines = [f"{'':28}{'points':>7}" + "".join(f"{kind + ': mean':>16}{'absolute':>10}{'worst':>8}" for kind in kinds)]
    results = {kind: errors(points) for kind, errors in kinds.items()}
    for kernel, first in results["fitted"].items():
        line = f"{kernel:28}{len(first):7}"
        for errors in results.values():
            mine = np.array(errors[kernel])
            line += f"{100 * mine.mean():+15.0f}%{100 * np.abs(mine).mean():9.0f}%{100 * np.abs(mine).max():7.0f}%"
        lines.append(line)
    for kind, errors in results.items():
        every = np.abs([error for kernel in errors.values() for error in kernel])
        lines.append(
            f"{kind}: median error {100 * np.median(every):.0f} %, mean {100 * every.mean():.0f} %, "
            f"{100 * (every <= 0.2).mean():.0f} % of {len(every)} points within 20 %"
        )
    return "\n".join(lines)


def main() -> int:
    print(table(load()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
