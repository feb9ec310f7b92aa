"""What training minimizes: a table of named terms, each with a weight of the configuration and a way to compute it.

    loss = Σ weight · term        over the rows of `TERMS` whose weight is not 0; some are always told

`spectral` compares every composed pattern with its pair's own window of the *target*, resampled but untransformed, at
its present place. That window is taken as data: its position is not trained through this term, because the nearest
way to a small distance would be a silent or monotonous place in the target. Windows learn through the pattern, which is
made from them. `reconstruction` is the same comparison with the window live, for those who want it to move.

`matching` compares the pair's two windows with each other, and trains both. In the first part of a run it does so on
blurred clips (`--anneal-blur`), since the gradient of a start sees no farther than the signal is smooth. `rhythm`
compares the pair's tempos, whatever is played when, on an axis that is blurred likewise. No clip is blurred for
anything else: the selector and the composer get the clips themselves, as they will after training, and the other terms
compare what is heard.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from adaptive_window.kernels import resample_windows

from .. import losses
from ..config import TrainConfig
from ..errors import UsageError
from ..losses.rhythm import LAGS_SECONDS, annealed_rhythm_blur
from ..losses.scale_space import annealed_sigma
from ..losses.signals import wide


class Decoder(Protocol):
    """What the decoded loss needs of a codec."""

    differentiable: bool

    @property
    def frame_rate(self) -> float: ...

    def decode(self, latents: Tensor) -> Tensor: ...

    def frames(self, seconds: float) -> int: ...


def blur_at(config: TrainConfig, step: int | None) -> float:
    """Frames of blur in the step after `step` steps: falls as (1 − progress)², and is 0 from `anneal_until` on.

    None stands for the end of the run, which is what evaluations measure by: losses at different blurs do not compare.
    """
    steps = _annealing_steps(config)
    return 0.0 if step is None or step >= steps else annealed_sigma(step, steps, config.anneal_blur)


def rhythm_blur_at(config: TrainConfig, step: int | None) -> float:
    """The blur of log lag at which rhythm is compared, likewise: falls by equal factors until `anneal_until`."""
    return annealed_rhythm_blur(1.0 if step is None else step / _annealing_steps(config))


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

    def _cut(self, clip: Tensor, name: str) -> Tensor:
        """The pairs' windows of a clip, untransformed and live: `[B, P, C, W]`."""
        if name not in self.cuts:  # no `cached_property`: its lock cannot be compiled before Python 3.12
            start, ratio = self.windows[f"start_{name}"], self.windows[f"ratio_{name}"]
            self.cuts[name] = wide(resample_windows(clip, start, ratio, self.window))
        return self.cuts[name]


@dataclass(frozen=True)
class Term:
    """One row: `weight(config)` times `compute(objective, step)`, a 0-dim tensor, is added to the loss.

    `always`: computed and told also where its weight is 0.
    """

    name: str
    weight: Callable[[TrainConfig], float]
    compute: Callable[[Objective, Step], Tensor]
    always: bool = False


