"""Are two windows in the same tempo? Compared by the lags at which their onsets repeat, not by the onsets themselves.

Two drum patterns at one tempo correlate only if their beats fall together, and their correlation has a peak as narrow
as a hit at every shift of a beat: no gradient finds a tempo there. The autocorrelation of an onset envelope knows
nothing of phase; and on a logarithmic axis of lags, compressing a window by r moves it by log r as a whole. So the
ratio between two tempos is a shift between two curves, smooth ones if they are blurred.

Source of the autocorrelation of an onset envelope as a description of tempo: D. P. W. Ellis, "Beat tracking by dynamic
programming", Journal of New Music Research 36 (2007). A logarithmic lag axis on which a change of tempo is a shift:
J. H. Jensen, M. G. Christensen, S. H. Jensen, "A tempo-insensitive representation of rhythmic patterns", EUSIPCO 2009.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .signals import pearson, same_shape, wide

LAGS_SECONDS = (0.16, 3.8)  # of the pattern: from a sixteenth to a bar or two
LAGS = (8.0, 190.0)  # the same in frames, at 50 frames/s
WIDE_BLUR, FINE_BLUR = 0.12, 0.01  # of log lag: the first level of a search, and the last
GRID = 0.02  # of log lag
LAG_SPREAD = 0.5  # frames: a lag's own width, so that whole lags join to a smooth curve
EDGE = 8.0  # frames over which a window fades in and out
POWER_FLOOR = 1e-8  # of an envelope: where nothing begins there is no rhythm


def onset_envelope(x: Tensor) -> Tensor:
    """`[..., C, W]` -> `[..., W − 1]`: rise of each channel from frame to frame, averaged over channels.

    On log-mel latents this is spectral flux on a logarithmic scale (S. Dixon, "Onset detection revisited", DAFx 2006).
    """
    return wide(x).diff(dim=-1).relu().mean(-2)


def rhythm_matching(a: Tensor, b: Tensor) -> Tensor:
    """1 − Pearson correlation of the two windows' onset envelopes: 0 for equal rhythm, 1 for unrelated, at most 2.

    Args:
        a, b: windows of one shape `[..., C, W]`, W ≥ 3.
    """
    same_shape(a=a, b=b)
    if a.dim() < 2 or a.shape[-1] < 3:
        raise ValueError(f"a and b must have shape [..., C, W] with W >= 3, got {list(a.shape)}")
    return 1 - pearson(onset_envelope(a), onset_envelope(b)).mean()


def annealed_rhythm_blur(progress: float, first: float = WIDE_BLUR, last: float = FINE_BLUR) -> float:
    """Blur of log lag at that share of a search or a run, 0 to 1: falls from `first` to `last` by equal factors."""
    return first * (last / first) ** min(1.0, max(0.0, progress))


def rhythm_profile(
    x: Tensor,
    start: Tensor,
    ratio: Tensor,
    window_frames: int,
    *,
    blur: float = FINE_BLUR,
    lags: tuple[float, float] = LAGS,
) -> Tensor:
    """How strongly each window's onsets repeat after each lag, on a logarithmic axis of lags *in the pattern's time*.

        e(t)     onset envelope of the clip, about its mean in the window, times m(t); m is 1 inside the window,
                 0 outside, with soft edges of 8 frames
        a(ℓ)     Σ e(t)·e(t + ℓ) / Σ m(t)·m(t + ℓ), over the same at ℓ = 0
        A(g)     Σ_ℓ w·a(ℓ) / Σ_ℓ w,   w = exp(−(log ℓ − g − log ratio)² / 2s²) / ℓ,   s² = blur² + (½/ℓ)²

    for g from log of the shortest lag to log of the longest in steps of 0.02. Differentiable in x, start and ratio:
    ratio by the shift of the axis, and both by what the window holds.

    Args:
        x: clips `[B, C, T]`.
        start, ratio: `[B, P]`, windows inside the clip.
        window_frames: W.
        blur: of log lag, > 0.
        lags: shortest and longest lag of the pattern, frames; 1 ≤ shortest < longest ≤ W/2.

    Returns:
        `[B, P, G]`, about −1 to 1; never 16-bit.
    """
    check_lags(lags, window_frames)
    if not 0 < blur < math.inf:
        raise ValueError(f"blur must be positive and finite, got {blur}")
    # a window inside the clip has a ratio of at most T/W, hence no lag beyond this
    most = math.ceil(lags[1] * x.shape[2] / window_frames * 1.1)
    repeats = onset_repeats(x, start, start + ratio * window_frames, most)
    return on_log_axis(repeats, ratio.to(repeats.dtype).log(), blur, lags)


def check_lags(lags: tuple[float, float], window_frames: int) -> None:
    shortest, longest = lags
    if not 1 <= shortest < longest <= window_frames / 2:
        raise ValueError(f"lags must be 1 <= shortest < longest <= window_frames / 2 = {window_frames / 2}, got {lags}")


def onset_repeats(x: Tensor, begin: Tensor, end: Tensor, most: int) -> Tensor:
    """a(1), a(2), ... of `rhythm_profile` for what lies between two places `[B, P]` of clips, at most `most` lags."""
    envelope = onset_envelope(x)  # [B, T − 1]
    frames = envelope.shape[1]
    time = torch.arange(1, frames + 1, dtype=envelope.dtype, device=x.device)  # where the rise ends
    begin, end = (place.to(envelope.dtype)[..., None] for place in (begin, end))  # [B, P, 1]
    mask = torch.sigmoid((time - begin) * (4 / EDGE)) * torch.sigmoid((end - time) * (4 / EDGE))  # [B, P, T − 1]
    mean = (mask * envelope[:, None]).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True)
    signal = (envelope[:, None] - mean) * mask
    products, overlaps = (_autocorrelation(z, min(most, frames - 1)) for z in (signal, mask))
    level = products[..., :1] / overlaps[..., :1] + POWER_FLOOR
    return (products / overlaps.clamp(min=1.0) / level)[..., 1:]


def on_log_axis(repeats: Tensor, shift: Tensor, blur: float, lags: tuple[float, float]) -> Tensor:
    """A(g) of `rhythm_profile`, `[B, P, G]`: autocorrelations `[B, P, lags]` read at exp(g + shift), shift `[B, P]`."""
    lag = torch.arange(1, repeats.shape[-1] + 1, dtype=repeats.dtype, device=repeats.device)
    count = round(math.log(lags[1] / lags[0]) / GRID) + 1
    grid = math.log(lags[0]) + GRID * torch.arange(count, dtype=repeats.dtype, device=repeats.device)
    centre = grid + shift[..., None]  # [B, P, G]
    spread = (blur**2 + (LAG_SPREAD / centre.exp()).square())[..., None]
    weight = torch.exp(-0.5 * (lag.log() - centre[..., None]).square() / spread) / lag  # [B, P, G, lags]
    read = torch.matmul(weight, repeats[..., None]).squeeze(-1)
    return read / (weight.sum(-1) + torch.finfo(weight.dtype).tiny)


def _autocorrelation(x: Tensor, most: int) -> Tensor:
    """Σ_t x(t)·x(t + ℓ) for ℓ = 0 ... most."""
    size = 2 ** math.ceil(math.log2(x.shape[-1] + most + 1))
    spectrum = torch.fft.rfft(x, size)
    return torch.fft.irfft(spectrum.real.square() + spectrum.imag.square(), size)[..., : most + 1]


def tempo_matching(
    x: Tensor,
    y: Tensor,
    windows: dict[str, Tensor],
    window_frames: int,
    *,
    blur: float = FINE_BLUR,
    lags: tuple[float, float] = LAGS,
) -> Tensor:
    """1 − Pearson correlation of the rhythm profiles of every pair's two windows: 0 for one rhythm, at most 2.

    Args:
        x, y: input and target clips, `[B, C, T]`.
        windows: `metadata["windows"]`: start_input, ratio_input, start_target, ratio_target, each `[B, P]`.
        window_frames, blur, lags: as `rhythm_profile`.

    Returns:
        The mean over pairs and samples, 0-dim.
    """
    profiles = [
        rhythm_profile(clip, windows[f"start_{name}"], windows[f"ratio_{name}"], window_frames, blur=blur, lags=lags)
        for clip, name in ((x, "input"), (y, "target"))
    ]
    return 1 - pearson(*profiles).mean()
