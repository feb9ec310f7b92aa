"""Where to look: the network that chooses every pair's windows."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from adaptive_window.kernels.reference import without_autocast

from .plain import working_dtype
from .validation import check_probability, check_streams, check_windows

POOLED_BINS = 50
PER_PAIR = 5  # start_input, start_target, ratio_input, ratio_target, strength
FIRST_START, LAST_START = 0.01, 0.99  # where a fresh selector's first and last pair begin, in the reachable range
FRESH_RATIO = 0.01  # how far a fresh selector's ratios are from 1, in the reachable range
LAST_LAYER_STD = 5e-4


def windows_from_logits(
    logits: Tensor, frames: int, window_frames: int, max_ratio: float, max_strength: float = 1.0
) -> dict[str, Tensor]:
    """The selector's raw outputs as windows inside a clip.

        longer  = min((max_ratio − 1)·W, T − W)              frames that a window may cover beyond W
        ratio   = 1 + longer/W · σ(l_ratio)                  between 1 and min(max_ratio, T/W)
        start   = σ(l_start) · (T − ratio·W)                 so that start + ratio·W ≤ T
        strength = max_strength · σ(l_strength)

    No clamp: the derivative to every logit vanishes only where its sigmoid saturates, or where T leaves no choice
    (T = W fixes start at 0 and, for max_ratio ≥ 1, ratio at 1).

    Args:
        logits: `[B, 5·P]`, pair after pair: start_input, start_target, ratio_input, ratio_target, strength.
        frames: T, frames of the clip, ≥ `window_frames`.
        window_frames: W, frames of each output window.
        max_ratio: the other end of the range of ratios, > 0; below 1, windows are shorter than W.
        max_strength: strongest transform of the tonality, 0 to 1; 0 leaves windows as they are.

    Returns:
        start_input, start_target (frames), ratio_input, ratio_target, strength: each `[B, P]`, float32 or float64.
    """
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()  # 16 bits resolve a start of 400 frames to one or two frames only
    unit = torch.sigmoid(logits).unflatten(1, (-1, PER_PAIR))  # [B, P, 5]
    start_input, start_target, ratio_input, ratio_target, strength = unit.unbind(2)
    longer = min((max_ratio - 1) * window_frames, frames - window_frames)
    room = frames - window_frames
    return {
        "start_input": start_input * (room - longer * ratio_input),
        "start_target": start_target * (room - longer * ratio_target),
        "ratio_input": 1 + longer / window_frames * ratio_input,
        "ratio_target": 1 + longer / window_frames * ratio_target,
        "strength": max_strength * strength,
    }


def fresh_logits(num_pairs: int) -> Tensor:
    """`[P, 5]`: starts evenly over the reachable range (one pair: its middle), ratios near 1, strength 0.5."""
    starts = torch.linspace(FIRST_START, LAST_START, num_pairs)
    if num_pairs == 1:
        starts = torch.tensor([0.5])
    logits = torch.empty(num_pairs, PER_PAIR)
    logits[:, 0:2] = torch.logit(starts)[:, None]
    logits[:, 2:4] = math.log(FRESH_RATIO / (1 - FRESH_RATIO))
    logits[:, 4] = 0.0
    return logits


class WindowSelector(nn.Module):
    """Chooses P windows in each of two clips, and how strongly their tonality is transformed.

    Each clip is averaged to 50 bins over time; both, flattened to 2·C·50 numbers, pass an MLP (512, 256, LayerNorm and
    GELU) whose 5·P outputs become windows (`windows_from_logits`). It runs in its weights' precision even under
    autocast: it costs 13 MFLOP a sample, and a start must not be rounded to 8 bits.

    Fresh initialization: the last layer's biases put the pairs' starts evenly from 0.01 to 0.99 of the reachable range
    (one pair: the middle), ratios at 0.01 of theirs and strength at 0.5, and its weights are N(0, 5e-4). For 24 s at
    50 frames/s that is 4, 198 and 392 frames (0, 4 and 8 s, each within 0.2 s), ratio 1.005, strength 0.5, at any
    input: the layer's input is a LayerNorm's output through GELU, whose norm cannot exceed 16, so weights of that size
    cannot move a logit by more than about 0.02. The ends are 0.01 and not nearer 0 because the derivative of a sigmoid
    dies with its distance from the middle: here one unit of logit still moves an edge start by 4 frames.

    Args:
        encoding_dim: C, channels of the latents.
        num_pairs: P, windows chosen per clip.
        window_frames: W, frames of each window as the composer sees it.
        max_ratio: longest window over W, > 0 (see `windows_from_logits`).
        max_strength: strongest transform of the tonality, 0 to 1.
        dropout: probability in the MLP, in training.
    """

    def __init__(
        self,
        encoding_dim: int = 128,
        num_pairs: int = 3,
        *,
        window_frames: int = 800,
        max_ratio: float = 1.5,
        max_strength: float = 1.0,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        check_windows(encoding_dim, num_pairs, window_frames, max_ratio, max_strength)
        check_probability("dropout", dropout)
        self.encoding_dim = encoding_dim
        self.num_pairs = num_pairs
        self.window_frames = window_frames
        self.max_ratio = max_ratio
        self.max_strength = max_strength
        self.pool = nn.AdaptiveAvgPool1d(POOLED_BINS)
        self.mlp = nn.Sequential(
            nn.Linear(2 * encoding_dim * POOLED_BINS, 512),
            nn.LayerNorm(512),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(512, 256),
            nn.LayerNorm(256),
            nn.GELU(),
            nn.Dropout(dropout),
            self._fresh_last_layer(),
        )

    def _fresh_last_layer(self) -> nn.Linear:
        last = nn.Linear(256, PER_PAIR * self.num_pairs)
        with torch.no_grad():
            nn.init.normal_(last.weight, std=LAST_LAYER_STD)
            last.bias.copy_(fresh_logits(self.num_pairs).flatten())
        return last

    def logits(self, x_input: Tensor, x_target: Tensor) -> Tensor:
        """The raw outputs `[B, 5·P]`, pair after pair; arguments and errors as `forward`."""
        check_streams(self, x_input, x_target, self.encoding_dim, self.window_frames)
        dtype = working_dtype(self.mlp, x_input.dtype)
        with without_autocast(x_input.device.type):
            pooled = [self.pool(x.to(dtype)) for x in (x_input, x_target)]  # each [B, C, 50]
            return self.mlp(torch.cat(pooled, dim=1).flatten(1))

    def forward(self, x_input: Tensor, x_target: Tensor) -> dict[str, Tensor]:
        """Windows for two clips `[B, C, T]`, T ≥ `window_frames`.

        Returns:
            start_input, start_target (frames), ratio_input, ratio_target, strength: each `[B, P]`, never 16-bit.

        Raises:
            TypeError: a clip is no floating tensor, or of another dtype than the weights outside autocast.
            ValueError: a wrong rank, shape, number of channels or device, or a clip shorter than a window.
        """
        logits = self.logits(x_input, x_target)
        return windows_from_logits(logits, x_input.shape[2], self.window_frames, self.max_ratio, self.max_strength)

    def extra_repr(self) -> str:
        return (
            f"encoding_dim={self.encoding_dim}, num_pairs={self.num_pairs}, "
            f"window_frames={self.window_frames}, max_ratio={self.max_ratio}, "
            f"max_strength={self.max_strength}"
        )
