"""The embedded codec: a log-mel spectrogram and its inversion. No weights, no network.

16 kHz mono, Hann window of 1280 samples, hop of 320: 50 frames per second, 128 Slaney mel bands from 20 Hz to 8 kHz.
Its latents vary smoothly in time, so resampling them along time stretches the sound at constant pitch.

Sources: the mel scale and its area-normalized triangles are those of M. Slaney, "Auditory Toolbox, Version 2",
Technical Report 1998-010, Interval Research (as in librosa's `filters.mel`). Inversion of the band sums: the
multiplicative update for the generalized Kullback-Leibler divergence of D. Lee and H. S. Seung, "Algorithms for
Non-negative Matrix Factorization", NIPS 2000. Phases: N. Perraudin, P. Balazs, P. L. Søndergaard, "A Fast Griffin-Lim
Algorithm", WASPAA 2013.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .interface import Codec, digest

SAMPLE_RATE = 16000
WINDOW = 1280
HOP = 320
BANDS = 128
LOW_HZ, HIGH_HZ = 20.0, 8000.0

# Natural log of a band's magnitude. The floor is what 16-bit rounding noise leaves in a band; the ceiling is just above
# what a full-scale sine reaches (2.99), so that latents out of range (the composer clamps at 50) decode to something
# finite.
FLOOR, CEILING = math.log(1e-5), 3.5

# Standardization: latent = (log magnitude - (MEAN + TILT * (band - 63.5))) / SPREAD. Mean, least-squares slope over the
# bands and spread around it, measured over four pieces of recorded music (-4.4, -0.034, 1.8 on average) and both
# sides of synthesize_pair(0..7) (-3.6, -0.036, 1.5), and taken half way.
MEAN, TILT, SPREAD = -4.0, -0.035, 1.7

INVERSION_ROUNDS = 20
PHASE_ROUNDS = 32
MOMENTUM = 0.99
PHASE_SEED = 0


def hz_to_mel(hz: np.ndarray) -> np.ndarray:
    """Slaney's scale: 200/3 Hz per mel up to 1 kHz (mel 15), above it a factor 6.4 every 27 mels."""
    hz = np.asarray(hz, dtype=np.float64)
    return np.where(hz < 1000.0, hz * 3 / 200, 15 + 27 * np.log(np.maximum(hz, 1000.0) / 1000) / math.log(6.4))


def mel_to_hz(mel: np.ndarray) -> np.ndarray:
    """Inverse of `hz_to_mel`."""
    mel = np.asarray(mel, dtype=np.float64)
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((np.maximum(mel, 15) - 15) * math.log(6.4) / 27))


