"""How much of a composed pattern is music, and whose: pure functions of log-mel windows, one number a pattern.

    fluctuation              spread over time of the pattern's bands, over that of its target window's
    follows target, input    correlation of the bands, each about its mean over time
    onsets target, input     correlation of the onset envelopes
    harmony target, input    correlation of the pitch-class profiles (`losses.harmony`)
    copies                   the larger of both `follows`: 1 for a copy

and of the two windows, heard together: `conflict`, after the tonality transform, and `conflict_before`, percent of
`losses.conflict`, above 0 where they clash.

A steady hiss has a fluctuation near 0 and follows nothing; unrelated music follows by about 0 in all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..losses.conflict import harmonic_conflict
from ..losses.harmony import SMOOTHING, harmony_likeness
from ..losses.rhythm import onset_envelope
from ..losses.signals import centred, pearson, wide

MEASURES = (
    "fluctuation",
    "follows_target",
    "follows_input",
    "onsets_target",
    "onsets_input",
    "harmony_target",
    "harmony_input",
    "copies",
)
CONFLICTS = ("conflict_before", "conflict")
STILL, COPY = 0.3, 0.9  # a pattern that hardly changes, and one that is a copy
SPREAD_FLOOR = 1e-6


def music_measures(
    pattern: Tensor, window_input: Tensor, window_target: Tensor, classes: Tensor, smoothing: int = SMOOTHING
) -> dict[str, Tensor]:
    """`MEASURES` of patterns beside the windows they were made from, all log-mel `[..., C, W]` of one shape: `[...]`.

    Args:
        pattern, window_input, window_target: windows resampled to the pattern's length, untransformed.
        classes, smoothing: of `losses.harmony`.
    """
    moving = {name: centred(wide(x)) for name, x in (("p", pattern), ("i", window_input), ("t", window_target))}
    spread = {name: x.square().mean((-1, -2)).sqrt() for name, x in moving.items()}
    found = {"fluctuation": spread["p"] / (spread["t"] + SPREAD_FLOOR)}
    for name, key in (("target", "t"), ("input", "i")):
        found[f"follows_{name}"] = pearson(moving["p"].flatten(-2), moving[key].flatten(-2))
    for name, x in (("target", window_target), ("input", window_input)):
        found[f"onsets_{name}"] = pearson(onset_envelope(pattern), onset_envelope(x))
    for name, x in (("target", window_target), ("input", window_input)):
        found[f"harmony_{name}"] = harmony_likeness(pattern, x, classes, smoothing)
    found["copies"] = torch.maximum(found["follows_target"], found["follows_input"])
    return found


def conflict_measures(
    transformed: Sequence[Tensor], untransformed: Sequence[Tensor], classes: Tensor, smoothing: int, roughness: Tensor
) -> dict[str, Tensor]:
    """`CONFLICTS` of pairs of windows, input and target, log-mel `[..., C, W]` each: `[...]`.

    Args:
        classes, smoothing, roughness: as `harmonic_conflict`, a `Listener`'s.
    """
    hear, pairs = (classes, smoothing, roughness), (untransformed, transformed)
    return {name: harmonic_conflict(a, b, *hear) for name, (a, b) in zip(CONFLICTS, pairs, strict=True)}


def measures_line(heard: Mapping[str, float]) -> str:
    """One line for the epoch's table and for commands; `CONFLICTS` where they were measured."""
    both = (
        f"{name} {heard[f'{name}_target']:.2f}/{heard[f'{name}_input']:.2f}"
        for name in ("follows", "onsets", "harmony")
    )
    line = f"fluctuation {heard['fluctuation']:.2f}, target/input: {', '.join(both)}; copies {heard['copies']:.2f}"
    if "conflict" not in heard:
        return line
    return f"{line}; conflict {heard['conflict_before']:.1f} -> {heard['conflict']:.1f} %"


def measures_warnings(heard: Mapping[str, float]) -> list[str]:
    """What is wrong with patterns, in plain words."""
    found = []
    if heard["fluctuation"] < STILL:
        found.append(
            f"warning: the pattern hardly changes over time (fluctuation {heard['fluctuation']:.2f} of its target "
            "window's): train longer"
        )
    if heard["copies"] > COPY:
        of = "target" if heard["follows_target"] >= heard["follows_input"] else "input"
        found.append(
            f"warning: a copy of the {of} (correlation {heard['copies']:.2f}): take rhythm and harmony from different "
            "songs, or raise --novelty-weight"
        )
    return found
