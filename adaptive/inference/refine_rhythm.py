"""Windows in one tempo, on the same beat: the search that `refine_windows` makes of rhythm.

The melody and the drums of two songs may have nothing in common and still fit each other, once one is compressed to the
other's tempo and begins on its beat. Tempo and beat are found in turn: the ratio by the gradient of what repeats in
each (`losses.rhythm`), from several starts, and the beat by trying every frame.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from adaptive_window.kernels import resample_windows
from adaptive_window.kernels.reference import compute_dtype, without_autocast

from ..losses.rhythm import (
    LAGS,
    annealed_rhythm_blur,
    check_lags,
    on_log_axis,
    onset_envelope,
    onset_repeats,
    rhythm_profile,
)
from ..losses.scale_space import gaussian_blur
from ..losses.signals import pearson
from ..model.selector import windows_from_logits
from .refine_arguments import check_search, check_signals, given_windows

LEARNING_RATE, BETAS = 0.05, (0.9, 0.99)  # of Adam, on logits
BEAT_BLUR = 1.5  # frames of blur of onset envelopes: players are not exact, and onsets fall between frames
FINE_STEPS, FINE_STEP = 6, 1e-3  # ratios tried to either side on the beat, and their relative distance
SCAN = (0.45, 2.2)  # ratios of the tempo scan, over an octave to either side
SCAN_STEP, SCAN_BLUR = 0.01, 0.02  # of log ratio and log lag
MARGIN = 0.1  # of score, by which a ratio out of range has to be better than any in range


def lags_of(window_frames: int) -> tuple[float, float]:
    """Lags to compare in windows of that length: 8 to 190 frames, in short ones what fits into them often."""
    return max(1.0, min(LAGS[0], window_frames / 16)), min(LAGS[1], window_frames / 4)


def refine_rhythm(
    x: Tensor,
    y: Tensor,
    window_frames: int,
    *,
    start_x: float | Tensor | None = None,
    ratio_x: float | Tensor | None = None,
    start_y: float | Tensor | None = None,
    ratio_y: float | Tensor | None = None,
    restarts: int = 4,
    steps: int = 100,
    max_ratio: float = 1.5,
    lags: tuple[float, float] = LAGS,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """The window of every x that has the tempo of y's window, beginning where their onsets fall together.

    The correlation of both windows' rhythm profiles is raised over start and ratio by `steps` steps of Adam, while the
    blur of the lag axis falls from 0.12 to 0.01, from `restarts` ratios; the best is taken. Of all frames to begin at,
    and of ratios within 0.6 % of that one, those are taken whose onset envelopes correlate most: over 16 s, beats tell
    a ratio to a part in a thousand. Nothing is random.

    Args:
        x: latents, `[B, C, T]`, T ≥ W.
        y: latents, `[B, C, T']`, dtype and device of x; may be W frames long.
        window_frames: W.
        start_x, ratio_x: a first guess, both or neither, numbers or `[B]`; one of the `restarts`.
        start_y, ratio_y: y's window (by default start 0, ratio 1), numbers or `[B]`.
        restarts: ratios from which the gradient starts, ≥ 1, evenly over what is allowed.
        steps: of the gradient, ≥ 1.
        max_ratio: the largest ratio that is sought, ≥ 1. `tempo_scan` tells of tempos that need another.
        lags: shortest and longest lag of the pattern that is compared, in frames.
        backend: as `adaptive_window.kernels.resample_windows`.

    Returns:
        (start, ratio, score), each `[B]`: score is the correlation of the rhythm profiles, in [−1, 1];
        `matching.MATCH_SCORE["rhythm"]` says from where on it means one tempo.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    check_signals(x, y, window_frames, ("x",))
    check_search(restarts, steps, 1, 0.0, max_ratio, backend)
    check_lags(lags, window_frames)
    with torch.inference_mode(False), torch.enable_grad(), without_autocast(x.device.type):
        guess = given_windows("x", x, start_x, ratio_x, window_frames, moved=True)
        of_y = given_windows("y", y, start_y, ratio_y, window_frames, moved=False)
        assert of_y is not None  # a signal that stays has a window; for type checkers
        dtype = compute_dtype(x.dtype)
        x, y = x.detach().to(dtype, copy=True), y.detach().to(dtype, copy=True)

        def logits_of(unit: Tensor) -> Tensor:
            return torch.logit(unit.clamp(0.01, 0.99))

        places = (torch.arange(restarts, dtype=dtype, device=x.device) + 0.5) / restarts
        free = torch.stack((logits_of(places), torch.zeros_like(places)), -1).repeat(len(x), 1, 1)  # [B, R, 2]
        longer = min((max_ratio - 1) * window_frames, x.shape[2] - window_frames)
        if guess is not None:
            room = (x.shape[2] - guess.ratio * window_frames).clamp(min=1.0)
            free[:, 0, 0] = logits_of((guess.ratio - 1) * window_frames / max(longer, 1e-6))[:, 0]
            free[:, 0, 1] = logits_of(guess.start / room)[:, 0]
        free.requires_grad_()

        def windows() -> tuple[Tensor, Tensor]:
            ratio, start = free.unbind(-1)
            logits = torch.stack((start, start, ratio, ratio, start), -1).flatten(1)
            found = windows_from_logits(logits, x.shape[2], window_frames, max_ratio)
            return found["start_input"], found["ratio_input"]

        adam = torch.optim.Adam([free], lr=LEARNING_RATE, betas=BETAS)
        for step in range(steps):
            blur = annealed_rhythm_blur((step + 1) / steps)
            with torch.no_grad():
                wanted = rhythm_profile(y, of_y.start, of_y.ratio, window_frames, blur=blur, lags=lags)  # [B, 1, G]
            profile = rhythm_profile(x, *windows(), window_frames, blur=blur, lags=lags)  # [B, R, G]
            (free.grad,) = torch.autograd.grad(-pearson(profile, wanted).sum(), free)
            adam.step()
        with torch.no_grad():
            start, ratio = windows()
            scores = pearson(rhythm_profile(x, start, ratio, window_frames, lags=lags), wanted)  # [B, R]
            ratio = ratio.gather(1, scores.argmax(1, keepdim=True))  # [B, 1]
            envelope = _beats(y, of_y.start, of_y.ratio, window_frames, backend)
            start, ratio = _on_the_beat(x, envelope, ratio, longer, window_frames, backend)
            score = pearson(rhythm_profile(x, start, ratio, window_frames, lags=lags), wanted)
    return start[:, 0], ratio[:, 0], score[:, 0]


