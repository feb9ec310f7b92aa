"""The terms of the objective: a table of names, weights and ways to compute them, and what each is computed from.

What a term is for is told in `objective.py`; how it is computed, in `losses`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from adaptive_window.kernels import resample_windows

from .. import losses
from ..config import TrainConfig
from ..losses.composing import regrooved
from ..losses.rhythm import annealed_rhythm_blur
from ..losses.scale_space import annealed_sigma
from ..losses.signals import wide

if TYPE_CHECKING:
    from .objective import Objective


def blur_at(config: TrainConfig, step: int | None) -> float:
    """Frames of blur in the step after `step` steps: falls as (1 − progress)², and is 0 from `anneal_until` on.

    None stands for the end of the run, which is what evaluations measure by: losses at different blurs do not compare.
    """
    steps = _annealing_steps(config)
    return 0.0 if step is None or step >= steps else annealed_sigma(step, steps, config.anneal_blur)


def rhythm_blur_at(config: TrainConfig, step: int | None) -> float:
    """The blur of log lag at which rhythm is compared, likewise: falls by equal factors until `anneal_until`."""
    return annealed_rhythm_blur(1.0 if step is None else step / _annealing_steps(config))


def novelty_share_at(config: TrainConfig, step: int | None) -> float:
    """Share of the novelty's weight in a step: a pattern has to sound like something before it is asked to be new."""
    steps = config.novelty_after * config.max_steps
    return 1.0 if step is None or steps <= 0 else min(1.0, step / steps)


def conflict_weight(config: TrainConfig) -> float:
    """`--conflict-weight`, which is `--harmony-weight` where it is not given."""
    return config.harmony_weight if config.conflict_weight is None else config.conflict_weight


def _annealing_steps(config: TrainConfig) -> int:
    return max(1, round(config.anneal_until * config.max_steps))


@dataclass
class Step:
    """What the terms of one step are computed from; windows are cut once, when the first term asks for them."""

    patterns: Tensor  # [B, P, C, W], never 16-bit
    losses: list[Tensor]  # the pairs' own
    windows: dict[str, Tensor]  # [B, P] each
    x: Tensor
    y: Tensor
    random_stretch: bool
    taken: int | None  # steps before this one; None for the end of the run
    transformed: dict[str, Tensor] | None  # `input` and `target` [B, P, C, W], where a term asks for them
    cuts: dict[str, Tensor] = field(default_factory=dict)

    @property
    def window(self) -> int:
        return self.patterns.shape[-1]

    @property
    def cut_input(self) -> Tensor:
        return self._cut(self.x, "input")

    @property
    def cut_target(self) -> Tensor:
        return self._cut(self.y, "target")

    def cut(self, song: str) -> Tensor:
        return self.cut_input if song == "input" else self.cut_target

    def _cut(self, clip: Tensor, name: str) -> Tensor:
        """The pairs' windows of a clip, untransformed and live: `[B, P, C, W]`."""
        if name not in self.cuts:  # no `cached_property`: its lock cannot be compiled before Python 3.12
            start, ratio = self.windows[f"start_{name}"], self.windows[f"ratio_{name}"]
            self.cuts[name] = wide(resample_windows(clip, start, ratio, self.window))
        return self.cuts[name]


@dataclass(frozen=True)
class Term:
    """One row: `weight(config)` times `compute(objective, step)`, a 0-dim tensor, is added to the loss.

    `always`: computed and told also where its weight is 0. `late`: its weight grows with `novelty_share_at`.
    """

    name: str
    weight: Callable[[TrainConfig], float]
    compute: Callable[[Objective, Step], Tensor]
    always: bool = False
    late: bool = False


def _spectral(objective: Objective, step: Step) -> Tensor:
    if objective.regrooves:
        pattern, wanted = _regrooved(objective, step)
        return losses.multi_scale_latent_loss(pattern, wanted, _scales(pattern.shape[-1]))
    if objective.like == "target":
        return objective.spectral(step.patterns, step.windows, step.y, step.random_stretch)
    swapped = {name: step.windows[name.replace("target", "input")] for name in ("start_target", "ratio_target")}
    return objective.spectral(step.patterns, swapped, step.x, step.random_stretch)


def _scales(frames: int) -> tuple[int, ...]:
    return tuple(scale for scale in (1, 2, 4, 8, 16) if scale <= frames)


def _part(objective: Objective, step: Step) -> slice:
    """The frames that are heard: a stretch of them where they are decoded, drawn anew at each call, else all."""
    return objective.stretch(step.window, step.random_stretch) if objective.listen.decodes else slice(None)


