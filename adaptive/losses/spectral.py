"""Patterns compared with what they should, or should not, sound like: differentiable, finite gradients at silence.

16-bit signals are computed in float32. Every function returns a 0-dim tensor: a mean over batch and channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .signals import pearson, same_shape, wide

MAGNITUDE_FLOOR = 1e-4  # of an STFT: a little below what 16-bit quantization noise leaves in a bin


def reconstruction_loss(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference of two tensors of one shape."""
    same_shape(a=a, b=b)
    return (wide(a) - wide(b)).square().mean()


def envelope_copy_penalty(output: Tensor, source: Tensor, segments: int = 250) -> Tensor:
    """Squared Pearson correlation of two signals' envelopes, in [0, 1]: 1 where the output copies the source's.

    A signal's envelope is the largest magnitude in each of `segments` equal parts (the last parts differ by one sample
    where the length is no multiple).

    Args:
        output, source: signals `[..., N]` with the same leading dimensions; lengths N ≥ `segments`, may differ.
        segments: parts, ≥ 2. For 16 s, 250 parts last 64 ms each.
    """
    if segments < 2:
        raise ValueError(f"segments must be at least 2, got {segments}")
    if output.shape[:-1] != source.shape[:-1]:
        raise ValueError(
            f"source must have the leading dimensions of output ({list(output.shape)}), got {list(source.shape)}"
        )
    envelopes = []
    for name, x in (("output", output), ("source", source)):
        if x.shape[-1] < segments:
            raise ValueError(f"{name} must have at least {segments} samples (segments), got {x.shape[-1]}")
        rows = wide(x).abs().reshape(1, -1, x.shape[-1])
        envelopes.append(F.adaptive_max_pool1d(rows, segments)[0])  # [rows, segments]
    return pearson(*envelopes).square().mean()


def multi_resolution_stft_loss(
    audio_a: Tensor, audio_b: Tensor, fft_sizes: Sequence[int] = (512, 1024, 2048)
) -> Tensor:
    """Spectral convergence plus log-magnitude difference, averaged over several STFT resolutions.

        ‖|A| − |B|‖ / ‖|B|‖  +  mean |log|A| − log|B||        Euclidean norms over bins and frames of each signal

    Source: R. Yamamoto, E. Song, J.-M. Kim, "Parallel WaveGAN", ICASSP 2020 (arXiv:1910.11480), equations 4 to 6. Here
    windows are Hann of the FFT's own size with a quarter of it as hop (theirs are a little shorter), and magnitudes are
    sqrt(power + floor²), so that silence is safe.

    Args:
        audio_a: the estimate, `[..., N]`, N ≥ half the largest FFT size + 1 (reflection at the ends).
        audio_b: the reference, same shape.
        fft_sizes: samples of each resolution.
    """
    same_shape(audio_a=audio_a, audio_b=audio_b)
    if not fft_sizes:
        raise ValueError("fft_sizes must name at least one FFT size, got none")
    samples, least = audio_a.shape[-1], max(fft_sizes) // 2 + 1
    if samples < least:
        raise ValueError(f"audio_a must have at least {least} samples for fft_sizes {tuple(fft_sizes)}, got {samples}")
    total = audio_a.new_zeros((), dtype=wide(audio_a).dtype)
    for size in fft_sizes:
        a, b = (_magnitudes(wide(x).reshape(-1, samples), size) for x in (audio_a, audio_b))
        convergence = torch.linalg.vector_norm(a - b, dim=(1, 2)) / torch.linalg.vector_norm(b, dim=(1, 2))
        total = total + convergence.mean() + (a.log() - b.log()).abs().mean()
    return total / len(fft_sizes)


def _magnitudes(x: Tensor, size: int) -> Tensor:
    """`[rows, N]` -> `[rows, bins, frames]`."""
    window = torch.hann_window(size, dtype=x.dtype, device=x.device)
    spectrum = torch.view_as_real(torch.stft(x, size, size // 4, window=window, return_complex=True))
    return (spectrum.square().sum(-1) + MAGNITUDE_FLOOR**2).sqrt()


def multi_scale_latent_loss(a: Tensor, b: Tensor, scales: Sequence[int] = (1, 2, 4, 8, 16)) -> Tensor:
    """Mean absolute difference of latents averaged over 1, 2, 4, ... frames, the mean over the scales.

    Where latents are log-mel spectrograms this is the log-mel distance at several time resolutions: the coarse ones
    compare what is played, the fine ones when. A last group of fewer frames is averaged over those it has.

    Args:
        a, b: latents of one shape `[..., C, W]`.
        scales: frames averaged, each between 1 and W.
    """
    same_shape(a=a, b=b)
    if a.dim() < 2:
        raise ValueError(f"a and b must have shape [..., C, W], got {list(a.shape)}")
    frames = a.shape[-1]
    if not scales or min(scales) < 1 or max(scales) > frames:
        raise ValueError(f"scales must be one or more of 1 to {frames} frames, got {tuple(scales)}")
    difference = (wide(a) - wide(b)).reshape(-1, 1, frames)
    per_scale = [F.avg_pool1d(difference, scale, ceil_mode=True).abs().mean() for scale in scales]
    return torch.stack(per_scale).mean()
