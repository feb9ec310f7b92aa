"""Where to look, by what is played: tempos brought together, then places that fit, then pairs kept apart.

The MLP of `selector.py` learns constants from a few hundred songs, and the search of `correlation_selector.py` always
asks for the same windows of the target. Here both streams' windows and the ratio between them follow from the songs;
what is learned is how much onsets and channels count, how sharp a peak is, how far pairs are compressed, how strongly
transformed.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adaptive_window.kernels import resample_windows
from adaptive_window.kernels.reference import compute_dtype
from adaptive_window.kernels.validation import check_shape

from ..losses.composing import SLOW_SECONDS, odd_frames
from ..losses.conflict import class_roughness, harmonic_conflict
from ..losses.harmony import CLASSES
from ..losses.matching import standardized
from ..losses.rhythm import onset_envelope
from ..losses.scale_space import gaussian_blur
from ..losses.signals import centred
from .tempo import tempo_ratio
from .validation import check_positive, check_streams, check_windows

PLACES = 33  # of a window in the room that its ratio leaves, in each stream
FIRST_PLACE, LAST_PLACE = 0.03, 0.97  # share of that room: the ends themselves are bounds
COARSE, FINE = 50, 200  # samples of a window in which channels, and onsets, are compared
APART = 0.5  # share of the room within which a pair keeps others away
SEPARATION = 3.0  # in correlations: more than any place can gain by fitting
GAP_SECONDS = 1.5  # between the starts of two pairs, where there is room
NEVER_NEARER = 1.0  # seconds, after moving to the beat
SLACK, LEAST_SLACK = 0.93, 0.985  # of an even distribution: places lie on a lattice; where a second depends on it
CROWDED = 10.0  # in nearness: a place that leaves the others too little room
BEAT_STEPS, BEAT_BLUR = 12, 1.5  # frames to either side that the target moves to be on the beat, and their blur
FRESH_SHARPNESS = 30.0
EDGE = 0.025  # share of the range that ratios keep from its ends, where a tempo leaves it
FRESH_SHARES = (0.03, 0.15)  # of the compression left: first and last pair
STRENGTHS = ("constant", "harmony")
FRESH_PULL = 1.0  # logit of strength a percent of conflict


class ContentSelector(nn.Module):
    """Chooses P pairs of windows by the songs themselves; every part is differentiable, none has to be found from afar.

        tempo       log of the ratio between the streams' tempos (`tempo.tempo_ratio`): where both have a beat and their
                    rhythm profiles fit best, averaged around it by softmax; 0 where one has no beat (noise, free tempo)
        ratios      log ratio = max(0, ±tempo) + share_p · (what is left of the range), share_p learned
        places      correlation of every window of the input with every one of the target at those ratios: of onsets,
                    and of channels over their own mean and spread, channel c counting exp(log_weight_c)
        pairs       the best place first; each further pair has its correlations lowered near those before it, in both
                    streams, and takes the best that is left
        beat        the target's start moves by at most 12 frames to where its onsets fall on the input's
        strength    max_strength · sigmoid(b_p), alike for all songs; with `strength="harmony"`
                    max_strength · sigmoid(b_p + g_p · conflict) of the two windows (`losses.conflict`): keys that clash
                    are transformed, one key is left as it is, drums and noise get sigmoid(b_p)

    Windows are inside the clip and off its bounds by construction. The starts of white noise are as good as any.

    Args:
        encoding_dim: C, channels of the latents.
        num_pairs: P, windows chosen per clip.
        window_frames: W, frames of each window as the composer sees it.
        max_ratio: longest window over W, ≥ 1.
        max_strength: strongest transform of the tonality, 0 to 1.
        frame_rate: frames per second, for the lags at which rhythm repeats.
        strength: "constant", or "harmony" for latents that are a log-mel spectrum, whose pitch classes `hear` has to be
            told; until then it is constant.
    """

    def __init__(
        self,
        encoding_dim: int = 128,
        num_pairs: int = 3,
        *,
        window_frames: int = 800,
        max_ratio: float = 1.5,
        max_strength: float = 1.0,
        frame_rate: float = 50.0,
        strength: str = "constant",
    ) -> None:
        super().__init__()
        check_windows(encoding_dim, num_pairs, window_frames, max_ratio, max_strength)
        if max_ratio < 1:
            raise ValueError(f"max_ratio must be at least 1 for the content selector, got {max_ratio}")
        check_positive("frame_rate", frame_rate)
        if strength not in STRENGTHS:
            raise ValueError(f"strength must be 'constant' or 'harmony', got {strength!r}")
        self.encoding_dim = encoding_dim
        self.num_pairs = num_pairs
        self.window_frames = window_frames
        self.max_ratio = max_ratio
        self.max_strength = max_strength
        self.frame_rate = frame_rate
        self.log_weight = nn.Parameter(torch.zeros(encoding_dim))
        self.log_sharpness = nn.Parameter(torch.tensor(math.log(FRESH_SHARPNESS)))
        self.mix = nn.Parameter(torch.zeros(2))  # onsets, channels: softmax
        self.share = nn.Parameter(torch.logit(torch.linspace(*FRESH_SHARES, num_pairs)))
        self.strength = nn.Parameter(torch.zeros(num_pairs))
        self.classes: Tensor | None
        self.register_buffer("classes", torch.zeros(CLASSES, encoding_dim) if strength == "harmony" else None)
        self.roughness: Tensor | None
        self.register_buffer(
            "roughness", class_roughness().float() if strength == "harmony" else None, persistent=False
        )
        self.pull = nn.Parameter(torch.full((num_pairs,), FRESH_PULL)) if strength == "harmony" else None

    def forward(self, x_input: Tensor, x_target: Tensor) -> dict[str, Tensor]:
        """Windows for two clips `[B, C, T]`, T ≥ `window_frames`; returns and raises as `WindowSelector.forward`."""
        check_streams(self, x_input, x_target, self.encoding_dim, self.window_frames)
        with torch.autocast(x_input.device.type, enabled=False):
            dtype = compute_dtype(self.log_weight.dtype)
            x, y = x_input.to(dtype), x_target.to(dtype)
            tempo, _ = self.tempo(x, y)
            ratio_input, ratio_target = self._ratios(tempo, x.shape[2])
            start_input, start_target = self._starts(x, y, ratio_input, ratio_target)
            logit = self.strength.to(dtype).expand(len(x), -1)
            if self.classes is not None and self.pull is not None:
                conflict = self._conflict(x, y, start_input, start_target, ratio_input, ratio_target)
                logit = logit + self.pull.to(dtype) * conflict
            strength = self.max_strength * torch.sigmoid(logit)
        return {
            "start_input": start_input,
            "start_target": start_target,
            "ratio_input": ratio_input,
            "ratio_target": ratio_target,
            "strength": strength,
        }

    @torch.no_grad()
    def hear(self, classes: Tensor) -> None:
        """Which pitch class each channel counts for, `[12, C]`, of `losses.pitch_classes`; for `strength="harmony"`."""
        if self.classes is None:
            raise ValueError('strength must be "harmony" for the selector to hear pitch classes, got "constant"')
        check_shape("classes", classes, tuple(self.classes.shape), "[12, C]")
        self.classes.copy_(classes)

    def tempo(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Log of how much slower x is than y, within the range of ratios, and how clear both beats are: `[B]` each.

        As `tempo.tempo_ratio`; a beat counts from `tempo.FOUND` on.
        """
        limit = self._limit(x.shape[2])
        return tempo_ratio(x, y, limit=limit, frame_rate=self.frame_rate, sharpness=self._sharp())

    def _limit(self, frames: int) -> float:
        """Log of the longest ratio that a clip of so many frames has room for."""
        return math.log(min(self.max_ratio, frames / self.window_frames))

    def _sharp(self) -> Tensor:
        return self.log_sharpness.exp()

    def _ratios(self, tempo: Tensor, frames: int) -> tuple[Tensor, Tensor]:
        tempo = tempo[:, None]
        limit = self._limit(frames)
        room = limit - tempo.abs()  # [B, 1]
        edge = (room / 2).clamp(max=EDGE * (math.exp(limit) - 1))
        base = edge + torch.sigmoid(self.share.to(tempo.dtype)) * (room - 2 * edge)  # [B, P]
        return (tempo.relu() + base).exp(), ((-tempo).relu() + base).exp()

    def _starts(self, x: Tensor, y: Tensor, ratio_x: Tensor, ratio_y: Tensor) -> tuple[Tensor, Tensor]:
        frames, window = x.shape[2], self.window_frames
        unit = torch.linspace(FIRST_PLACE, LAST_PLACE, PLACES, dtype=x.dtype, device=x.device)
        room_x, room_y = ((frames - ratio * window).clamp(min=0) for ratio in (ratio_x, ratio_y))  # [B, P]
        places_x, places_y = room_x[..., None] * unit, room_y[..., None] * unit  # [B, P, S]
        fit = self._fit(x, y, places_x, places_y, ratio_x, ratio_y)  # [B, P, S, S]
        found_x: list[Tensor] = []
        found_y: list[Tensor] = []
        for pair in range(self.num_pairs):
            at_x, at_y = places_x[:, pair], places_y[:, pair]  # [B, S]
            cost_x = self._crowding(at_x, found_x, room_x.amin(1))
            cost_y = self._crowding(at_y, found_y, room_y.amin(1))
            scores = fit[:, pair] - SEPARATION * (cost_x[:, :, None] + cost_y[:, None, :])
            weight = self._around_the_best(scores)
            found_x.append((weight.sum(2) * at_x).sum(1))
            found_y.append((weight.sum(1) * at_y).sum(1))
        start_x, start_y = torch.stack(found_x, 1), torch.stack(found_y, 1)
        low, high = FIRST_PLACE * room_y, LAST_PLACE * room_y
        return start_x, self._on_the_beat(x, y, start_x, start_y, ratio_x, ratio_y, low, high)

    def _gap(self, room: Tensor) -> Tensor:
        """Frames that pairs keep between their starts, as far as the room allows.

        As many starts a second apart as there is room for; the other pairs share those places in this stream, and
        differ in the other. Where not even two can be a second apart, all are spread evenly.
        """
        least = NEVER_NEARER * self.frame_rate
        even = (LAST_PLACE - FIRST_PLACE) * room
        gaps = (LEAST_SLACK * even / least).floor().clamp(max=max(1, self.num_pairs - 1))
        even = even / torch.where(gaps < 1, max(1, self.num_pairs - 1), gaps)
        return torch.maximum(SLACK * even, (LEAST_SLACK * even).clamp(max=least)).clamp(
            max=GAP_SECONDS * self.frame_rate
        )

    def _crowding(self, places: Tensor, taken: list[Tensor], room: Tensor) -> Tensor:
        """What each place costs, `[B, S]`: its nearness to those taken, and much more where it leaves too few gaps.

        A gap of length L between two starts, or a start and an end, has ⌊L/gap⌋ − 1 further starts in it.
        """
        gap = self._gap(room)[:, None]  # [B, 1]
        cost = torch.zeros_like(places)
        for start in taken:
            cost = cost + _nearness(places, start, APART * room)
        ends = [FIRST_PLACE * room[:, None] - gap, LAST_PLACE * room[:, None] + gap]
        fixed = torch.cat([*ends, *(start[:, None] for start in taken)], 1)[:, None].expand(-1, places.shape[1], -1)
        every = torch.cat([fixed, places[..., None]], 2).sort(2).values.detach()  # [B, S, taken + 3]
        gaps = (every.diff(dim=2) + 1e-3) / gap.clamp(min=1e-6)[..., None]
        missing = self.num_pairs - len(taken) - 1 - (gaps.floor() - 1).clamp(min=0).sum(2)
        short = (1 - gaps).clamp(min=0).sqrt().sum(2)  # too near to one taken; a little to two is worse than to one
        return cost + CROWDED * (missing.clamp(min=0) + short)

    def _fit(
        self, x: Tensor, y: Tensor, places_x: Tensor, places_y: Tensor, ratio_x: Tensor, ratio_y: Tensor
    ) -> Tensor:
        """Correlation of each window of x with each of y, `[B, P, S, S]`, of onsets and channels as `mix` says."""
        share = self.mix.softmax(0)
        weight = (0.5 * self.log_weight).exp()[:, None]
        total = fit = None
        for k, (samples, features) in enumerate(((FINE, _onsets), (COARSE, lambda z: weight * standardized(z)))):
            samples = min(samples, self.window_frames)
            cuts = []
            for clip, places, ratio in ((x, places_x, ratio_x), (y, places_y, ratio_y)):
                step = self.window_frames / samples  # frames a sample, at ratio 1
                signal = F.avg_pool1d(features(clip), max(1, int(step)))
                cell = max(1, int(step))
                cut = resample_windows(
                    signal,
                    places.flatten(1) / cell,
                    (ratio * step / cell).repeat_interleave(PLACES, 1),
                    samples,
                ).unflatten(1, (-1, PLACES))  # [B, P, S, F, N]
                cut = centred(cut).flatten(3)
                cuts.append(cut * (cut.square().sum(-1, keepdim=True) + 1e-6).rsqrt())
            fit = share[k] * torch.matmul(cuts[0], cuts[1].transpose(2, 3))
            total = fit if total is None else total + fit
        assert total is not None
        return total

    def _around_the_best(self, scores: Tensor) -> Tensor:
        """Softmax of `[B, S, S]` over the 3 x 3 places around the highest, zero elsewhere."""
        flat = scores.flatten(1)
        best = flat.detach().argmax(1)
        places = torch.arange(PLACES, device=scores.device)
        near_x = (places - (best // PLACES)[:, None]).abs() <= 1
        near_y = (places - (best % PLACES)[:, None]).abs() <= 1
        near = (near_x[:, :, None] & near_y[:, None, :]).flatten(1)
        return torch.where(near, self._sharp() * flat, -math.inf).softmax(1).unflatten(1, (PLACES, PLACES))

    def _on_the_beat(
        self,
        x: Tensor,
        y: Tensor,
        start_x: Tensor,
        start_y: Tensor,
        ratio_x: Tensor,
        ratio_y: Tensor,
        low: Tensor,
        high: Tensor,
    ) -> Tensor:
        """The target's starts `[B, P]`, moved to where its onsets correlate most with those of the input's windows."""
        envelopes = [gaussian_blur(_onsets(clip), BEAT_BLUR) for clip in (x, y)]  # [B, 1, T]
        wanted = centred(resample_windows(envelopes[0], start_x, ratio_x, self.window_frames))[:, :, 0]  # [B, P, W]
        moves = torch.arange(-BEAT_STEPS, BEAT_STEPS + 1, dtype=x.dtype, device=x.device)
        room = x.shape[2] - ratio_y.amax(1, keepdim=True) * self.window_frames
        spare = (self._gap(room) - NEVER_NEARER * self.frame_rate) / 2
        moves = torch.maximum(torch.minimum(moves, spare.clamp(min=0)[..., None]), -spare.clamp(min=0)[..., None])
        tried = torch.minimum(torch.maximum(start_y[..., None] + moves, low[..., None]), high[..., None])  # [B, P, M]
        ratios = ratio_y.repeat_interleave(tried.shape[2], 1)
        cut = resample_windows(envelopes[1], tried.flatten(1), ratios, self.window_frames)
        cut = centred(cut)[:, :, 0].unflatten(1, tried.shape[1:])  # [B, P, M, W]
        power = (cut.square().sum(-1) + 1e-6) * (wanted.square().sum(-1) + 1e-6)[..., None]
        fit = (cut * wanted[:, :, None]).sum(-1) * power.rsqrt()
        return ((self._sharp() * fit).softmax(2) * tried).sum(2)

    @torch.no_grad()
    def _conflict(
        self, x: Tensor, y: Tensor, start_x: Tensor, start_y: Tensor, ratio_x: Tensor, ratio_y: Tensor
    ) -> Tensor:
        """Harmonic conflict of each pair's windows, `[B, P]`, in percent, at about `FINE` samples a window."""
        cell = max(1, self.window_frames // FINE)
        samples = self.window_frames // cell
        cut_x, cut_y = (
            resample_windows(F.avg_pool1d(clip, cell), start / cell, ratio, samples)
            for clip, start, ratio in ((x, start_x, ratio_x), (y, start_y, ratio_y))
        )
        assert self.classes is not None
        smoothing = odd_frames(SLOW_SECONDS, self.frame_rate / cell)
        return harmonic_conflict(cut_x, cut_y, self.classes, smoothing, self.roughness)

    def extra_repr(self) -> str:
        return (
            f"encoding_dim={self.encoding_dim}, num_pairs={self.num_pairs}, window_frames={self.window_frames}, "
            f"max_ratio={self.max_ratio}, max_strength={self.max_strength}, frame_rate={self.frame_rate}"
        )


def _onsets(x: Tensor) -> Tensor:
    """Onset envelope of every frame, over its own mean and spread: `[B, 1, T]`."""
    return standardized(F.pad(onset_envelope(x), (1, 0)))[:, None]


def _nearness(places: Tensor, taken: Tensor, reach: Tensor) -> Tensor:
    """1 at the place taken, 0 from `reach` on: `[B, S]`."""
    distance = (places - taken[:, None]).abs()
    return (1 - distance / reach.clamp(min=1e-6)[:, None]).relu()
