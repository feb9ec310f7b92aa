"""What training minimizes: spectral distance to the target, the pairs' own losses, and the regularizers asked for.

    loss = spectral_weight · spectral + novelty_weight · mean(losses) + Σ weight · regularizer

`spectral` compares every composed pattern with its pair's own window of the *target*, resampled but untransformed, at
its present place. That window is taken as data: its position is not trained through this term, because the nearest
way to a small distance would be a silent or monotonous place in the target. Windows learn through the pattern, which is
made from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from adaptive_window.kernels import resample_windows

from ..config import TrainConfig
from ..model import losses as terms


class Decoder(Protocol):
    """What the decoded loss needs of a codec."""

    differentiable: bool

    @property
    def frame_rate(self) -> float: ...

    def decode(self, latents: Tensor) -> Tensor: ...

    def frames(self, seconds: float) -> int: ...


class Objective:
    """Callable: `(outputs, losses, windows, x, y)` -> `(loss, parts)`, both differentiable, `parts` by name."""

    def __init__(self, codec: Decoder, config: TrainConfig) -> None:
        self.codec = codec
        self.config = config
        self.decode_frames = max(1, codec.frames(config.decode_seconds))

    def __call__(
        self,
        outputs: list[Tensor],
        losses: list[Tensor],
        windows: Mapping[str, Tensor],
        x: Tensor,
        y: Tensor,
        *,
        random_stretch: bool = True,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        config = self.config
        patterns = torch.stack(outputs, dim=1).float()  # [B, P, C, W]
        window = patterns.shape[-1]
        parts = {
            "spectral": self.spectral(patterns, windows, y, random_stretch),
            "novelty": torch.mean(torch.stack(losses)),
        }
        loss = config.spectral_weight * parts["spectral"] + config.novelty_weight * parts["novelty"]
        if config.overlap_weight:
            parts["overlap"] = terms.window_overlap_penalty(windows, window)
            loss = loss + config.overlap_weight * parts["overlap"]
        if config.ratio_diversity_weight:
            parts["ratio_diversity"] = terms.ratio_diversity(windows)
            loss = loss - config.ratio_diversity_weight * parts["ratio_diversity"]
        if config.rhythm_weight:
            parts["rhythm"] = terms.rhythm_matching(
                resample_windows(x, windows["start_input"], windows["ratio_input"], window),
                resample_windows(y, windows["start_target"], windows["ratio_target"], window),
            )
            loss = loss + config.rhythm_weight * parts["rhythm"]
        if config.envelope_copy_weight:
            parts["envelope_copy"] = self.envelope_copy(patterns, windows, x, y)
            loss = loss + config.envelope_copy_weight * parts["envelope_copy"]
        return loss, parts

    def spectral(self, patterns: Tensor, windows: Mapping[str, Tensor], y: Tensor, random_stretch: bool) -> Tensor:
        with torch.no_grad():
            start, ratio = windows["start_target"], windows["ratio_target"]
            wanted = resample_windows(y, start, ratio, patterns.shape[-1]).float()  # [B, P, C, W]
        if self.config.spectral == "latent":
            return terms.reconstruction_loss(patterns, wanted)
        if not self.codec.differentiable:  # latents that are a spectrum themselves
            return terms.multi_scale_latent_loss(patterns.flatten(0, 1), wanted.flatten(0, 1))
        frames = min(self.decode_frames, patterns.shape[-1])
        room = patterns.shape[-1] - frames
        offset = int(torch.randint(room + 1, ())) if random_stretch else room // 2  # on the CPU: no device is asked
        stretch = slice(offset, offset + frames)
        with torch.no_grad():
            wanted_audio = self.codec.decode(wanted[..., stretch].flatten(0, 1))
        audio = self.codec.decode(patterns[..., stretch].flatten(0, 1))
        return terms.multi_resolution_stft_loss(audio, wanted_audio)

    def envelope_copy(self, patterns: Tensor, windows: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        window = patterns.shape[-1]
        total = patterns.new_zeros(())
        for clip, name in ((x, "input"), (y, "target")):
            source = resample_windows(clip, windows[f"start_{name}"], windows[f"ratio_{name}"], window)
            total = total + terms.envelope_copy_penalty(patterns.flatten(0, 1), source.flatten(0, 1))
        return total
