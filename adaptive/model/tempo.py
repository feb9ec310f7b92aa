"""How much slower one clip is than another, by the lags at which their onsets repeat.

Two rhythms fit each other at the right ratio, at its double and at its half, and often better at a wrong one: a song
whose snare is on two repeats like one of half its tempo. So each clip is also asked alone where its beat is, and the
ratio is the one at which both have one: a beat repeats at its half, at itself, at two and at four, and is rather near
110 a minute than far from it. Log-normal, as where people tap: D. Moelants, "Preferred tempo reconsidered", ICMPC 2002;
combs of lags under such a weight: A. P. Klapuri, A. J. Eronen, J. T. Astola, "Analysis of the meter of acoustic musical
signals", IEEE TASLP 14 (2006).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..losses.rhythm import GRID, on_log_axis, onset_repeats
from ..losses.signals import centred

LAGS_SECONDS = 0.16, 7.0  # lags of rhythm: bars beyond the first tell a tempo from its double
BLUR = 0.03  # of log lag
FLOOR = 1e-3  # power of a rhythm profile under the correlation: noise repeats nowhere
BEAT_COMB = ((0.5, 0.4), (1.0, 0.2), (2.0, 0.2), (4.0, 0.2))  # lag in beats, its share of what a beat is
USUAL_BPM, BPM_SPREAD = 110.0, 0.22  # the latter of log tempo
EVIDENCE = 20.0  # log odds of a beat that repeats exactly over one that does not
BELIEF = 0.5  # what a unit of log odds of the beats counts beside the correlation of the profiles
REACH = 2  # steps of log ratio around the best that are averaged
FOUND, DOUBT = 0.06, 0.004  # beat at which a tempo counts half, and over which that changes


def tempo_ratio(
    x: Tensor, y: Tensor, *, limit: float, frame_rate: float, sharpness: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Log of how much slower x is than y, within ±`limit`, and how clear the beat of the less clear one is: `[B]` each.

        P(g)       rhythm profiles (`losses.rhythm`), of the lower and the upper half of the channels
        fit(k)     correlation of P_y(g) with P_x(g + k)
        beat(g)    Σ share · P(g + log lag) over `BEAT_COMB`, P averaged over both halves
        odds(k)    log Σ_g exp(e_y(g) + e_x(g + k)),  e(g) = EVIDENCE · beat(g) − (g − log usual)² / (2 · spread²)
        tempo      mean of k around the best of fit + BELIEF · (odds − log Σ exp odds), by softmax of sharpness times it

    and 0 as far as one of the clips has no beat: the greatest beat(g) is at most 0.03 in white noise, from 0.1 on in
    nearly all songs. Differentiable in both clips and `sharpness`; nothing waits for the device.

    Args:
        x, y: clips `[B, C, T]`, C ≥ 2.
        limit: of |log ratio|, ≥ 0; below one step of 0.02, or in clips too short for rhythm, the answer is 0.
        frame_rate: frames per second.
        sharpness: of the softmax around the best, per unit of correlation.
    """
    shortest, longest = (seconds * frame_rate for seconds in LAGS_SECONDS)
    lags = max(1.0, shortest), min(longest, x.shape[2] / 3)
    if limit < GRID or lags[1] < 2 * lags[0]:
        return x.new_zeros(len(x)), x.new_zeros(len(x))
    most = math.floor(limit / GRID)  # steps of log ratio to either side
    profiles = [_profile(clip, lags, most * GRID) for clip in (x, y)]  # [B, halves, G + 2·most]
    fit = _fit(profiles[0], profiles[1][..., most:-most])  # [B, K]
    beats = [_beat(profile.mean(1)) for profile in profiles]  # [B, G + 2·most]
    begin = math.log(lags[0]) - most * GRID
    grid = begin + GRID * torch.arange(beats[0].shape[1], dtype=x.dtype, device=x.device)
    usual = -0.5 * ((grid - math.log(60 / USUAL_BPM * frame_rate)) / BPM_SPREAD).square()
    belief_x, belief_y = (EVIDENCE * beat + usual for beat in beats)
    belief_y = belief_y[:, None, most:-most]
    odds = torch.logsumexp(belief_x.unfold(1, belief_y.shape[2], 1) + belief_y, 2)  # [B, K]
    scores = fit + BELIEF * odds.log_softmax(1)
    steps = torch.arange(-most, most + 1, dtype=x.dtype, device=x.device)
    best = scores.detach().argmax(1, keepdim=True)
    near = (steps - (best - most)).abs() <= REACH
    weight = torch.where(near, sharpness * scores, -math.inf).softmax(1)
    beat = torch.minimum(*(beat.amax(1) for beat in beats))
    return GRID * (weight * steps).sum(1) * torch.sigmoid((beat - FOUND) / DOUBT), beat


def _profile(clip: Tensor, lags: tuple[float, float], reach: float) -> Tensor:
    """Rhythm profiles of both halves of the channels of a clip, `[B, 2, G]`, the lags wider by `reach` at each end.

    Low and high apart, since hats repeat twice as often as drums: together they take a tempo for its double.
    """
    lags = lags[0] * math.exp(-reach), lags[1] * math.exp(reach)
    begin = clip.new_zeros(len(clip), 1)
    halves = [
        onset_repeats(half, begin, begin + clip.shape[2], math.ceil(1.1 * lags[1]))  # [B, 1, lags]
        for half in clip.chunk(2, 1)
    ]
    return torch.cat([on_log_axis(half, begin, BLUR, lags) for half in halves], 1)


def _fit(profile_x: Tensor, profile_y: Tensor) -> Tensor:
    """Correlation of y's profile `[B, 2, G]` with x's at each shift, `[B, K]`; about 0 where either is flat."""
    shifted = centred(profile_x.unfold(2, profile_y.shape[2], 1))  # [B, 2, K, G]
    wanted = centred(profile_y)[:, :, None]
    power = (shifted.square().mean((1, 3)) + FLOOR) * (wanted.square().mean((1, 3)) + FLOOR)
    return (shifted * wanted).mean((1, 3)) * power.rsqrt()


def _beat(profile: Tensor) -> Tensor:
    """How much of a beat each lag of a profile `[B, G]` is; lags beyond its ends repeat nothing."""
    size = profile.shape[1]
    total = torch.zeros_like(profile)
    for lag, share in BEAT_COMB:
        move = round(math.log(lag) / GRID)
        there = profile[:, max(0, move) : max(0, size + min(0, move))]
        total = total + share * F.pad(there, (min(size, max(0, -move)), min(size, max(0, move))))
    return total
