"""What is heard of latents: a log-mel spectrogram, whatever the codec, on which rhythm and harmony are compared.

The mel codec's latents are one already. Others are decoded, and analysed as the mel codec would, at their own rate.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..audio.mel import BANDS, HIGH_HZ, LOW_HZ, MEAN, SPREAD, TILT, hz_to_mel, mel_filters, mel_to_hz
from ..losses.composing import SLOW_SECONDS, odd_frames
from ..losses.conflict import class_roughness
from ..losses.harmony import pitch_classes

HOP_SECONDS, WINDOW_SECONDS = 0.02, 0.08
LEAST = 1e-4  # magnitude that counts as silence


class Heard(Protocol):
    """What listening needs of a codec."""

    differentiable: bool
    sample_rate: int
    dim: int

    @property
    def frame_rate(self) -> float: ...

    def decode(self, latents: Tensor) -> Tensor: ...


class Listener:
    """Callable: latents `[..., C, W]` -> log-mel `[..., bands, frames]`, differentiable where the codec is.

    `classes` `[12, bands]` is for `losses.harmony`, `roughness` `[12, 12]` for `losses.conflict`; `slow` is half a
    second in frames, odd; `tilt` `[bands]` is what standardizing took from each band, in nepers.
    """

    def __init__(self, codec: Heard) -> None:
        self.codec = codec
        self.decodes = codec.differentiable
        high = min(HIGH_HZ, codec.sample_rate / 2)
        bands = BANDS if self.decodes else codec.dim
        edges = mel_to_hz(np.linspace(hz_to_mel(np.array(LOW_HZ)), hz_to_mel(np.array(high)), bands + 2))
        self.classes = pitch_classes(torch.from_numpy(edges[1:-1]).float())
        tilt = 0.0 if self.decodes else TILT  # what is analysed here keeps its spectrum
        self.tilt = tilt * (torch.arange(bands) - (bands - 1) / 2)
        self.roughness = class_roughness().float()
        self.hop = max(1, round(HOP_SECONDS * codec.sample_rate))
        self.size = max(8, round(WINDOW_SECONDS * codec.sample_rate))
        rate = codec.sample_rate / self.hop if self.decodes else codec.frame_rate
        self.slow = odd_frames(SLOW_SECONDS, rate)
        if self.decodes:
            self.filters = mel_filters(BANDS, self.size, codec.sample_rate, LOW_HZ, high)
            self.window = torch.hann_window(self.size)

    def to(self, device: torch.device) -> None:
        """Moves what is compared with, so that no step copies it, which waits and keeps a step from being one graph."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device))

    def __call__(self, latents: Tensor) -> Tensor:
        if not self.decodes:
            return latents
        shape = latents.shape
        audio = self.codec.decode(latents.reshape(-1, *shape[-2:]).float())[:, 0]
        spectrum = torch.stft(audio, self.size, self.hop, window=self.window.to(audio), return_complex=True)
        power = torch.view_as_real(spectrum).square().sum(-1)
        bands = self.filters.to(audio) @ (power + LEAST**2).sqrt()
        return ((bands.clamp(min=1e-7).log() - MEAN) / SPREAD).unflatten(0, shape[:-2])