def _beats(x: Tensor, start: Tensor, ratio: Tensor, window_frames: int, backend: str) -> Tensor:
    """Onset envelopes of windows `[B, N]`, `[B, N, W]`, about their mean and of unit power."""
    envelope = gaussian_blur(onset_envelope(x), BEAT_BLUR)[:, None]  # [B, 1, T − 1]; frame i is the rise to i + 1
    cut = resample_windows(envelope, start - 1, ratio, window_frames, backend=backend)[:, :, 0]
    cut = cut - cut.mean(-1, keepdim=True)
    return cut / (cut.square().sum(-1, keepdim=True) + torch.finfo(cut.dtype).tiny).sqrt()


def _on_the_beat(
    x: Tensor, beats: Tensor, ratio: Tensor, longer: float, window_frames: int, backend: str
) -> tuple[Tensor, Tensor]:
    """Start and ratio `[B, 1]`, near the given one, at which x's onsets correlate most with `beats [B, 1, W]`."""
    near = 1 + FINE_STEP * torch.arange(-FINE_STEPS, FINE_STEPS + 1, dtype=x.dtype, device=x.device)
    ratios = (ratio * near).clamp(1, 1 + longer / window_frames)  # [B, N]
    starts = torch.arange(x.shape[2] - window_frames + 1, dtype=x.dtype, device=x.device)
    scores = []
    for k in range(len(near)):
        places = torch.minimum(starts, x.shape[2] - ratios[:, k : k + 1] * window_frames).clamp(min=0)
        cut = _beats(x, places, ratios[:, k : k + 1].expand_as(places), window_frames, backend)
        scores.append((cut * beats).sum(-1))
    best = torch.cat(scores, 1).argmax(1, keepdim=True)  # [B, 1], ratio after ratio
    ratio = ratios.gather(1, best // len(starts))
    return torch.minimum(starts[best % len(starts)], x.shape[2] - ratio * window_frames).clamp(min=0), ratio


@torch.no_grad()
def tempo_scan(
    x: Tensor,
    y: Tensor,
    window_frames: int,
    *,
    start_y: float | Tensor | None = None,
    ratio_y: float | Tensor | None = None,
    lags: tuple[float, float] = LAGS,
) -> tuple[Tensor, Tensor]:
    """How well the tempo of all of x fits that of y's window at every ratio from 0.45 to 2.2, allowed or not.

    Returns:
        ratios `[R]`, and the correlation of the rhythm profiles at each, `[B, R]`.
    """
    check_signals(x, y, window_frames, ("x",))
    check_lags(lags, window_frames)
    of_y = given_windows("y", y, start_y, ratio_y, window_frames, moved=False)
    assert of_y is not None
    wanted = rhythm_profile(y, of_y.start, of_y.ratio, window_frames, blur=SCAN_BLUR, lags=lags)  # [B, 1, G]
    begin = torch.zeros_like(of_y.start)
    repeats = onset_repeats(x, begin, begin + x.shape[2], math.ceil(lags[1] * SCAN[1] * 1.1))  # [B, 1, lags]
    count = round(math.log(SCAN[1] / SCAN[0]) / SCAN_STEP) + 1
    shift = math.log(SCAN[0]) + SCAN_STEP * torch.arange(count, dtype=repeats.dtype, device=x.device)
    shifts = shift.expand(len(x), -1)
    profiles = on_log_axis(repeats.expand(-1, count, -1), shifts, SCAN_BLUR, lags)  # [B, R, G]
    return shift.exp(), pearson(profiles, wanted)


def better_out_of_range(ratios: Tensor, scores: Tensor, max_ratio: float) -> float | None:
    """The ratio of a scan, `[R]` each, that fits clearly better than all from 1 to `max_ratio`; None if none does.

    Ratios whose double or half is allowed do not count: they mean the same beat, counted twice or half as often. For
    the same reason a ratio below 1 is told as its double, which a larger `max_ratio` would allow.
    """
    slack = 1 + 2 * SCAN_STEP

    def allowed(ratio: Tensor) -> Tensor:
        return (ratio >= 1 / slack) & (ratio <= max_ratio * slack)

    inside = allowed(ratios)
    outside = ~(inside | allowed(2 * ratios) | allowed(ratios / 2))
    if not outside.any():
        return None
    best = torch.where(outside, scores, -math.inf).argmax()
    clearly = scores[best] > torch.where(inside, scores, -math.inf).max() + MARGIN
    if not clearly:
        return None
    ratio = float(ratios[best])
    return ratio if ratio >= 1 else 2 * ratio
