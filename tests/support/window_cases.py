"""Windows of every kind, and arguments for the fused ops, for the tests of the kernels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from adaptive_window.kernels import resample_windows, tonality_blend, windowed_tonality

NAMES = ("x", "start", "ratio", "strength", "dw", "db", "pw", "pb", "gamma", "beta")
EPS = 1e-5

# name: (frames, window, starts, ratios); three windows each. Where p is a whole number the slope jumps, and the last
# bit of its arithmetic chooses the side: frames are either whole exactly (short binary fractions) or never near it.
GEOMETRY = {
    "inside": (97, 41, (3.3137, 20.7219, 11.0931), (1.0, 1.3172, 1.4987)),
    "ties: whole starts at ratio 1": (61, 41, (0.0, 12.0, 20.0), (1.0, 1.0, 1.0)),
    "tie at the right edge": (61, 41, (20.0, 40.0, 60.0), (1.0, 1.5, 1.0)),
    "over the left edge": (61, 41, (-2.3137, -30.0931, -70.5219), (1.0, 1.3172, 1.4987)),
    "over the right edge": (61, 41, (40.2137, 59.5219, 80.0931), (1.0, 1.3172, 1.4987)),
    "ratio below 1": (61, 41, (3.3137, 20.7219, -4.2931), (0.3172, 0.7731, 0.0519)),
    "ratio below 1 at whole starts": (61, 41, (0.0, 5.0, 60.0), (0.5, 0.25, 0.5)),
    "shorter than a frame": (61, 41, (3.25, 60.0, -0.5), (0.01, 0.02, 0.024)),
    "ratio zero and negative": (61, 41, (3.25, 7.0, 0.0), (0.0, -1.0, -0.3)),
    "extreme": (61, 41, (5.2137, -30.0931, 50.0219), (4.0172, 2.5172, 3.7172)),
    "one frame": (1, 5, (0.0, -0.5, 0.5), (1.0, 0.5, 2.0)),
    "two frames": (2, 5, (0.0, 0.4137, -1.0), (0.3172, 0.2172, 1.0)),
    "one output": (17, 1, (0.0, 4.3137, 15.9219), (1.0, 3.0, 0.4172)),
}


def arguments(
    frames: int, starts: tuple[float, ...], ratios: tuple[float, ...], channels: int, taps: int
) -> list[Tensor]:
    pairs = len(starts)

    def normal(*shape: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64) * scale + shift

    return [
        normal(2, channels, frames),
        torch.tensor(starts, dtype=torch.float64).repeat(2, 1) + torch.tensor([[0.0], [0.125]], dtype=torch.float64),
        torch.tensor(ratios, dtype=torch.float64).repeat(2, 1),
        torch.rand(2, pairs, dtype=torch.float64),
        normal(channels, 1, taps, scale=0.4),
        normal(channels, scale=0.3),
        normal(channels, channels, 1, scale=channels**-0.5),
        normal(channels, scale=0.3),
        normal(channels, scale=0.2, shift=1.0),
        normal(channels, scale=0.3),
    ]


W = 9  # the window of `small_calls`


def small_arguments(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Of `windowed_tonality`: two clips, two windows each, one over the clip's edge."""
    return [v.to(dtype) for v in arguments(23, (3.3137, -4.2931), (1.1172, 0.6172), 3, 3)]


def small_blend_arguments() -> list[Tensor]:
    return [torch.randn(2, 2, 3, W, dtype=torch.float64), *small_arguments()[3:]]


def small_calls(backend: str) -> dict[str, tuple[Callable[..., Tensor], Callable[[], list[Tensor]]]]:
    """Every public function, and what makes arguments for it; after a colon, of `restore`."""
    return {
        "resample_windows": (
            lambda *v: resample_windows(*v, W, backend=backend),
            lambda: small_arguments()[:3],
        ),
        "tonality_blend": (lambda *v: tonality_blend(*v, eps=EPS, backend=backend), small_blend_arguments),
        "windowed_tonality": (lambda *v: windowed_tonality(*v, W, eps=EPS, backend=backend), small_arguments),
        "windowed_tonality:frame": (
            lambda *v: windowed_tonality(*v, W, eps=EPS, restore="frame", backend=backend),
            small_arguments,
        ),
    }
