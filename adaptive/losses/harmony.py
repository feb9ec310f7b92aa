"""Which pitch classes sound: chroma of log-mel latents, differentiable.

Source of pitch-class profiles as what harmony is compared by: T. Fujishima, "Realtime chord recognition of musical
sound", ICMC 1999; smoothed and normalized before they are compared: M. Müller, F. Kurth, M. Clausen, "Audio matching
via chroma-based statistical features", ISMIR 2005.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .composing import slow
from .signals import cosine, same_shape, wide

CLASSES = 12
LOWEST, HIGHEST = 180.0, 2500.0  # Hz: below, bands are wider than a semitone; above, harmonics are dense
NEIGHBOURS = 9  # bands whose mean a peak stands out of
SMOOTHING = 25  # frames over which profiles are averaged: half a second at 50 frames/s
FLOOR = 0.05  # of a profile's sum: where nothing stands out there is no harmony
REFERENCE = 440.0


def pitch_classes(centres: Tensor) -> Tensor:
    """`[12, bands]`: how much each band counts for each class, by its centre in Hz; every class counts alike.

    A band gives to the two semitones beside its centre, linearly; those outside 180 Hz to 2.5 kHz give nothing.
    """
    used = (centres >= LOWEST) & (centres <= HIGHEST)
    semitone = 12 * torch.log2(centres.clamp(min=1.0) / REFERENCE)
    distance = (semitone - torch.arange(CLASSES, dtype=centres.dtype, device=centres.device)[:, None] + 6) % 12 - 6
    weight = (1 - distance.abs()).relu() * used
    return weight / weight.sum(1, keepdim=True)


def chroma(latents: Tensor, classes: Tensor, smoothing: int = SMOOTHING) -> Tensor:
    """Pitch-class profiles `[..., 12, W]` of log-mel latents `[..., C, W]`, about their mean over the classes.

    What of a band stands out of the mean of the 9 around it counts, so that neither loudness nor a tilted spectrum
    does; averaged over `smoothing` frames; a profile sums to 1 before its mean is taken away. A flat spectrum and
    silence give 0.

    Args:
        latents: log-mel, `[..., C, W]`.
        classes: `[12, C]`, of `pitch_classes`.
        smoothing: frames, odd.
    """
    if latents.shape[-2] != classes.shape[1]:
        raise ValueError(f"latents must have {classes.shape[1]} bands, as classes has, got {latents.shape[-2]}")
    frames = wide(latents).transpose(-1, -2)  # [..., W, C]
    flat = frames.reshape(1, -1, frames.shape[-1])
    local = F.avg_pool1d(flat, NEIGHBOURS, 1, NEIGHBOURS // 2, count_include_pad=False)
    profile = ((flat - local).relu() @ classes.to(flat).T).reshape(*frames.shape[:-1], CLASSES).transpose(-1, -2)
    profile = slow(profile, smoothing)
    profile = profile / (profile.sum(-2, keepdim=True) + FLOOR)
    return profile - profile.mean(-2, keepdim=True)


def harmony_likeness(a: Tensor, b: Tensor, classes: Tensor, smoothing: int = SMOOTHING) -> Tensor:
    """Correlation of the pitch-class profiles of two windows `[..., C, W]`, over classes and frames: `[...]`."""
    same_shape(a=a, b=b)
    return cosine(*(chroma(x, classes, smoothing).flatten(-2) for x in (a, b)))


def harmony_matching(a: Tensor, b: Tensor, classes: Tensor, smoothing: int = SMOOTHING) -> Tensor:
    """1 − that correlation: 0 for one harmony, about 1 for unrelated ones, at most 2."""
    return 1 - harmony_likeness(a, b, classes, smoothing).mean()
