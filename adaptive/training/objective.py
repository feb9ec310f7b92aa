"""What training minimizes: a table of named terms, each with a weight of the configuration and a way to compute it.

    loss = Σ weight · term        over the rows of `terms.TERMS` whose weight is not 0; some are always told

`spectral` compares every composed pattern with its pair's own window of the song that harmony comes from (the target,
unless told otherwise), resampled but untransformed, at its present place; where rhythm comes from the other song, with
that window in the other's rhythm (`losses.composing`), on what is heard. `onsets` and `harmony` compare onset envelopes
and pitch classes alone. That window is taken as data: its place is not trained through this term, because the nearest
way to a small distance would be a silent or monotonous place in the target. Windows learn through the pattern, which is
made from them. `reconstruction` is the same comparison with the window live, for those who want it to move.

`matching` compares the pair's two windows with each other, and trains both. In the first part of a run it does so on
blurred clips (`--anneal-blur`), since the gradient of a start sees no farther than the signal is smooth. `rhythm`
compares the pair's tempos, whatever is played when, on an axis that is blurred likewise. `conflict` asks what the
tonality transform makes of a pair's windows (`losses.conflict`): harmonies that clash no longer do, at the loudness
that they had; their places are data to it, since silence clashes with nothing, so that it acts through strength and the
transform's weights. No clip is blurred for
anything else: the selector and the composer get the clips themselves, as they will after training, and the other terms
compare what is heard.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from adaptive_window.kernels import resample_windows

from .. import losses
from ..config import TrainConfig
from ..config.checks import check_objective
from ..losses.composing import regrooved
from ..losses.rhythm import LAGS_SECONDS
from ..losses.signals import wide
from .listening import Listener
from .measures import conflict_measures, music_measures
from .terms import TERMS, Step, conflict_weight, novelty_share_at


class Decoder(Protocol):
    """What the decoded loss needs of a codec."""

    differentiable: bool
    sample_rate: int
    dim: int

    @property
    def frame_rate(self) -> float: ...

    def decode(self, latents: Tensor) -> Tensor: ...

    def frames(self, seconds: float) -> int: ...


class Objective:
    """Callable: `(outputs, losses, windows, x, y)` -> `(loss, parts)`, both differentiable, `parts` by name."""

    def __init__(self, codec: Decoder, config: TrainConfig) -> None:
        self.codec = codec
        self.config = config
        check_objective(config)
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
        transformed: dict[str, Tensor] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`step`: steps taken before, for what is annealed; None for the end of the run (`blur_at`).

        `transformed`: the agent's metadata of that name, given where `agent_options` asks for it.
        """
        given = Step(wide(torch.stack(outputs, dim=1)), losses, windows, x, y, random_stretch, step, transformed)
        parts = {term.name: term.compute(self, given) for term, _ in self.terms}
        late = novelty_share_at(self.config, step)
        weighted = [(late if term.late else 1.0) * weight * parts[term.name] for term, weight in self.terms]
        return torch.stack(weighted).sum(), parts

    @property
    def agent_options(self) -> dict[str, bool]:
        """What the agent has to be called with besides the clips, for the terms that have a weight."""
        return {"transformed": True} if any(term.name == "conflict" for term, _ in self.terms) else {}

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
        listens = listens or conflict_weight(config)
        if self.codec.differentiable and (decoded or listens):
            return "each step decodes another stretch of the patterns"
        return None

    def lags(self, window: int) -> tuple[float, float]:
        """Frames of the lags at which rhythm is compared; at most a quarter of the window, so that each fits often."""
        shortest, longest = (seconds * self.codec.frame_rate for seconds in LAGS_SECONDS)
        return max(1.0, shortest), min(longest, window / 4)

    @torch.no_grad()
    def measures(
        self,
        patterns: Tensor,
        windows: dict[str, Tensor],
        x: Tensor,
        y: Tensor,
        transformed: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """`measures.MEASURES` of every pattern, `[B, P]` each; of codecs that decode, on `decode_seconds` of it.

        `transformed`: the agent's metadata of that name, for `measures.CONFLICTS` besides.
        """
        part = self.stretch(patterns.shape[-1], False) if self.listen.decodes else slice(None)
        cuts = [
            resample_windows(clip, windows[f"start_{name}"], windows[f"ratio_{name}"], patterns.shape[-1])
            for clip, name in ((x, "input"), (y, "target"))
        ]
        pattern, cut_input, cut_target = (self.listen(wide(z)[..., part]) for z in (patterns, *cuts))
        found = music_measures(pattern, cut_input, cut_target, self.listen.classes, self.listen.slow)
        if transformed is not None:
            heard = [self.listen(wide(transformed[song])[..., part]) for song in ("input", "target")]
            hear = (self.listen.classes, self.listen.slow, self.listen.roughness)
            found |= conflict_measures(heard, [cut_input, cut_target], *hear)
        return found

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
