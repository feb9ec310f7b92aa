"""A song's waveform with the clip as a frame over it, to be dragged: a range input whose thumb is the frame.

So it works by pointer, by touch, by keyboard and for screen readers, as any slider does.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .songs import Refused, Song

TEMPLATE = """
<div class="strip" style="--share: ${value && value.shape ? Math.min(1, value.clip / value.seconds) : 1}">
  ${!value ? '' : value.problem ? `<p class="problem" role="alert">${value.problem}</p>` : `
  <div class="wave">
    <svg viewBox="0 0 ${value.columns} 100" preserveAspectRatio="none" aria-hidden="true">
      <path d="${value.shape}"/></svg>
    <input type="range" class="frame" min="0" max="${value.most}" step="0.05"
      aria-label="Second at which the clip of ${value.label} begins" ${value.most > 0 ? '' : 'disabled'}>
    <div class="grip"></div>
  </div>
  <p class="place"><output class="where"></output>
    <button type="button" class="hear">Hear it from there</button></p>`}
</div>
"""
SCRIPT = (Path(__file__).parent / "strip.js").read_text(encoding="utf-8")


def strip_value(label: str, song: Song, clip_seconds: float) -> dict[str, Any]:
    """What the strip shows: all text in it is safe in HTML."""
    heights = 48 * np.asarray(song.peaks) / max(song.peaks)
    top, foot = ([f"{k},{y:.1f} {k + 1},{y:.1f}" for k, y in enumerate(50 + sign * heights)] for sign in (-1, 1))
    back = [" ".join(reversed(step.split())) for step in reversed(foot)]
    return {
        "label": html.escape(label),
        "columns": len(song.peaks),
        "shape": f"M{' '.join(top)} {' '.join(back)}z",
        "seconds": song.seconds,
        "clip": min(clip_seconds, song.seconds),
        "most": math.floor(max(0.0, song.seconds - clip_seconds) * 20 + 1e-6) / 20,  # whole steps of the slider
        "at": 0.0,
    }


def problem_value(sentence: str) -> dict[str, Any]:
    return {"problem": html.escape(sentence)}


def place(value: Any, song: Song, label: str, clip_seconds: float) -> float:
    """The second that a strip's frame begins at; the browser may have sent anything.

    Raises:
        Refused: no number, or no place in the song.
    """
    at = value.get("at", 0.0) if isinstance(value, Mapping) else None
    last = max(0.0, song.seconds - clip_seconds)
    if isinstance(at, bool) or not isinstance(at, int | float) or not 0 <= at <= last + 1e-6:
        raise Refused(f"The clip of {label} must begin between 0 and {last:.2f} s.")
    return float(at)
