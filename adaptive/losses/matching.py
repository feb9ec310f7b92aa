"""Do the two windows of a pair hold the same thing? A loss that windows can be trained by alone."""

from __future__ import annotations

from torch import Tensor

from adaptive_window.kernels import resample_windows

from .scale_space import gaussian_blur
from .signals import centred, cosine, wide

SPREAD_FLOOR = 1e-2  # added to a channel's spread over the clip: silence stays silence


def matching_loss(
    x: Tensor,
    y: Tensor,
    windows: dict[str, Tensor],
    window_frames: int,
    *,
    sigma: float | Tensor = 0.0,
    backend: str = "auto",
) -> Tensor:
    """1 − Pearson correlation of the two windows of every pair, both cut from blurred clips.

        x', y'   each channel of a clip over its own mean and spread in time, then blurred by `sigma` frames
        a, b     their windows, resampled to W frames, each channel about its own mean there
        loss     1 − Σ a·b / sqrt(Σ a² · Σ b²), sums over channels and frames; the mean over pairs and samples

    0 for windows that are alike, 1 for unrelated ones, at most 2. Gain and offset of a channel do not matter.

    The clips are blurred, not the windows: then the derivative to a start is that of a signal as smooth as the blur,
    and reaches as far. Both clips are blurred by the same number of their own frames, so that windows of different
    ratios see blurs of different width in the pattern's time. That moves the optimum a little while the blur lasts,
    which is why it has to end at 0.

    Args:
        x, y: input and target clips, `[B, C, T]`.
        windows: `metadata["windows"]`: start_input, ratio_input, start_target, ratio_target, each `[B, P]`.
        window_frames: W.
        sigma: frames of blur, ≥ 0; a number or what `gaussian_blur` takes.
        backend: as `adaptive_window.kernels.resample_windows`.

    Returns:
        0-dim, float32 (float64 for float64). Its gradient reaches both clips and every start and ratio.
    """
    cut = []
    for clip, name in ((x, "input"), (y, "target")):
        blurred = gaussian_blur(standardized(clip), sigma)
        start, ratio = windows[f"start_{name}"], windows[f"ratio_{name}"]
        window = resample_windows(blurred, start, ratio, window_frames, backend=backend)  # [B, P, C, W]
        cut.append(centred(window).flatten(2))  # [B, P, C·W]
    return 1 - cosine(*cut).mean()


def standardized(x: Tensor) -> Tensor:
    """`[..., T]`: every channel of a clip about its own mean, over its own spread in time. Never 16-bit."""
    x = centred(wide(x))
    return x * (x.square().mean(-1, keepdim=True) + SPREAD_FLOOR**2).rsqrt()
