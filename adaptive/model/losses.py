"""Regularizers and losses: pure functions, differentiable, with finite gradients at silence.

16-bit signals are computed in float32. Every function returns a 0-dim tensor: a mean over batch and channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

VARIANCE_FLOOR = 1e-8  # added to variances under a Pearson correlation: a constant signal correlates with nothing
MAGNITUDE_FLOOR = 1e-4  # of an STFT: a little below what 16-bit quantization noise leaves in a bin


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _same_shape(**named: Tensor) -> None:
    (first, a), (second, b) = named.items()
    if a.shape != b.shape:
        raise ValueError(f"{second} must have the shape of {first} ({list(a.shape)}), got {list(b.shape)}")


def _pearson(a: Tensor, b: Tensor) -> Tensor:
    """Pearson correlation over the last dimension, in [−1, 1]; 0 where a signal is constant."""
    a = a - a.mean(-1, keepdim=True)
    b = b - b.mean(-1, keepdim=True)
    variances = (a.square().mean(-1) + VARIANCE_FLOOR) * (b.square().mean(-1) + VARIANCE_FLOOR)
    return (a * b).mean(-1) * variances.rsqrt()


def _couples(windows: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Indices (i, j), i < j, of all couples of pairs."""
    ratio = windows["ratio_input"]
    i, j = torch.triu_indices(ratio.shape[1], ratio.shape[1], offset=1, device=ratio.device)
    return i, j


def _distance(values: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """|v_j − v_i| `[B, couples]`; where both are equal, the derivative is that of v_j − v_i.

    abs and the likes of minimum have derivative 0 there, or the same one for both: equal pairs would stay equal for
    ever. Here the order of the pairs breaks the tie: the later one moves up, the earlier one down.
    """
    difference = values[:, j] - values[:, i]
    return torch.where(difference < 0, -difference, difference)


def window_overlap_penalty(windows: dict[str, Tensor], window_frames: int) -> Tensor:
    """How much different pairs choose the same region: 0 for disjoint windows, 1 for windows around one centre.

        overlap = max(0, 1 − |c_j − c_i| / ((L_i + L_j)/2)),   c = s + L/2,  L = r·W

    of windows [s, s + L] in frames; the mean over couples of pairs, samples and both streams. Where the windows overlap
    partly this is Dice's coefficient, shared frames over the mean length. Where one lies inside the other Dice's (and
    Jaccard's) is a plateau, from which no start moves, so there the line is continued to the centre instead. Windows
    that are equal have the gradient that separates them (`_distance`). 0 for a single pair.

    Args:
        windows: `metadata["windows"]`: start_input, ratio_input, start_target, ratio_target, each `[B, P]`.
        window_frames: W.
    """
    if windows["start_input"].shape[1] < 2:
        return windows["start_input"].new_zeros(())
    i, j = _couples(windows)
    overlaps = []
    for stream in ("input", "target"):
        length = windows[f"ratio_{stream}"] * window_frames
        centre = windows[f"start_{stream}"] + length / 2
        overlaps.append((1 - _distance(centre, i, j) / ((length[:, i] + length[:, j]) / 2)).relu())
    return torch.stack(overlaps).mean()


def ratio_diversity(windows: dict[str, Tensor], spread: float = 0.1) -> Tensor:
    """How far the pairs' ratios are apart, counted up to `spread`: from 0 (all equal) to 1 (far enough).

        diversity = min(1, |r_j − r_i| / spread),   the mean over couples of pairs, samples and both streams

    To be subtracted from a loss. It pulls equal ratios apart (`_distance`) and lets go of those that differ by
    `spread`, so that P ratios span (P − 1)·`spread`, wherever in the range the rest of the loss wants them; a variance
    would drive them to the ends of the range, and leave equal ratios equal. 0 for a single pair.

    Args:
        windows: `metadata["windows"]`: ratio_input, ratio_target, each `[B, P]`.
        spread: the difference that is enough, > 0.
    """
    if not 0 < spread < float("inf"):
        raise ValueError(f"spread must be positive and finite, got {spread}")
    if windows["ratio_input"].shape[1] < 2:
        return windows["ratio_input"].new_zeros(())
    i, j = _couples(windows)
    distances = [_distance(windows[f"ratio_{stream}"], i, j) for stream in ("input", "target")]
    return (torch.stack(distances) / spread).clamp(max=1).mean()


def onset_envelope(x: Tensor) -> Tensor:
    """`[..., C, W]` -> `[..., W − 1]`: rise of each channel from frame to frame, averaged over channels.

    On log-mel latents this is spectral flux on a logarithmic scale (S. Dixon, "Onset detection revisited", DAFx 2006).
    """
    return _wide(x).diff(dim=-1).relu().mean(-2)


def rhythm_matching(a: Tensor, b: Tensor) -> Tensor:
    """1 − Pearson correlation of the two windows' onset envelopes: 0 for equal rhythm, 1 for unrelated, at most 2.

    Args:
        a, b: windows of one shape `[..., C, W]`, W ≥ 3.
    """
    _same_shape(a=a, b=b)
    if a.dim() < 2 or a.shape[-1] < 3:
        raise ValueError(f"a and b must have shape [..., C, W] with W >= 3, got {list(a.shape)}")
    return 1 - _pearson(onset_envelope(a), onset_envelope(b)).mean()


def reconstruction_loss(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference of two tensors of one shape."""
    _same_shape(a=a, b=b)
    return (_wide(a) - _wide(b)).square().mean()


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
        rows = _wide(x).abs().reshape(1, -1, x.shape[-1])
        envelopes.append(F.adaptive_max_pool1d(rows, segments)[0])  # [rows, segments]
    return _pearson(*envelopes).square().mean()


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
    _same_shape(audio_a=audio_a, audio_b=audio_b)
    if not fft_sizes:
        raise ValueError("fft_sizes must name at least one FFT size, got none")
    samples, least = audio_a.shape[-1], max(fft_sizes) // 2 + 1
    if samples < least:
        raise ValueError(f"audio_a must have at least {least} samples for fft_sizes {tuple(fft_sizes)}, got {samples}")
    total = audio_a.new_zeros((), dtype=_wide(audio_a).dtype)
    for size in fft_sizes:
        a, b = (_magnitudes(_wide(x).reshape(-1, samples), size) for x in (audio_a, audio_b))
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
    _same_shape(a=a, b=b)
    if a.dim() < 2:
        raise ValueError(f"a and b must have shape [..., C, W], got {list(a.shape)}")
    frames = a.shape[-1]
    if not scales or min(scales) < 1 or max(scales) > frames:
        raise ValueError(f"scales must be one or more of 1 to {frames} frames, got {tuple(scales)}")
    difference = (_wide(a) - _wide(b)).reshape(-1, 1, frames)
    per_scale = [F.avg_pool1d(difference, scale, ceil_mode=True).abs().mean() for scale in scales]
    return torch.stack(per_scale).mean()