class Objective:
    """Callable: `(outputs, losses, windows, x, y)` -> `(loss, parts)`, both differentiable, `parts` by name."""

    def __init__(self, codec: Decoder, config: TrainConfig) -> None:
        self.codec = codec
        self.config = config
        if config.anneal_blur and not config.matching_weight:
            raise UsageError("--anneal-blur blurs what matching compares: add --matching-weight, or leave it away")
        reach = (config.num_pairs - 1) * config.ratio_spread
        if config.ratio_diversity_weight and reach > config.max_ratio - 1 + 1e-9:
            raise UsageError(
                f"--ratio-spread {config.ratio_spread:g} for {config.num_pairs} pairs needs ratios up to "
                f"{1 + reach:g}, above --max-ratio {config.max_ratio:g}: all would end at the range's ends"
            )
        self.decode_frames = max(1, codec.frames(config.decode_seconds))
        self.terms = [(term, term.weight(config)) for term in TERMS if term.always or term.weight(config)]

    def __call__(
        self,
        outputs: list[Tensor],
        losses: list[Tensor],
        windows: dict[str, Tensor],
        x: Tensor,
        y: Tensor,
        *,
        random_stretch: bool = True,
        step: int | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`step`: steps taken before, for what is annealed; None for the end of the run (`blur_at`)."""
        given = Step(wide(torch.stack(outputs, dim=1)), losses, windows, x, y, random_stretch, step)
        parts = {term.name: term.compute(self, given) for term, _ in self.terms}
        return torch.stack([weight * parts[term.name] for term, weight in self.terms]).sum(), parts

    def why_not_traced(self) -> str | None:
        """Why the losses are not one and the same computation in every step, None where they are."""
        config = self.config
        if config.anneal_blur:
            return "--anneal-blur blurs less from step to step"
        if config.rhythm_weight:
            return "rhythm is blurred less from step to step"
        decoded = config.spectral == "decoded" or config.envelope_copy_weight
        if self.codec.differentiable and decoded:
            return "each step decodes another stretch of the patterns"
        return None

    def lags(self, window: int) -> tuple[float, float]:
        """Frames of the lags at which rhythm is compared; at most a quarter of the window, so that each fits often."""
        shortest, longest = (seconds * self.codec.frame_rate for seconds in LAGS_SECONDS)
        return max(1.0, shortest), min(longest, window / 4)

    def spectral(self, patterns: Tensor, windows: dict[str, Tensor], y: Tensor, random_stretch: bool) -> Tensor:
        with torch.no_grad():
            start, ratio = windows["start_target"], windows["ratio_target"]
            wanted = wide(resample_windows(y, start, ratio, patterns.shape[-1]))  # [B, P, C, W]
        if self.config.spectral == "latent":
            return losses.reconstruction_loss(patterns, wanted)
        if not self.codec.differentiable:  # latents that are a spectrum themselves
            return losses.multi_scale_latent_loss(patterns, wanted)
        part = self.stretch(patterns.shape[-1], random_stretch)
        with torch.no_grad():
            wanted_audio = self.decode(wanted[..., part].flatten(0, 1))
        return losses.multi_resolution_stft_loss(self.decode(patterns[..., part].flatten(0, 1)), wanted_audio)

    def stretch(self, window: int, random_stretch: bool) -> slice:
        """The frames that a decoded loss looks at: `decode_seconds` of them, anywhere or in the middle."""
        frames = min(self.decode_frames, window)
        room = window - frames
        begin = int(torch.randint(room + 1, ())) if random_stretch else room // 2  # drawn on the CPU: no device waits
        return slice(begin, begin + frames)

    def loudness(self, latents: Tensor) -> Tensor:
        """`[B, P, C, T]` -> a signal `[B·P, N]` whose envelope is loudness: decoded audio, or the mean log level."""
        flat = latents.flatten(0, 1)
        if self.codec.differentiable:
            return self.decode(flat).squeeze(1)
        return flat.mean(1).exp()

    def decode(self, latents: Tensor) -> Tensor:
        return self.codec.decode(latents.float())  # codecs stay in float32


def _spectral(objective: Objective, step: Step) -> Tensor:
    return objective.spectral(step.patterns, step.windows, step.y, step.random_stretch)


def _novelty(_: Objective, step: Step) -> Tensor:
    return torch.mean(torch.stack(step.losses))


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
    part = slice(None)
    if objective.codec.differentiable:
        part = objective.stretch(step.window, step.random_stretch)
    output = objective.loudness(step.patterns[..., part])  # [B·P, N]
    penalties = []
    for cut in (step.cut_input, step.cut_target):
        source = objective.loudness(cut[..., part])
        penalties.append(losses.envelope_copy_penalty(output, source, min(250, output.shape[-1])))
    return torch.stack(penalties).mean()


TERMS = (
    Term("spectral", lambda config: config.spectral_weight, _spectral, always=True),
    Term("novelty", lambda config: config.novelty_weight, _novelty, always=True),
    Term("matching", lambda config: config.matching_weight, _matching),
    Term("reconstruction", lambda config: config.reconstruction_weight, _reconstruction),
    Term("overlap", lambda config: config.overlap_weight, _overlap),
    Term("ratio_diversity", lambda config: -config.ratio_diversity_weight, _ratio_diversity),  # a reward
    Term("rhythm", lambda config: config.rhythm_weight, _rhythm),
    Term("envelope_copy", lambda config: config.envelope_copy_weight, _envelope_copy),
)
