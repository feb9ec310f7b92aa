"""Planted windows for `recovery.py`: synthetic latents, and real or synthesized pieces changed as audio.

A problem is a clip x of T frames and the W frames y that its window of a known start and ratio became.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torchaudio.functional as audio_functional
from torch import Tensor

from adaptive_window.audio.codec import Codec
from adaptive_window.audio.files import find_audio, read_audio
from adaptive_window.audio.synthesis import synthesize_pair
from adaptive_window.kernels import resample_windows
from adaptive_window.losses.scale_space import gaussian_blur

CLIP, WINDOW, MAX_RATIO = 24.0, 16.0, 1.5  # seconds
T, W = 1200, 800  # frames of synthetic latents
CHANNELS = 32
LEAST_LEVEL = 1e-3  # RMS of the first and last 4 s of a clip: no silent ends
VOCODER = 2048  # FFT of the phase vocoder; its hop is an eighth


@dataclass(frozen=True)
class Problems:
    """x `[N, C, T]`, start and ratio `[N]` of the planted windows, and which piece x is from, `[N]`."""

    x: Tensor
    start: Tensor
    ratio: Tensor
    piece: Tensor

    @property
    def window(self) -> int:
        return round(self.x.shape[-1] * WINDOW / CLIP)

    def planted(self) -> Tensor:
        """y `[N, C, W]`: the latents themselves, resampled."""
        return resample_windows(self.x, self.start[:, None], self.ratio[:, None], self.window)[:, 0]


def draw_windows(count: int, frames: int, window: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Ratio uniform in [1, 1.5], start uniform in what then fits."""
    ratio = 1 + (MAX_RATIO - 1) * torch.rand(count, generator=generator)
    return torch.rand(count, generator=generator) * (frames - ratio * window), ratio


def synthetic(count: int, correlation: float, seed: int) -> Problems:
    """White noise blurred by a Gaussian of `correlation` frames, of unit spread: `[count, 32, 1200]`."""
    generator = torch.Generator().manual_seed(seed)
    edge = math.ceil(5 * correlation)
    noise = torch.randn(count, CHANNELS, T + 2 * edge, generator=generator)
    x = gaussian_blur(noise, correlation)[..., edge : edge + T]
    start, ratio = draw_windows(count, T, W, generator)
    return Problems(x / x.std(), start, ratio, torch.arange(count))


def with_noise(y: Tensor, decibels: float, generator: torch.Generator) -> Tensor:
    """White noise added, `decibels` below the signal's own power (each clip's)."""
    level = y.std((-2, -1) if y.dim() == 3 else -1, keepdim=True) * 10 ** (-decibels / 20)
    return y + level * torch.randn(y.shape, generator=generator)


def pieces(folder: Path | None, sample_rate: int, seed: int) -> dict[str, Tensor]:
    """Mono audio `[N]` by name: the files of a folder, or four synthesized pieces of 40 s."""
    if folder is not None:
        return {path.stem: read_audio(path, sample_rate)[0] for path in find_audio(folder)}
    made = {f"synthesized {n}": synthesize_pair(seed + n, seconds=40.0, sample_rate=sample_rate) for n in range(4)}
    return {name: torch.from_numpy(piece.input) for name, piece in made.items()}


def clips(audio: dict[str, Tensor], per_piece: int, codec: Codec, seed: int) -> tuple[Problems, list[Tensor]]:
    """Random clips as latents, and the audio `[n]` of each planted window, before it is stretched."""
    generator = torch.Generator().manual_seed(seed)
    rate, length, ends = codec.sample_rate, round(CLIP * codec.sample_rate), 4 * codec.sample_rate
    found, piece = [], []
    for number, song in enumerate(audio.values()):
        if len(song) < length:
            raise ValueError(f"{list(audio)[number]} lasts {len(song) / rate:.1f} s: a clip takes {CLIP:g} s")
        while piece.count(number) < per_piece:
            at = int(torch.randint(len(song) - length + 1, (), generator=generator))
            clip = song[at : at + length]
            if min(clip[:ends].std(), clip[-ends:].std()) > LEAST_LEVEL:
                found.append(clip)
                piece.append(number)
    with torch.no_grad():
        x = torch.cat([codec.encode(clip[None, None]) for clip in found])
    start, ratio = draw_windows(len(found), codec.frames(CLIP), codec.frames(WINDOW), generator)
    cuts = []
    for clip, s, r in zip(found, start.tolist(), ratio.tolist(), strict=True):
        begin = round(s * codec.hop)
        cuts.append(clip[begin : begin + round(r * WINDOW * rate)])
    return Problems(x, start, ratio, torch.tensor(piece)), cuts


