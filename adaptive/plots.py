"""Pictures of windows. Draws arrays; knows nothing of models, codecs or files of audio.

Readable in grey: pairs differ by line style and number, not by colour alone. Time is in seconds throughout. Texts are
drawn as they are, whatever is in them: `$`, `_` and `\\` mean nothing here (`literal`).
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Rectangle
from numpy.typing import NDArray

from .storage.durable import replacing

COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito: told apart by everybody
SUFFIXES = (".png", ".svg", ".pdf")  # of the pictures that save_figure writes
STYLES = ("-", "--", "-.", (0, (1, 1)))
LABEL = {"fc": "white", "ec": "none", "alpha": 0.8, "pad": 1.5}
DARKEST = 0.55  # of white to black: windows stay readable over the loudest places


F = TypeVar("F", bound=Callable[..., Figure])


def literal(text: str, longest: int = 90) -> str:
    """The text as a picture can show it, on one line: escapes for what cannot be printed, no middle of a long one.

    Bytes of a file's name that are no UTF-8 are such escapes too (`\\xe9`).
    """
    shown = "".join(map(_printable, text))
    return shown if len(shown) <= longest else f"{shown[: longest // 2]}…{shown[-longest // 2 + 1 :]}"


def _printable(character: str) -> str:
    if character.isprintable():
        return character
    if "\udc80" <= character <= "\udcff":  # how Python holds such a byte (PEP 383)
        return repr(os.fsencode(character))[2:-1]
    return repr(character)[1:-1]


def _literal_texts(draw: F) -> F:
    """No text in the figure is a formula, whatever the user's matplotlibrc says."""

    @functools.wraps(draw)
    def drawn(*arguments: Any, **options: Any) -> Figure:
        with matplotlib.rc_context({"text.parse_math": False, "text.usetex": False}):
            return draw(*arguments, **options)

    return cast(F, drawn)


@dataclass(frozen=True)
class PairWindows:
    """One pair's windows, in seconds of the clips: a window of ratio r covers r · `window` seconds."""

    start_input: float
    start_target: float
    ratio_input: float
    ratio_target: float
    strength: float


