"""What training minimizes: a table of named terms, each with a weight of the configuration and a way to compute it.

    loss = Σ weight · term        over the rows of `TERMS` whose weight is not 0; some are always told

`spectral` compares every composed pattern with its pair's own window of the song that harmony comes from (the target,
unless told otherwise), resampled but untransformed, at its present place; where rhythm comes from the other song, with
that window in the other's rhythm (`losses.composing`), on what is heard. `onsets` and `harmony` compare onset envelopes
and pitch classes alone. That window is taken as data: its place is not trained through this term, because the nearest
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
from ..losses.composing import regrooved
from ..losses.rhythm import LAGS_SECONDS, annealed_rhythm_blur
from ..losses.scale_space import annealed_sigma
from ..losses.signals import wide
from .listening import Listener
from .measures import music_measures


class Decoder(Protocol):
    """What the decoded loss needs of a codec."""

    differentiable: bool
    sample_rate: int
    dim: int

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


def novelty_share_at(config: TrainConfig, step: int | None) -> float:
    """Share of the novelty's weight in a step: a pattern has to sound like something before it is asked to be new."""
    steps = config.novelty_after * config.max_steps
    return 1.0 if step is None or steps <= 0 else min(1.0, step / steps)


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
        self.listen = Listener(codec)
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
        late = novelty_share_at(self.config, step)
        weighted = [(late if term.late else 1.0) * weight * parts[term.name] for term, weight in self.terms]
        return torch.stack(weighted).sum(), parts

    def why_not_traced(self) -> str | None:
        """Why the losses are not one and the same computation in every step, None where they are."""
        config = self.config
        if config.anneal_blur:
            return "--anneal-blur blurs less from step to step"
        if config.rhythm_weight:
            return "rhythm is blurred less from step to step"
        if config.novelty_after and config.novelty_weight:
            return "the novelty's weight grows from step to step"
        decoded = config.spectral == "decoded" or config.envelope_copy_weight
        listens = config.rhythm_from != "none" or config.harmony_from != "none" or config.spread_weight
        if self.codec.differentiable and (decoded or listens):
            return "each step decodes another stretch of the patterns"
        return None

    def lags(self, window: int) -> tuple[float, float]:
        """Frames of the lags at which rhythm is compared; at most a quarter of the window, so that each fits often."""
        shortest, longest = (seconds * self.codec.frame_rate for seconds in LAGS_SECONDS)
        return max(1.0, shortest), min(longest, window / 4)

    @torch.no_grad()
    def measures(self, patterns: Tensor, windows: dict[str, Tensor], x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """`measures.MEASURES` of every pattern, `[B, P]` each; of codecs that decode, on `decode_seconds` of it."""
        part = self.stretch(patterns.shape[-1], False) if self.listen.decodes else slice(None)
        cuts = [
            resample_windows(clip, windows[f"start_{name}"], windows[f"ratio_{name}"], patterns.shape[-1])
            for clip, name in ((x, "input"), (y, "target"))
        ]
        pattern, cut_input, cut_target = (self.listen(wide(z)[..., part]) for z in (patterns, *cuts))
        return music_measures(pattern, cut_input, cut_target, self.listen.classes, self.listen.slow)

    @torch.no_grad()
    def reference(self, windows: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        """What `spectral` asks patterns to be, as latents `[B, P, C, W]`; for codecs whose latents are a spectrum."""
        window = self.codec.frames(self.config.window_seconds)
        cuts = {
            name: wide(resample_windows(clip, windows[f"start_{name}"], windows[f"ratio_{name}"], window))
            for clip, name in ((x, "input"), (y, "target"))
        }
        if not self.regrooves:
            return cuts[self.like]
        return regrooved(cuts[self.config.harmony_from], cuts[self.config.rhythm_from], self.listen.slow)

    @property
    def regrooves(self) -> bool:
        """Whether a pattern is asked for one song's harmony in the other's rhythm."""
        songs = {self.config.harmony_from, self.config.rhythm_from}
        return songs == {"input", "target"}

    @property
    def like(self) -> str:
        """The song whose windows patterns are compared with as a whole: that of the harmony, else of the rhythm."""
        return next((s for s in (self.config.harmony_from, self.config.rhythm_from) if s != "none"), "target")

    def spectral(self, patterns: Tensor, windows: dict[str, Tensor], y: Tensor, random_stretch: bool) -> Tensor:
        """Distance of patterns to the windows that `windows` cuts from the clip y as its target's."""
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
    if objective.regrooves:
        pattern, wanted = _regrooved(objective, step)
        return losses.multi_scale_latent_loss(pattern, wanted, _scales(pattern.shape[-1]))
    if objective.like == "target":
        return objective.spectral(step.patterns, step.windows, step.y, step.random_stretch)
    swapped = {name: step.windows[name.replace("target", "input")] for name in ("start_target", "ratio_target")}
    return objective.spectral(step.patterns, swapped, step.x, step.random_stretch)


def _scales(frames: int) -> tuple[int, ...]:
    return tuple(scale for scale in (1, 2, 4, 8, 16) if scale <= frames)


def _regrooved(objective: Objective, step: Step) -> tuple[Tensor, Tensor]:
    """What is heard of the pattern, and the harmony's windows in the rhythm of the other's, as data."""
    part = slice(None)
    if objective.listen.decodes:
        part = objective.stretch(step.window, step.random_stretch)
    pattern = objective.listen(step.patterns[..., part])
    with torch.no_grad():
        harmony, rhythm = (
            objective.listen(step.cut(song)[..., part])
            for song in (objective.config.harmony_from, objective.config.rhythm_from)
        )
        return pattern, regrooved(harmony, rhythm, objective.listen.slow)


def _beside(objective: Objective, step: Step, song: str) -> tuple[Tensor, Tensor]:
    """What is heard of the patterns, and of their windows of a song, which are data: `[B, P, bands, frames]` each."""
    part = slice(None)
    if objective.listen.decodes:
        part = objective.stretch(step.window, step.random_stretch)
    with torch.no_grad():
        wanted = objective.listen(step.cut(song)[..., part])
    return objective.listen(step.patterns[..., part]), wanted


def _onsets(objective: Objective, step: Step) -> Tensor:
    return losses.rhythm_matching(*_beside(objective, step, objective.config.rhythm_from))


def _harmony(objective: Objective, step: Step) -> Tensor:
    pattern, wanted = _beside(objective, step, objective.config.harmony_from)
    return losses.harmony_matching(pattern, wanted, objective.listen.classes, objective.listen.slow)


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
    Term("novelty", lambda config: config.novelty_weight, _novelty, always=True, late=True),
    Term("onsets", lambda config: config.onset_weight * (config.rhythm_from != "none"), _onsets),
    Term("harmony", lambda config: config.harmony_weight * (config.harmony_from != "none"), _harmony),
    Term("spread", lambda config: config.spread_weight, _spread),
    Term("matching", lambda config: config.matching_weight, _matching),
    Term("reconstruction", lambda config: config.reconstruction_weight, _reconstruction),
    Term("overlap", lambda config: config.overlap_weight, _overlap),
    Term("ratio_diversity", lambda config: -config.ratio_diversity_weight, _ratio_diversity),  # a reward
    Term("rhythm", lambda config: config.rhythm_weight, _rhythm),
    Term("envelope_copy", lambda config: config.envelope_copy_weight, _envelope_copy),
)