def corner_clips(
    audio: dict[str, Tensor], per_case: int, codec: Codec, seed: int, seconds: float
) -> tuple[Problems, list[Tensor]]:
    """Clips that sound in their first or last `seconds` alone, and windows that begin or end there with them.

    Of each piece, `per_case` with every combination of: the first seconds or the last; digital silence or white noise
    60 dB below full scale elsewhere; ratio 1 (a corner of what is searched) or uniform in [1, 1.5] (an edge). And the
    audio of each window, before it is stretched.
    """
    generator = torch.Generator().manual_seed(seed)
    rate, length, sounding = codec.sample_rate, round(CLIP * codec.sample_rate), round(seconds * codec.sample_rate)
    frames, window = codec.frames(CLIP), codec.frames(WINDOW)
    found, cuts, places, piece = [], [], [], []
    cases = [(last, level, edge) for last in (False, True) for level in (0.0, 1e-3) for edge in (False, True)]
    for number, song in enumerate(audio.values()):
        for last, level, edge in cases * per_case:
            part = song[:0]
            while len(part) == 0 or part.std() <= LEAST_LEVEL:
                at = int(torch.randint(len(song) - sounding + 1, (), generator=generator))
                part = song[at : at + sounding]
            clip = level * torch.randn(length, generator=generator)
            clip[length - sounding if last else 0 :][:sounding] = part
            ratio = 1 + edge * (MAX_RATIO - 1) * float(torch.rand((), generator=generator))
            start = frames - ratio * window if last else 0.0
            cut = round(ratio * WINDOW * rate)
            found.append(clip)
            cuts.append(clip[length - cut :] if last else clip[:cut])
            places.append((start, ratio))
            piece.append(number)
    with torch.no_grad():
        x = torch.cat([codec.encode(clip[None, None]) for clip in found])
    start, ratio = torch.tensor(places).unbind(1)
    return Problems(x, start, ratio, torch.tensor(piece)), cuts


def stretch(audio: Tensor, speed: float) -> Tensor:
    """Played `speed` times as fast at the same pitch, by torchaudio's phase vocoder."""
    window, hop = torch.hann_window(VOCODER), VOCODER // 8
    spectrum = torch.stft(audio[None], VOCODER, hop, window=window, return_complex=True)
    advance = torch.linspace(0, math.pi * hop, VOCODER // 2 + 1)[:, None]
    spectrum = audio_functional.phase_vocoder(spectrum, speed, advance)
    return torch.istft(spectrum, VOCODER, hop, window=window, length=round(len(audio) / speed))[0]


def degrade(audio: Tensor, generator: torch.Generator) -> Tensor:
    """Random equalization (six cosines over the square root of frequency, each within 3 dB), gain within 6 dB, and
    white noise 10 dB below."""
    spectrum = torch.fft.rfft(audio)
    place = torch.linspace(0, 1, len(spectrum)).sqrt()
    weights = (torch.rand(6, generator=generator) - 0.5) * 6
    curve = sum(w * torch.cos(math.pi * k * place) for k, w in enumerate(weights))
    gain = (torch.rand((), generator=generator) - 0.5) * 12
    shaped = torch.fft.irfft(spectrum * 10 ** ((curve + gain) / 20), n=len(audio))
    return with_noise(shaped, 10.0, generator)


def encoded(audio: list[Tensor], codec: Codec) -> Tensor:
    """`[N, C, W]`; a vocoder's output may lack a few samples at the end."""
    samples = codec.frames(WINDOW) * codec.hop
    with torch.no_grad():
        padded = [torch.nn.functional.pad(a, (0, max(0, samples - len(a))))[:samples] for a in audio]
        return torch.cat([codec.encode(a[None, None]) for a in padded])