def _regrooved(objective: Objective, step: Step) -> tuple[Tensor, Tensor]:
    """What is heard of the pattern, and the harmony's windows in the rhythm of the other's, as data."""
    part = _part(objective, step)
    pattern = objective.listen(step.patterns[..., part])
    with torch.no_grad():
        harmony, rhythm = (
            objective.listen(step.cut(song)[..., part])
            for song in (objective.config.harmony_from, objective.config.rhythm_from)
        )
        return pattern, regrooved(harmony, rhythm, objective.listen.slow)


def _beside(objective: Objective, step: Step, song: str) -> tuple[Tensor, Tensor]:
    """What is heard of the patterns, and of their windows of a song, which are data: `[B, P, bands, frames]` each."""
    part = _part(objective, step)
    with torch.no_grad():
        wanted = objective.listen(step.cut(song)[..., part])
    return objective.listen(step.patterns[..., part]), wanted


def _onsets(objective: Objective, step: Step) -> Tensor:
    return losses.rhythm_matching(*_beside(objective, step, objective.config.rhythm_from))


def _harmony(objective: Objective, step: Step) -> Tensor:
    pattern, wanted = _beside(objective, step, objective.config.harmony_from)
    return losses.harmony_matching(pattern, wanted, objective.listen.classes, objective.listen.slow)


def _conflict(objective: Objective, step: Step) -> Tensor:
    if step.transformed is None:
        raise ValueError("transformed must be the agent's transformed windows where conflict has a weight, got None")
    part = _part(objective, step)
    heard = [objective.listen(wide(step.transformed[song])[..., part]) for song in ("input", "target")]
    with torch.no_grad():
        source = [objective.listen(step.cut(song)[..., part]) for song in ("input", "target")]
    return losses.harmonic_alignment(
        (heard[0], heard[1]),
        (source[0], source[1]),
        objective.listen.classes,
        objective.listen.slow,
        objective.listen.tilt,
        objective.listen.roughness,
    )


def _novelty(_: Objective, step: Step) -> Tensor:
    return torch.mean(torch.stack(step.losses))


def _spread(objective: Objective, step: Step) -> Tensor:
    if objective.regrooves:
        return losses.spread_matching(*_regrooved(objective, step))
    return losses.spread_matching(*_beside(objective, step, objective.like))


def _matching(objective: Objective, step: Step) -> Tensor:
    sigma = blur_at(objective.config, step.taken)
    return losses.matching_loss(step.x, step.y, step.windows, step.window, sigma=sigma)


def _reconstruction(_: Objective, step: Step) -> Tensor:
    return losses.reconstruction_loss(step.patterns, step.cut_target)


def _overlap(_: Objective, step: Step) -> Tensor:
    return losses.window_overlap_penalty(step.windows, step.window)


def _ratio_diversity(objective: Objective, step: Step) -> Tensor:
    return losses.ratio_diversity(step.windows, objective.config.ratio_spread)


def _rhythm(objective: Objective, step: Step) -> Tensor:
    blur = rhythm_blur_at(objective.config, step.taken)
    return losses.tempo_matching(step.x, step.y, step.windows, step.window, blur=blur, lags=objective.lags(step.window))


def _envelope_copy(objective: Objective, step: Step) -> Tensor:
    """Mean over input and target of the squared correlation of their windows' loudness with the pattern's."""
    part = _part(objective, step)
    output = objective.loudness(step.patterns[..., part])  # [B·P, N]
    penalties = []
    for cut in (step.cut_input, step.cut_target):
        source = objective.loudness(cut[..., part])
        penalties.append(losses.envelope_copy_penalty(output, source, min(250, output.shape[-1])))
    return torch.stack(penalties).mean()


TERMS = (
    Term("spectral", lambda config: config.spectral_weight, _spectral, always=True),
    Term("novelty", lambda config: config.novelty_weight, _novelty, always=True, late=True),
    Term("onsets", lambda config: config.onset_weight * (config.rhythm_from != "none"), _onsets),
    Term("harmony", lambda config: config.harmony_weight * (config.harmony_from != "none"), _harmony),
    Term("conflict", conflict_weight, _conflict),
    Term("spread", lambda config: config.spread_weight, _spread),
    Term("matching", lambda config: config.matching_weight, _matching),
    Term("reconstruction", lambda config: config.reconstruction_weight, _reconstruction),
    Term("overlap", lambda config: config.overlap_weight, _overlap),
    Term("ratio_diversity", lambda config: -config.ratio_diversity_weight, _ratio_diversity),  # a reward
    Term("rhythm", lambda config: config.rhythm_weight, _rhythm),
    Term("envelope_copy", lambda config: config.envelope_copy_weight, _envelope_copy),
)