def mel_filters(bands: int, window: int, sample_rate: int, low_hz: float, high_hz: float) -> Tensor:
    """Triangles [bands, window // 2 + 1], float32, each of unit area over Hz."""
    edges = mel_to_hz(np.linspace(hz_to_mel(np.array(low_hz)), hz_to_mel(np.array(high_hz)), bands + 2))
    bins = np.arange(window // 2 + 1) * sample_rate / window
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (bins - left) / (centre - left), (right - bins) / (right - centre)
    return torch.from_numpy(np.maximum(0, np.minimum(rising, falling)) * 2 / (right - left)).float()


class MelCodec(Codec):
    """Log-mel latents. `decode` is deterministic, independent of the rest of the batch, and carries no gradients.

    The signal counts as silent outside its ends. Frame t is centred on sample (t + 1/2) * 320.
    """

    name = "mel"
    sample_rate = SAMPLE_RATE
    hop = HOP
    dim = BANDS
    context = 2  # ceil((WINDOW - HOP) / 2 / HOP): how far a frame's window reaches beyond its own hop

    def __init__(self) -> None:
        self._window = torch.hann_window(WINDOW)
        self._filters = mel_filters(BANDS, WINDOW, SAMPLE_RATE, LOW_HZ, HIGH_HZ)  # [bands, bins]
        self._inverse = torch.linalg.pinv(self._filters.double()).float()  # [bins, bands]
        self._offset = (MEAN + TILT * (torch.arange(BANDS) - (BANDS - 1) / 2))[:, None]  # [bands, 1]

    @property
    def fingerprint(self) -> str:
        constants = (SAMPLE_RATE, WINDOW, HOP, BANDS, LOW_HZ, HIGH_HZ, FLOOR, CEILING, MEAN, TILT, SPREAD)
        return digest(["mel", *map(repr, constants)], {})

    @property
    def device(self) -> torch.device:
        return self._window.device

    def to(self, device: str | torch.device) -> MelCodec:
        for key in ("_window", "_filters", "_inverse", "_offset"):
            setattr(self, key, getattr(self, key).to(device))
        return self

    def _spectrum(self, audio: Tensor) -> Tensor:
        """[B, T * hop] -> complex [B, T, bins]."""
        edge = (WINDOW - HOP) // 2
        padded = torch.nn.functional.pad(audio, (edge, edge))
        return torch.fft.rfft(padded.unfold(-1, WINDOW, HOP) * self._window)

    def _overlap_add(self, frames: Tensor) -> Tensor:
        """[..., T, window] -> [..., T * hop], without the half overlap at either end."""
        per_window, length = WINDOW // HOP, frames.shape[-2]
        frames = frames.unflatten(-1, (per_window, HOP))
        total = frames.new_zeros(*frames.shape[:-3], length + per_window - 1, HOP)
        for k in range(per_window):
            total[..., k : k + length, :] += frames[..., k, :]
        edge = (WINDOW - HOP) // 2
        return total.flatten(-2)[..., edge : edge + length * HOP]

    def _encode(self, audio: Tensor) -> Tensor:
        magnitude = self._spectrum(audio[:, 0]).abs()  # [B, T, bins]
        bands = self._filters @ magnitude.transpose(1, 2)  # [B, bands, T]
        return (bands.clamp(min=math.exp(FLOOR)).log() - self._offset) / SPREAD

    @torch.no_grad()
    def _decode(self, latents: Tensor) -> Tensor:
        log_bands = (latents * SPREAD + self._offset).clamp(FLOOR, CEILING)
        return self._phases(self._magnitudes(log_bands.exp()))[:, None]

    def _magnitudes(self, bands: Tensor) -> Tensor:
        """Nonnegative magnitudes [B, T, bins] whose band sums are `bands` [B, bands, T]."""
        bands = bands.transpose(1, 2)
        tiny = 1e-7
        magnitude = (bands @ self._inverse.T).clamp(min=tiny)
        column_sums = self._filters.sum(0).clamp(min=tiny)  # [bins]
        for _ in range(INVERSION_ROUNDS):
            excess = bands / (magnitude @ self._filters.T).clamp(min=tiny)
            magnitude = magnitude * ((excess @ self._filters) / column_sums)
        return magnitude

    def _phases(self, magnitude: Tensor) -> Tensor:
        """Audio [B, T * hop] whose spectrum has about this `magnitude` [B, T, bins]."""
        weight = self._overlap_add((self._window**2).expand(magnitude.shape[1], WINDOW))  # [T * hop]
        # Drawn on the CPU, once for all samples: the same sound on every device and in every batch.
        generator = torch.Generator().manual_seed(PHASE_SEED)
        phase = torch.rand(magnitude.shape[1:], generator=generator).to(magnitude.device) * (2 * math.pi)
        estimate = torch.polar(magnitude, phase.expand_as(magnitude))
        previous = None
        for _ in range(PHASE_ROUNDS):
            projected = self._spectrum(self._invert(estimate, weight))
            estimate = projected if previous is None else projected + MOMENTUM * (projected - previous)
            previous = projected
            estimate = estimate * (magnitude / estimate.abs().clamp(min=1e-16))
        return self._invert(estimate, weight)

    def _invert(self, spectrum: Tensor, weight: Tensor) -> Tensor:
        """The signal [B, T * hop] whose spectrum is nearest to `spectrum` [B, T, bins] in least squares."""
        return self._overlap_add(torch.fft.irfft(spectrum, n=WINDOW) * self._window) / weight
