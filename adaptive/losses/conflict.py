"""Do two windows clash when both are heard? Roughness of their pitch classes, differentiable.

    share      p_k = Σ_b w_kb max(0, m_b − m̄_b) / Σ_k Σ_b w_kb m_b        m = exp(1.7·latent), m̄ the mean of 9 bands
    conflict   100 · mean over frames of Σ_kl p_k r_(k−l) q_l

p_k, of one window, is the part of a frame's magnitude that stands out of its surroundings in pitch class k, averaged
over half a second; q of the other. r_k is the roughness of two tones k semitones apart, summed over their harmonics,
about its mean over the intervals (`interval_roughness`). So 0 is neutral: noise, drums and silence have equal shares,
which no interval tells apart, or none. Above 0 two windows are rougher together than chance, below 0 they are
consonant; 100 would be two pure sounds a semitone apart, and synthesized songs in keys a tritone apart have about 2.

Loudness does not matter, neither a window's nor a frame's: a share is a quotient within one frame, so that no window
gets out of a conflict by being quiet. Both windows transposed alike give the same value, for r knows intervals alone.

Sources: roughness of two partials by their distance over the critical band, R. Plomp and W. J. M. Levelt, "Tonal
consonance and critical bandwidth", JASA 38 (1965); its formula and the sum over harmonics, W. A. Sethares, "Local
consonance and the relationship between timbre and scale", JASA 94 (1993).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .composing import slow
from .harmony import CLASSES, NEIGHBOURS, SMOOTHING
from .signals import same_shape, wide

HARMONICS, DECAY = 6, 0.88  # of a tone: amplitudes DECAY^h, as in Sethares' figures
LOWEST_TONE = 261.63  # Hz, C4: roughness is averaged over the octave of tones from there, where chords and melodies lie
UNIT = 1.7  # nepers of magnitude in one unit of a latent (`audio.mel.SPREAD`)
DECIBELS = 20 / math.log(10)  # in a neper
LOUDNESS = 1.0  # percent of conflict that a change of 1 dB costs


def interval_roughness() -> Tensor:
    """`[12]`, float64: roughness of two tones that many semitones apart, about the mean of all; a semitone's is 1.

    Every partial of the one with every partial of the other, at f and g Hz with amplitudes a and b:

        d = min(a, b) · (exp(−3.5·s·|f − g|) − exp(−5.75·s·|f − g|)),   s = 0.24 / (0.021·min(f, g) + 19)

    The mean of an interval and its inversion, which pitch classes do not tell apart, and of 12 lower tones.
    """
    steps = torch.arange(CLASSES, dtype=torch.float64)
    partial = torch.arange(1, HARMONICS + 1, dtype=torch.float64)
    level = DECAY ** (partial - 1)
    tone = LOWEST_TONE * 2 ** (steps / CLASSES)
    up = 2 ** (torch.stack([steps, CLASSES - steps]) / CLASSES)  # [2, 12]
    f = tone[:, None, None, None, None] * partial[:, None]  # [tones, 1, 1, partials, 1]
    g = tone[:, None, None, None, None] * up[..., None, None] * partial  # [tones, 2, 12, 1, partials]
    apart = 0.24 / (0.021 * torch.minimum(f, g) + 19) * (f - g).abs()
    rough = torch.minimum(level[:, None], level) * ((-3.5 * apart).exp() - (-5.75 * apart).exp())
    found = rough.sum((-1, -2)).mean((0, 1))
    found = found - found.mean()
    return found / found[1]


def class_roughness() -> Tensor:
    """`[12, 12]`, float64: `interval_roughness` of every pitch class with every other."""
    classes = torch.arange(CLASSES)
    return interval_roughness()[(classes[:, None] - classes) % CLASSES]


def tonal_shares(latents: Tensor, classes: Tensor, smoothing: int = SMOOTHING) -> Tensor:
    """What part of each frame stands out in every pitch class: `[..., C, W]` to `[..., 12, W]`, in [0, 1].

    Args:
        latents: log-mel, the natural log of magnitudes over 1.7; a constant added to a frame changes nothing.
        classes: `[12, C]`, of `pitch_classes`.
        smoothing: frames over which shares are averaged, odd.
    """
    if latents.shape[-2] != classes.shape[1]:
        raise ValueError(f"latents must have {classes.shape[1]} bands, as classes has, got {latents.shape[-2]}")
    frames = wide(latents).transpose(-1, -2)  # [..., W, C]
    weight = classes.to(frames).T
    level = (UNIT * (frames - frames.amax(-1, keepdim=True).detach())).exp()  # the largest is 1: nothing overflows
    flat = level.reshape(1, -1, level.shape[-1])
    around = F.avg_pool1d(flat, NEIGHBOURS, 1, NEIGHBOURS // 2, count_include_pad=False).reshape(level.shape)
    whole = (level @ weight).sum(-1, keepdim=True)
    share = ((level - around).relu() @ weight) / whole.clamp(min=torch.finfo(whole.dtype).tiny)
    return slow(share.transpose(-1, -2), smoothing)


def harmonic_conflict(
    a: Tensor, b: Tensor, classes: Tensor, smoothing: int = SMOOTHING, roughness: Tensor | None = None
) -> Tensor:
    """Conflict of log-mel windows `[..., C, W]` of one shape, in percent: `[...]`.

    Args:
        a, b: the windows.
        classes, smoothing: as `tonal_shares`.
        roughness: `[12, 12]`, `class_roughness` on the windows' device; None makes it, and waits until it is there.
    """
    same_shape(a=a, b=b)
    p, q = (tonal_shares(x, classes, smoothing) for x in (a, b))
    rough = class_roughness() if roughness is None else roughness
    return 100 * (p * (rough.to(p) @ q)).sum(-2).mean(-1)


def loudness_change(a: Tensor, b: Tensor, tilt: Tensor | None = None) -> Tensor:
    """|power of a's frames − power of b's| in dB, the mean over frames: `[...]`.

    Args:
        a, b: log-mel windows `[..., C, W]` of one shape.
        tilt: `[C]`, nepers that standardizing took from each band; None for none.
    """
    same_shape(a=a, b=b)
    back = 0.0 if tilt is None else tilt.to(wide(a))[:, None]
    levels = [DECIBELS / 2 * torch.logsumexp(2 * (UNIT * wide(x) + back), -2) for x in (a, b)]
    return (levels[0] - levels[1]).abs().mean(-1)


def harmonic_alignment(
    heard: tuple[Tensor, Tensor],
    source: tuple[Tensor, Tensor],
    classes: Tensor,
    smoothing: int = SMOOTHING,
    tilt: Tensor | None = None,
    roughness: Tensor | None = None,
) -> Tensor:
    """How far two transformed windows are from what they should be: without conflict, and else as they were.

        |conflict(heard) − min(0, conflict(source))| + change of loudness in dB,   the mean over pairs

    Conflict goes to 0, neutral; what was consonant stays as it was, so that no drone that both windows share pays; and
    loudness, of which conflict knows nothing, stays too.

    Args:
        heard: a pair's two windows, transformed, log-mel `[..., C, W]`.
        source: the same windows before.
        classes, smoothing, roughness: as `harmonic_conflict`.
        tilt: as `loudness_change`.

    Returns:
        0-dim, ≥ 0.
    """
    wanted = harmonic_conflict(*source, classes, smoothing, roughness).clamp(max=0)
    conflict = harmonic_conflict(*heard, classes, smoothing, roughness)
    loudness = torch.stack([loudness_change(a, b, tilt) for a, b in zip(heard, source, strict=True)])
    return (conflict - wanted).abs().mean() + LOUDNESS * loudness.mean()