@_literal_texts
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
    sections_input: Sequence[tuple[str, float]] = (),
    sections_target: Sequence[tuple[str, float]] = (),
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
        truth: planted windows, drawn as black brackets over the whole height.
        sections_input, sections_target: (name, start in seconds) of planted sections, marked above each image.

    Between the images, lines join what both windows of a pair play at the same moment of the pattern, at each quarter
    of it: parallel lines mean equal compression, a shift means another start.
    """
    figure = Figure(figsize=(10, 6.6), layout="constrained")
    FigureCanvasAgg(figure)
    top, middle, bottom = figure.subplots(3, 1, height_ratios=(3, 1.5, 3))
    seconds = clip_seconds, clip_seconds if target_seconds is None else target_seconds
    for axes, image, name, sections, length, begin in zip(
        (top, bottom),
        (image_input, image_target),
        ("input", "target"),
        (sections_input, sections_target),
        seconds,
        begins,
        strict=True,
    ):
        low, high = np.percentile(image, (2, 98))
        axes.imshow(
            image,
            aspect="auto",
            origin="lower",
            cmap="Greys",
            vmin=low,
            vmax=low + max(high - low, 1e-6) / DARKEST,
            extent=(begin, begin + length, 0, 1),
        )
        axes.set_xlim(begin, begin + max(seconds))
        axes.set_yticks([])
        axes.set_ylabel(f"{name} (channels)")
        _mark_sections(axes, sections, length)
    top.tick_params(labelbottom=True)
    middle.set_xlim(top.get_xlim())
    middle.set_ylim(0, 1)
    middle.axis("off")
    figure.supxlabel(f"lines join what a pair's two windows play together, every {window_seconds / 4:g} s", fontsize=8)
    for number, pair in enumerate(pairs):
        label = None if labels is None else labels[number]
        _draw_pair(figure, (top, middle, bottom), pair, number, len(pairs), window_seconds, label)
    for pair in truth:
        for axes, start, ratio in _streams(top, bottom, pair):
            length = ratio * window_seconds
            axes.add_patch(Rectangle((start, 0.005), length, 0.99, fill=False, ls=STYLES[3], lw=2.5, ec="black"))
            axes.text(start + length - 0.15, 0.97, "truth", ha="right", va="top", fontsize=8, bbox=LABEL)
    bottom.set_xlabel("time in the song (s)" if any(begins) else "time in the clip (s)")
    if title:
        figure.suptitle(literal(title), fontsize=11)
    return figure


def _mark_sections(axes: Any, sections: Sequence[tuple[str, float]], clip_seconds: float) -> None:
    ends = [start for _, start in sections[1:]] + [clip_seconds]
    for (name, start), end in zip(sections, ends, strict=False):
        if start > 0:
            axes.axvline(start, color="black", lw=1.2)
        axes.text((start + end) / 2, 1.01, literal(name, 20), ha="center", va="bottom", fontsize=10, fontweight="bold")


def _streams(top: Any, bottom: Any, pair: PairWindows) -> tuple[tuple[Any, float, float], tuple[Any, float, float]]:
    return (top, pair.start_input, pair.ratio_input), (bottom, pair.start_target, pair.ratio_target)


def _draw_pair(
    figure: Figure,
    panels: tuple[Any, Any, Any],
    pair: PairWindows,
    number: int,
    count: int,
    window_seconds: float,
    label: str | None,
) -> None:
    top, middle, bottom = panels
    colour, style = COLOURS[number % len(COLOURS)], STYLES[number % len(STYLES)]
    height = 1 / count
    lane = 1 - (number + 1) * height  # a lane for every pair, so that equal windows stay visible
    for axes, start, ratio in _streams(top, bottom, pair):
        length = ratio * window_seconds
        box = (start, lane + 0.06 * height), length, 0.88 * height
        axes.add_patch(Rectangle(*box, fill=True, fc=colour, alpha=0.15, lw=0))
        axes.add_patch(Rectangle(*box, fill=False, ec=colour, ls=style, lw=2))
        axes.text(
            start + 0.15,
            lane + 0.5 * height,
            f"pair {number}: {start:.2f} s, ×{ratio:.2f}, strength {pair.strength:.2f}"
            if label is None
            else f"{literal(label, 30)}: {start:.2f} s to {start + length:.2f} s, ×{ratio:.3f}",
            va="center",
            fontsize=8,
            bbox=LABEL,
        )
    for moment in np.linspace(0, window_seconds, 5):
        ends = (pair.start_input + pair.ratio_input * moment, 0), (pair.start_target + pair.ratio_target * moment, 1)
        line = ConnectionPatch(*ends, "data", "data", axesA=top, axesB=bottom, color=colour, ls=style, lw=1.2)
        line.set_zorder(-1)  # beneath the numbers
        figure.add_artist(line)
        if moment == 0:  # the first line carries the pair's number, each at a height of its own
            along = (number + 1) / (count + 1)
            beneath = ends[1][0] - bottom.get_xlim()[0] + top.get_xlim()[0]  # the clips may begin at different seconds
            middle.text(
                ends[0][0] + along * (beneath - ends[0][0]),
                1 - along,
                str(number),
                ha="center",
                va="center",
                fontsize=8,
                bbox={"boxstyle": "circle", "fc": "white", "ec": colour, "pad": 0.25},
                zorder=10,
            )


@_literal_texts
def trajectory_figure(
    steps: Sequence[float],
    series: Mapping[str, NDArray[np.floating[Any]]],
    *,
    title: str = "",
    line_steps: Sequence[float] = (),
    lines: Mapping[str, NDArray[np.floating[Any]]] | None = None,
) -> Figure:
    """How the windows moved in training: one panel a quantity, one line style and mark a pair.

    Args:
        steps: the optimizer steps of the evaluations, `[E]`.
        series: axis label -> `[E, P]`, drawn as marks.
        title: written above.
        line_steps, lines: `[L]` and axis label -> `[L, P]`, what the batches in between had, drawn as lines; without
            them the marks are joined.
    """
    figure = Figure(figsize=(10, 1.6 + 1.5 * len(series)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = np.atleast_1d(figure.subplots(len(series), 1, sharex=True))
    pairs = 0
    for axes, (label, values) in zip(panels, series.items(), strict=True):
        pairs = values.shape[1]
        for pair in range(pairs):
            look: dict[str, Any] = {"color": COLOURS[pair % len(COLOURS)], "ls": STYLES[pair % len(STYLES)]}
            marks: dict[str, Any] = {"marker": "osD^v"[pair % 5], "ms": 6, "mec": "white", "label": f"pair {pair}"}
            if lines and len(line_steps):
                axes.plot(line_steps, lines[label][:, pair], lw=1.2, **look)
                look["ls"] = "none"
            axes.plot(steps, values[:, pair], zorder=3, **look, **marks)
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    panels[-1].set_xlabel("optimizer step" + (" (lines: training batches, marks: held-out clips)" if lines else ""))
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, ncols=min(6, max(1, pairs)), fontsize=8, loc="outside upper right")
    if title:
        figure.suptitle(literal(title), fontsize=11)
    return figure


@_literal_texts
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
    axes.set_yticks(range(len(scores)), [literal(name, 40) for name in scores])
    axes.set_ylim(len(scores) - 0.5, -0.75)
    axes.set_xlabel("held-out skill (1 − distance / distance of a constant); rings are runs, bars their mean")
    axes.grid(axis="x", alpha=0.3)
    if title:
        figure.suptitle(literal(title), fontsize=11)
    return figure


def save_figure(figure: Figure, path: Path, into: Callable[[Path], AbstractContextManager[Path]] = replacing) -> None:
    """Writes .png, .svg or .pdf by the suffix, by a temporary file (of `into`) that replaces `path` at the end.

    Raises:
        ValueError: another suffix.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: a picture's suffix must be .png, .svg or .pdf")
    with into(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # shown as a box; it is only a name
        figure.savefig(temporary, dpi=130, format=path.suffix[1:].lower())


def figure_image(figure: Figure) -> NDArray[np.uint8]:
    """`[height, width, 3]`, for logs that take arrays."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
