"""Pictures of windows. Draws arrays; knows nothing of models, codecs or files of audio.

Readable in grey: pairs differ by line style and number, not by colour alone. Time is in seconds throughout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Rectangle
from numpy.typing import NDArray

COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito: told apart by everybody
SUFFIXES = (".png", ".svg", ".pdf")  # of the pictures that save_figure writes
STYLES = ("-", "--", "-.", ":")


@dataclass(frozen=True)
class PairWindows:
    """One pair's windows, in seconds of the clips: a window of ratio r covers r · `window` seconds."""

    start_input: float
    start_target: float
    ratio_input: float
    ratio_target: float
    strength: float


def windows_figure(
    image_input: NDArray[np.floating[Any]],
    image_target: NDArray[np.floating[Any]],
    pairs: Sequence[PairWindows],
    *,
    clip_seconds: float,
    window_seconds: float,
    target_seconds: float | None = None,
    begins: tuple[float, float] = (0.0, 0.0),
    title: str = "",
    labels: Sequence[str] | None = None,
    truth: Sequence[PairWindows] = (),
) -> Figure:
    """Both clips' latents as images, every pair's windows over them, and the time warp between as connecting lines.

    Args:
        image_input, image_target: `[bands, frames]`, drawn in grey with time along x.
        pairs: the windows; pair k has its own lane, style and number.
        clip_seconds, window_seconds: lengths of the clips and of the composed pattern.
        target_seconds: length of the target's clip, where it differs.
        begins: seconds at which the two clips begin in their songs. Axes, and the starts in `pairs`, are in the songs'
            time then.
        title: written above.
        labels: what to write at each pair's windows instead of number and strength; their places are added.
        truth: planted windows, drawn dotted and unnumbered.

    Between the images, lines join what both windows of a pair play at the same moment of the pattern, at each quarter
    of it: parallel lines mean equal compression, a shift means another start.
    """
    figure = Figure(figsize=(10, 6.2), layout="constrained")
    FigureCanvasAgg(figure)
    top, middle, bottom = figure.subplots(3, 1, height_ratios=(3, 1.6, 3))
    seconds = clip_seconds, clip_seconds if target_seconds is None else target_seconds
    for axes, image, name, length, begin in zip(
        (top, bottom), (image_input, image_target), ("input", "target"), seconds, begins, strict=True
    ):
        low, high = np.percentile(image, (2, 98))
        axes.imshow(
            image,
            aspect="auto",
            origin="lower",
            cmap="Greys",
            vmin=low,
            vmax=max(high, low + 1e-6),
            extent=(begin, begin + length, 0, 1),
        )
        axes.set_xlim(begin, begin + max(seconds))
        axes.set_yticks([])
        axes.set_ylabel(name)
    middle.set_ylim(0, 1)
    middle.axis("off")
    for number, pair in enumerate(pairs):
        label = None if labels is None else labels[number]
        _draw_pair(figure, top, bottom, pair, number, len(pairs), window_seconds, label)
    for pair in truth:
        for axes, start, ratio in _streams(top, bottom, pair):
            length = ratio * window_seconds
            axes.add_patch(Rectangle((start, 0.005), length, 0.99, fill=False, ls=":", lw=2, ec="black"))
    top.tick_params(labelbottom=begins[0] != begins[1])
    bottom.set_xlabel("time in the song (s)" if any(begins) else "time in the clip (s)")
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def _streams(top: Any, bottom: Any, pair: PairWindows) -> tuple[tuple[Any, float, float], tuple[Any, float, float]]:
    return (top, pair.start_input, pair.ratio_input), (bottom, pair.start_target, pair.ratio_target)


def _draw_pair(
    figure: Figure,
    top: Any,
    bottom: Any,
    pair: PairWindows,
    number: int,
    count: int,
    window_seconds: float,
    label: str | None,
) -> None:
    colour, style = COLOURS[number % len(COLOURS)], STYLES[number % len(STYLES)]
    height = 1 / count
    lane = 1 - (number + 1) * height  # a lane for every pair, so that equal windows stay visible
    for axes, start, ratio in _streams(top, bottom, pair):
        length = ratio * window_seconds
        box = (start, lane + 0.06 * height), length, 0.88 * height
        axes.add_patch(Rectangle(*box, fill=True, fc=colour, alpha=0.18, lw=0))
        axes.add_patch(Rectangle(*box, fill=False, ec=colour, ls=style, lw=2))
        axes.text(
            start + 0.15,
            lane + 0.5 * height,
            f"pair {number}: {start:.2f} s, ×{ratio:.2f}, strength {pair.strength:.2f}"
            if label is None
            else f"{label}: {start:.2f} s to {start + length:.2f} s, ×{ratio:.3f}",
            va="center",
            fontsize=8,
            bbox={"fc": "white", "ec": "none", "alpha": 0.8, "pad": 1.5},
        )
    for moment in np.linspace(0, window_seconds, 5):
        ends = (pair.start_input + pair.ratio_input * moment, 0), (pair.start_target + pair.ratio_target * moment, 1)
        figure.add_artist(
            ConnectionPatch(*ends, "data", "data", axesA=top, axesB=bottom, color=colour, ls=style, lw=0.9, alpha=0.8)
        )


def trajectory_figure(
    steps: Sequence[float],
    series: Mapping[str, NDArray[np.floating[Any]]],
    *,
    title: str = "",
) -> Figure:
    """How the windows moved in training: one panel a quantity, one line a pair.

    Args:
        steps: the optimizer steps of the evaluations, `[E]`.
        series: axis label -> `[E, P]`.
    """
    figure = Figure(figsize=(10, 1.6 + 1.5 * len(series)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = np.atleast_1d(figure.subplots(len(series), 1, sharex=True))
    for axes, (label, values) in zip(panels, series.items(), strict=True):
        for pair in range(values.shape[1]):
            axes.plot(
                steps,
                values[:, pair],
                color=COLOURS[pair % len(COLOURS)],
                ls=STYLES[pair % len(STYLES)],
                marker="osD^v"[pair % 5],
                ms=4,
                label=f"pair {pair}",
            )
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    panels[0].legend(ncols=6, fontsize=8, loc="best")
    panels[-1].set_xlabel("optimizer step")
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def ablation_figure(scores: Mapping[str, Sequence[float]], title: str = "") -> Figure:
    """One row a variant: a mark for every run's score, a line at their mean.

    Args:
        scores: variant -> its runs' scores, the first variant on top.
    """
    figure = Figure(figsize=(8, 1.4 + 0.55 * len(scores)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for row, values in enumerate(scores.values()):
        mean = float(np.mean(values))
        axes.plot(values, [row] * len(values), "o", ms=7, mfc="none", mec="black")
        axes.plot([mean, mean], [row - 0.3, row + 0.3], color=COLOURS[1], lw=3)
        axes.annotate(f"{mean:.3f}", (mean, row - 0.33), ha="center", va="bottom", fontsize=8)
    axes.set_yticks(range(len(scores)), list(scores))
    axes.set_ylim(len(scores) - 0.5, -0.75)
    axes.set_xlabel("held-out skill (1 − distance / distance of a constant); rings are runs, bars their mean")
    axes.grid(axis="x", alpha=0.3)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Writes .png, .svg or .pdf by the suffix.

    Raises:
        ValueError: another suffix.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: a picture's suffix must be .png, .svg or .pdf")
    figure.savefig(path, dpi=130)


def figure_image(figure: Figure) -> NDArray[np.uint8]:
    """`[height, width, 3]`, for logs that take arrays."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
