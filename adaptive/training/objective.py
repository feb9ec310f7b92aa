"""What training minimizes: spectral distance to the target, the pairs' own losses, and the regularizers asked for.

    loss = spectral_weight · spectral + novelty_weight · mean(losses) + Σ weight · regularizer

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

from typing import Protocol

import torch
from torch import Tensor

from adaptive_window.kernels import resample_windows

from ..config import TrainConfig
from ..errors import UsageError
from ..model import losses as terms
from ..model.matching import matching_loss
from ..model.rhythm import LAGS_SECONDS, annealed_rhythm_blur, tempo_matching
from ..model.scale_space import annealed_sigma


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
        config = self.config
        patterns = _wide(torch.stack(outputs, dim=1))  # [B, P, C, W]
        window = patterns.shape[-1]
        parts = {
            "spectral": self.spectral(patterns, windows, y, random_stretch),
            "novelty": torch.mean(torch.stack(losses)),
        }
        loss = config.spectral_weight * parts["spectral"] + config.novelty_weight * parts["novelty"]
        if config.matching_weight:
            parts["matching"] = matching_loss(x, y, windows, window, sigma=blur_at(config, step))
            loss = loss + config.matching_weight * parts["matching"]
        if config.reconstruction_weight:
            wanted = resample_windows(y, windows["start_target"], windows["ratio_target"], window)
            parts["reconstruction"] = terms.reconstruction_loss(patterns, wanted)
            loss = loss + config.reconstruction_weight * parts["reconstruction"]
        if config.overlap_weight:
            parts["overlap"] = terms.window_overlap_penalty(windows, window)
            loss = loss + config.overlap_weight * parts["overlap"]
        if config.ratio_diversity_weight:
            parts["ratio_diversity"] = terms.ratio_diversity(windows, config.ratio_spread)
            loss = loss - config.ratio_diversity_weight * parts["ratio_diversity"]
        if config.rhythm_weight:
            blur = rhythm_blur_at(config, step)
            parts["rhythm"] = tempo_matching(x, y, windows, window, blur=blur, lags=self.lags(window))
            loss = loss + config.rhythm_weight * parts["rhythm"]
        if config.envelope_copy_weight:
            parts["envelope_copy"] = self.envelope_copy(patterns, windows, x, y, random_stretch)
            loss = loss + config.envelope_copy_weight * parts["envelope_copy"]
        return loss, parts

    def lags(self, window: int) -> tuple[float, float]:
        """Frames of the lags at which rhythm is compared; at most a quarter of the window, so that each fits often."""
        shortest, longest = (seconds * self.codec.frame_rate for seconds in LAGS_SECONDS)
        return max(1.0, shortest), min(longest, window / 4)

    def spectral(self, patterns: Tensor, windows: dict[str, Tensor], y: Tensor, random_stretch: bool) -> Tensor:
        with torch.no_grad():
            start, ratio = windows["start_target"], windows["ratio_target"]
            wanted = _wide(resample_windows(y, start, ratio, patterns.shape[-1]))  # [B, P, C, W]
        if self.config.spectral == "latent":
            return terms.reconstruction_loss(patterns, wanted)
        if not self.codec.differentiable:  # latents that are a spectrum themselves
            return terms.multi_scale_latent_loss(patterns, wanted)
        part = self.stretch(patterns.shape[-1], random_stretch)
        with torch.no_grad():
            wanted_audio = self.decode(wanted[..., part].flatten(0, 1))
        return terms.multi_resolution_stft_loss(self.decode(patterns[..., part].flatten(0, 1)), wanted_audio)

    def stretch(self, window: int, random_stretch: bool) -> slice:
        """The frames that a decoded loss looks at: `decode_seconds` of them, anywhere or in the middle."""
        frames = min(self.decode_frames, window)
        room = window - frames
        begin = int(torch.randint(room + 1, ())) if random_stretch else room // 2  # drawn on the CPU: no device waits
        return slice(begin, begin + frames)

    def envelope_copy(
        self, patterns: Tensor, windows: dict[str, Tensor], x: Tensor, y: Tensor, random_stretch: bool
    ) -> Tensor:
        """Mean over input and target of the squared correlation of their windows' loudness with the pattern's."""
        window = patterns.shape[-1]
        part = self.stretch(window, random_stretch) if self.codec.differentiable else slice(None)
        output = self.loudness(patterns[..., part])  # [B·P, N]
        penalties = []
        for clip, name in ((x, "input"), (y, "target")):
            cut = _wide(resample_windows(clip, windows[f"start_{name}"], windows[f"ratio_{name}"], window))
            source = self.loudness(cut[..., part])
            penalties.append(terms.envelope_copy_penalty(output, source, min(250, output.shape[-1])))
        return torch.stack(penalties).mean()

    def loudness(self, latents: Tensor) -> Tensor:
        """`[B, P, C, T]` -> a signal `[B·P, N]` whose envelope is loudness: decoded audio, or the mean log level."""
        flat = latents.flatten(0, 1)
        if self.codec.differentiable:
            return self.decode(flat).squeeze(1)
        return flat.mean(1).exp()

    def decode(self, latents: Tensor) -> Tensor:
        return self.codec.decode(latents.float())  # codecs stay in float32


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
