"""What two windows are compared by: features of latents, their correlation, and the score that means a match."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from adaptive_window.kernels.reference import compute_dtype
from adaptive_window.kernels.validation import check_tensor

from ..model.validation import check_count

FEATURES = ("latent", "energy", "difference")
MATCH_SCORE = {"latent": 0.2, "energy": 0.2, "difference": 0.15, "rhythm": 0.45}
"""Score from where on windows of 800 frames or more match (`match_threshold` for shorter ones), by features; error
rates: `python benchmarks/recovery.py`, and of rhythm `python benchmarks/rhythm.py`."""
MEASURED_FRAMES = 800
BANDS = 32  # channels are averaged to so many; fewer are left as they are
SPREAD_FLOOR = 0.01  # of the mean spread of all bands: a band that hardly moves counts little, instead of as noise
ROUNDING = 16  # units in a band's last place: what moves less is constant (silence), and no content
COVARIANCE_FLOOR = 0.1  # of the mean variance of the bands: directions in which hardly anything moves count less
VARIANCE_FLOOR = 1e-12  # under a correlation: a constant window correlates with nothing


def check_features(features: object) -> None:
    if not isinstance(features, str):
        raise TypeError(f"features must be one of {', '.join(map(repr, FEATURES))}, got {type(features).__name__}")
    if features not in FEATURES:
        raise ValueError(f"features must be one of {', '.join(map(repr, FEATURES))}, got {features!r}")


def match_threshold(features: str, window_frames: int) -> float:
    """The score from where on two windows of W frames match: `MATCH_SCORE`, times √(800/W) for shorter windows.

    Correlations of unrelated signals spread as 1/√W. Rhythm has profiles of one length, whatever W.
    """
    if features == "rhythm":
        return MATCH_SCORE[features]
    check_features(features)
    check_count("window_frames", window_frames, least=2)
    return min(1.0, MATCH_SCORE[features] * max(1.0, math.sqrt(MEASURED_FRAMES / window_frames)))


def match_features(x: Tensor, features: str = "latent") -> Tensor:
    """Latents `[B, C, T]` as what a search compares, `[B, min(C, 32), T]`, float32 (float64 for float64).

    "latent"      mean of neighbouring channels
    "energy"      log of the mean square of neighbouring channels, each about its own mean in time
    "difference"  mean of |z[t + 1] − z[t − 1]| over neighbouring channels (ends repeated)

    and each band then over its own mean and spread in time, so that gain and equalization cancel (where latents are
    logarithms of magnitudes, as the mel codec's) and every band counts alike. Latents that are white in time (see
    `lag_one_autocorrelation`) have nothing that a blur leaves over; their energy and difference follow the loudness.
    """
    check_features(features)
    z = x.detach().to(compute_dtype(x.dtype))
    if features == "energy":  # of the fluctuation: a channel's offset would leave the square linear in it
        z = (z - z.mean(-1, keepdim=True)).square()
    elif features == "difference":
        z = F.pad(z, (1, 1), mode="replicate")
        z = (z[..., 2:] - z[..., :-2]).abs()
    bands = F.adaptive_avg_pool1d(z.transpose(1, 2), min(BANDS, z.shape[1])).transpose(1, 2)
    if features == "energy":
        bands = (bands + torch.finfo(bands.dtype).tiny).log()
    spread = bands.std(-1, keepdim=True, correction=0)
    floor = SPREAD_FLOOR * spread.mean(1, keepdim=True) + torch.finfo(bands.dtype).tiny
    rounding = ROUNDING * torch.finfo(bands.dtype).eps * bands.abs().amax(-1, keepdim=True)
    centred = (bands - bands.mean(-1, keepdim=True)).masked_fill(spread <= rounding, 0)  # NaN stays NaN
    return (centred / (spread + floor)).contiguous()


def lag_one_autocorrelation(x: Tensor) -> Tensor:
    """Mean over channels of Σ z[t]·z[t + 1] / Σ z[t]², z = x less its mean in time: `[B, C, T]` -> `[B]`.

    Near 1 where latents are smooth in time, 0 where they are white: then neighbouring frames say nothing of each other,
    and a search on the latents themselves has no slope to follow.
    """
    check_tensor("x", x, "B, C, T")
    if x.shape[-1] < 3:
        raise ValueError(f"x must have at least 3 frames, got shape {list(x.shape)}")
    z = x.detach().to(compute_dtype(x.dtype))
    z = z - z.mean(-1, keepdim=True)
    power = z.square().sum(-1) + torch.finfo(z.dtype).tiny
    return ((z[..., 1:] * z[..., :-1]).sum(-1) / power).mean(1)


def unit_windows(windows: Tensor) -> Tensor:
    """`[..., F, W]`: every band less its mean in the window, the whole of unit norm. The dot product of two such
    windows is their correlation."""
    centred = windows - windows.mean(-1, keepdim=True)
    return centred * (centred.square().sum((-2, -1), keepdim=True) + VARIANCE_FLOOR).rsqrt()


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Correlation over time and bands of windows `[..., F, W]`, each band about its own mean: in [−1, 1]."""
    return (unit_windows(a) * unit_windows(b)).sum((-2, -1))


def match_score(a: Tensor, b: Tensor) -> Tensor:
    """How alike two windows `[..., F, W]` are beyond what any music has in common: `[...]`, in [−1, 1].

        Σ_t a(t)ᵀ C⁻¹ b(t) / √(Σ_t a(t)ᵀ C⁻¹ a(t) · Σ_t b(t)ᵀ C⁻¹ b(t))

    with each band about its own mean in the window, and C the mean of both windows' covariances of bands plus a tenth
    of their mean variance on the diagonal: the correlation of whitened bands. What moves all bands together (a beat)
    carries most of the plain correlation of unrelated music of like tempo; here it is one direction among many.
    """
    a, b = (v - v.mean(-1, keepdim=True) for v in torch.broadcast_tensors(a, b))
    covariance = (a @ a.transpose(-1, -2) + b @ b.transpose(-1, -2)) / (2 * a.shape[-1])
    variance = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None] * COVARIANCE_FLOOR + VARIANCE_FLOOR
    bands = torch.eye(a.shape[-2], dtype=a.dtype, device=a.device)
    root = torch.linalg.cholesky_ex(covariance + variance * bands)[0]  # _ex: does not wait for the device
    return correlation(*(torch.linalg.solve_triangular(root, v, upper=False) for v in (a, b)))
