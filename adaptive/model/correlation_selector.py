"""Where to look, by comparing: each pair's input window is the one that correlates best with its target window.

The MLP of `selector.py` has to learn what a match is, from examples; here it is built in, and what is learned is how
much each channel counts, how sharp a peak is, and which windows of the target to look for.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adaptive_window.kernels import resample_windows
from adaptive_window.kernels.reference import compute_dtype, without_autocast

from ..losses.matching import standardized
from .selector import fresh_logits, windows_from_logits
from .validation import check_streams, check_windows

CELLS = 200  # a window's length in cells of the search, at most twice that: 4 frames a cell for 800 frames
CELLS_PER_RATIO = 4  # ratios of the lattice differ by 4 cells of length, so that no frame is off by more than a cell
REACH = 2  # cells, and steps of ratio, around the best place that its position is averaged over
FRESH_SHARPNESS = 100.0
ROUNDING = 1e-2  # cells by which a length that should be whole may miss it, in float32
SILENCE = 1e-3  # power, of the clip's own, under a correlation: near-silent windows correlate with nothing


class CorrelationSelector(nn.Module):
    """Chooses P windows in each of two clips: the target's at learned places, the input's where it matches best.

        x, y        averaged over cells of q = ⌊W/200⌋ frames (at least 1), each channel over its own mean and spread
        lattice     ratio ρ_k from 1 to min(max_ratio, T/W) in equal steps of about 4q/W, start τ·q, start + ρ_k·W ≤ T
        score(τ,k)  Pearson correlation of x's window there with the pair's window of y, over frames and channels:
                    a channel's mean in the window is removed, channel c counts exp(log_weight_c)
        window      mean of (start, ratio) around the best place, weighted by softmax(sharpness · score): at most 2
                    cells from it (centres of the windows) and 2 steps of ratio

    Such a mean is inside the clip, since the windows that fit form a convex set; and it is differentiable in the clips,
    the weights, the sharpness and the target's windows. The best place itself is found, not learned: no gradient has
    to reach it from afar.

    The target's start, ratio and the strength of each pair are parameters of their own, the same for every clip. They
    begin where a fresh `WindowSelector` begins. Beside them there are C + 1 parameters.

    It costs C·P·K·S·L multiply-adds a sample, for K ratios, S starts and L cells in the longest window: 0.3 G for 24 s
    at 50 frames/s and 3 pairs (26 · 101 · 300 · 128 · 3). It runs in its weights' precision even under autocast.

    Args:
        encoding_dim: C, channels of the latents.
        num_pairs: P, windows chosen per clip.
        window_frames: W, frames of each window as the composer sees it.
        max_ratio: longest window over W, > 0 (see `windows_from_logits`).
        max_strength: strongest transform of the tonality, 0 to 1.
    """

    def __init__(
        self,
        encoding_dim: int = 128,
        num_pairs: int = 3,
        *,
        window_frames: int = 800,
        max_ratio: float = 1.5,
        max_strength: float = 1.0,
    ) -> None:
        super().__init__()
        check_windows(encoding_dim, num_pairs, window_frames, max_ratio, max_strength)
        self.encoding_dim = encoding_dim
        self.num_pairs = num_pairs
        self.window_frames = window_frames
        self.max_ratio = max_ratio
        self.max_strength = max_strength
        self.cell = max(1, window_frames // CELLS)
        self.log_weight = nn.Parameter(torch.zeros(encoding_dim))
        self.log_sharpness = nn.Parameter(torch.tensor(math.log(FRESH_SHARPNESS)))
        fresh = fresh_logits(num_pairs)
        self.target_start = nn.Parameter(fresh[:, 1].clone())
        self.target_ratio = nn.Parameter(fresh[:, 3].clone())
        self.strength = nn.Parameter(fresh[:, 4].clone())

    def forward(self, x_input: Tensor, x_target: Tensor) -> dict[str, Tensor]:
        """Windows for two clips `[B, C, T]`, T ≥ `window_frames`; returns and raises as `WindowSelector.forward`."""
        check_streams(self, x_input, x_target, self.encoding_dim, self.window_frames)
        batch, _, frames = x_input.shape
        queries = torch.stack(
            [self.target_start, self.target_start, self.target_ratio, self.target_ratio, self.strength], dim=1
        )
        windows = windows_from_logits(
            queries.flatten().expand(batch, -1), frames, self.window_frames, self.max_ratio, self.max_strength
        )  # the input's are replaced
        start, ratio = self.match(x_input, x_target, windows["start_target"], windows["ratio_target"])
        wide = windows["start_target"].dtype
        return windows | {"start_input": start.to(wide), "ratio_input": ratio.to(wide)}

    def match(self, x: Tensor, y: Tensor, start: Tensor, ratio: Tensor) -> tuple[Tensor, Tensor]:
        """The windows of x that correlate best with given windows of y.

        Args:
            x: `[B, C, T]`, T ≥ W.
            y: `[B, C, T_y]`, of any length; the window itself for T_y = W with start 0 and ratio 1.
            start, ratio: of y's windows, `[B, Q]`, any Q ≥ 1.

        Returns:
            start (frames) and ratio of x's windows, each `[B, Q]`.
        """
        with without_autocast(x.device.type):
            dtype = compute_dtype(self.log_weight.dtype)
            places = lattice(x.shape[2], self.window_frames, self.max_ratio, self.cell, dtype, x.device)
            scores = self._scores(self._cells(x.to(dtype)), self._cells(y.to(dtype)), start.to(dtype), ratio, places)
            weights = self._around_the_best(scores, places)  # [B, Q, K, S]
            return (weights * places.starts).sum((2, 3)), (weights * places.ratios).sum((2, 3))

    def _cells(self, x: Tensor) -> Tensor:
        """`[B, C, T]` -> `[B, C, ⌊T/q⌋]`, each channel over its own mean and spread in time."""
        return standardized(F.avg_pool1d(x, self.cell))

    def _scores(self, x: Tensor, y: Tensor, start: Tensor, ratio: Tensor, places: Lattice) -> Tensor:
        """Correlations `[B, Q, K, S]` of x's windows on the lattice with y's given ones; x, y in cells `[B, C, N]`."""
        batch = len(x)
        steps, count = places.starts.shape
        weight = self.log_weight.to(x.dtype).exp()[:, None]  # [C, 1]
        length = places.lengths  # [K, 1]
        # y's windows stretched to the length that they have in x at each ratio, zero beyond it: [B, Q, K, C, L]
        stretched = resample_windows(
            y,
            (start / self.cell).repeat_interleave(steps, 1),
            (ratio[:, :, None] / places.ratios[:, 0]).to(x.dtype).flatten(1),
            places.longest,
        ).unflatten(1, (-1, steps))
        inside = torch.arange(places.longest, device=x.device) < length  # [K, L]
        inside = inside.to(x.dtype)[:, None]  # [K, 1, L]
        mean = (stretched * inside).sum(-1, keepdim=True) / length[..., None]
        sought = (stretched - mean) * inside
        weighted = weight * sought
        energy_y = (weighted * sought).sum((-2, -1))[..., None]  # [B, Q, K, 1]

        # one matrix product: windows of y times all stretches of x of the longest length
        padded = F.pad(x, (0, count - 1 + places.longest - x.shape[2]))  # [B, C, S − 1 + L]; crops what none reaches
        stretches = padded.unfold(2, places.longest, 1).transpose(2, 3).reshape(batch, -1, count)  # [B, C·L, S]
        product = torch.bmm(weighted.flatten(3).flatten(1, 2), stretches).unflatten(1, (-1, steps))  # [B, Q, K, S]

        # Σ(x − mean)² = Σx² − (Σx)²/n of every window of x, from running sums
        first = torch.arange(count, device=x.device).expand(steps, -1)
        last = first + length.long()
        total, squares = (F.pad(z.cumsum(2), (1, 0)) for z in (padded, padded.square()))
        total, squares = (z[:, :, last] - z[:, :, first] for z in (total, squares))  # [B, C, K, S]
        spread = (squares - total.square() / length).relu()
        energy_x = torch.einsum("bcks,c->bks", spread, weight[:, 0])[:, None]  # [B, 1, K, S]

        floor = SILENCE * length * weight.sum()
        return product * ((energy_x + floor) * (energy_y + floor)).rsqrt()

    def _around_the_best(self, scores: Tensor, places: Lattice) -> Tensor:
        """Softmax of the scores within reach of the highest, zero elsewhere: `[B, Q, K, S]`, of sum 1."""
        fits = places.fits.flatten()  # [K·S]
        scores = scores.flatten(2)  # [B, Q, K·S]
        best = torch.where(fits, scores.detach(), -math.inf).argmax(2, keepdim=True)
        near = fits
        for coordinate in (places.centres, places.steps):
            along = coordinate.flatten().expand_as(scores)
            near = near & ((along - along.gather(2, best)).abs() <= REACH)
        sharp = self.log_sharpness.to(scores.dtype).exp() * scores
        return torch.where(near, sharp, -math.inf).softmax(2).unflatten(2, places.fits.shape)

    def extra_repr(self) -> str:
        return (
            f"encoding_dim={self.encoding_dim}, num_pairs={self.num_pairs}, "
            f"window_frames={self.window_frames}, max_ratio={self.max_ratio}, "
            f"max_strength={self.max_strength}"
        )


class Lattice(NamedTuple):
    """The windows of a clip that are compared, K ratios times S starts. All are constants of the sizes."""

    starts: Tensor  # [K, S], frames
    ratios: Tensor  # [K, 1]
    lengths: Tensor  # [K, 1], whole cells
    fits: Tensor  # [K, S], bool: inside the clip
    centres: Tensor  # [K, S], cells
    steps: Tensor  # [K, S]: the number of the ratio
    longest: int  # cells


def lattice(frames: int, window: int, max_ratio: float, cell: int, dtype: torch.dtype, device: torch.device) -> Lattice:
    """Windows of ratios 1 to min(max_ratio, frames/window) at every cell."""
    longer = min((max_ratio - 1) * window, frames - window)  # negative for max_ratio < 1
    count = int((frames - window - min(longer, 0)) / cell + ROUNDING) + 1
    number = math.ceil(abs(longer) / (CELLS_PER_RATIO * cell))
    step = torch.arange(number + 1, dtype=dtype, device=device)[:, None]
    place = torch.arange(count, dtype=dtype, device=device)
    ratios = 1 + longer / window / max(number, 1) * step
    room = frames - window * ratios
    return Lattice(
        starts=torch.minimum(cell * place, room).clamp(min=0),  # takes off what ROUNDING lets in
        ratios=ratios,
        lengths=(ratios * (window / cell) + ROUNDING).floor().clamp(min=1),
        fits=cell * place <= room + ROUNDING * cell,
        centres=place + ratios * (window / cell / 2),
        steps=step.expand(-1, count),
        longest=max(1, int((window + max(longer, 0)) / cell + ROUNDING)),
    )
