"""The windows over both clips' latents, to zoom into: as `plots.windows_figure` draws them on paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from ..plots import COLOURS, DARKEST, PairWindows

DASHES = ("solid", "dash", "dashdot", "dot")
INK = "#1a1a1a"


def windows_picture(
    images: tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]],
    pairs: Sequence[PairWindows],
    *,
    names: tuple[str, str],
    begins: tuple[float, float],
    clip_seconds: tuple[float, float],
    window_seconds: float,
    labels: Sequence[str] | None = None,
) -> go.Figure:
    """Song A above, song B below, and lines between that join what both windows of a pair play at the same moment.

    Args:
        images: `[bands, frames]` of either clip.
        pairs: starts in seconds of the clips.
        names: what to call the songs.
        begins: seconds of the songs at which the clips begin; under the pointer stand seconds of the songs.
        clip_seconds: lengths of the clips.
        window_seconds: length of the pattern.
        labels: what to call the pairs, where it is not their numbers.

    Time runs along one axis for all three, in seconds of the clips, so that zooming keeps them aligned. Pairs differ by
    dashes and number, not by colour alone.
    """
    figure = go.Figure()
    for image, name, begin, length, axis in zip(images, names, begins, clip_seconds, ("y3", "y"), strict=True):
        bands, frames = image.shape
        step = length / frames
        figure.add_trace(
            go.Heatmap(
                z=_grey(image),
                x0=step / 2,
                dx=step,
                y0=0.5 / bands,
                dy=1 / bands,
                yaxis=axis,
                zmin=0,
                zmax=255 / DARKEST,
                colorscale=[[0, "white"], [1, "black"]],
                showscale=False,
                hovertemplate=f"%{{x:.2f}} s of the clip<extra>{name}, from {begin:.2f} s</extra>",
            )
        )
    for number, pair in enumerate(pairs):
        _add_pair(figure, pair, number, len(pairs), window_seconds, begins, names, labels)
    plain: dict[str, Any] = {
        "range": [0, 1],
        "fixedrange": True,
        "showticklabels": False,
        "showgrid": False,
        "zeroline": False,
    }
    figure.update_layout(
        template="none",
        height=560,
        margin={"l": 60, "r": 12, "t": 40, "b": 48},
        paper_bgcolor="white",
        plot_bgcolor="white",
        font={"color": INK},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        hovermode="closest",
        dragmode="zoom",
        xaxis={
            "title": {"text": "seconds of the clip"},
            "range": [0, max(clip_seconds)],
            "showgrid": False,
            "anchor": "y",
        },
        yaxis={**plain, "domain": [0, 0.4], "title": {"text": names[1]}},
        yaxis2={**plain, "domain": [0.42, 0.58]},
        yaxis3={**plain, "domain": [0.6, 1], "title": {"text": names[0]}},
    )
    return figure


def _grey(image: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """From the 2nd percentile to the 98th as 0 to 255: a fourth of the bytes of the latents."""
    low, high = np.percentile(image, (2, 98))
    return np.clip((image - low) * (255 / max(high - low, 1e-6)), 0, 255).astype(np.uint8)


def _add_pair(
    figure: go.Figure,
    pair: PairWindows,
    number: int,
    count: int,
    window: float,
    begins: tuple[float, float],
    names: tuple[str, str],
    labels: Sequence[str] | None,
) -> None:
    colour, dash = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
    label = f"pair {number}" if labels is None else labels[number]
    line = {"color": colour, "dash": dash, "width": 2.5}
    lane = 1 - (number + 1) / count  # a lane for every pair, so that equal windows stay visible
    foot, top = lane + 0.06 / count, lane + 0.94 / count
    sides = ((pair.start_input, pair.ratio_input, "y3"), (pair.start_target, pair.ratio_target, "y"))
    for side, (start, ratio, axis) in enumerate(sides):
        end = start + ratio * window
        words = f"{names[side]}: {begins[side] + start:.2f} s to {begins[side] + end:.2f} s, ×{ratio:.3f}"
        figure.add_trace(
            go.Scatter(
                x=[start, end, end, start, start],
                y=[foot, foot, top, top, foot],
                yaxis=axis,
                mode="lines",
                line=line,
                name=label,
                legendgroup=label,
                showlegend=side == 0,
                hovertemplate=f"{words}<extra>{label}</extra>",
            )
        )
        figure.add_annotation(
            x=start,
            y=(foot + top) / 2,
            yref=axis,
            xanchor="left",
            text=f"{label}: {begins[side] + start:.2f} s, ×{ratio:.2f}",
            showarrow=False,
            bgcolor="rgba(255, 255, 255, 0.8)",
            font={"size": 12, "color": INK},
        )
    x: list[float | None] = []
    y: list[float | None] = []
    for moment in np.linspace(0, window, 5):
        x += [pair.start_target + pair.ratio_target * moment, pair.start_input + pair.ratio_input * moment, None]
        y += [0, 1, None]
    figure.add_trace(
        go.Scatter(
            x=x, y=y, yaxis="y2", mode="lines", line={**line, "width": 1.5}, legendgroup=label, showlegend=False,
            hoverinfo="skip",
        )
    )  # fmt: skip
