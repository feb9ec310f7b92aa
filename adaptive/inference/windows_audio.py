"""What a window sounds like: as recorded, and resampled in latent space to the pattern's length."""

from __future__ import annotations

import torch
from torch import Tensor

from adaptive_window.kernels import resample_windows

from ..audio.codec import Codec


def cut_window(audio: Tensor, codec: Codec, start: float, ratio: float, window: int) -> Tensor:
    """The window as recorded, from the clip's audio `[1, N]`: `ratio` times `window` frames from second `start`."""
    length = ratio * codec.seconds(window)
    first, last = (max(0, round(edge * codec.sample_rate)) for edge in (start, start + length))
    return audio[:, first:last]


def hear_window(latents: Tensor, codec: Codec, start: float, ratio: float, window: int) -> Tensor:
    """The window of latents `[1, C, T]`, resampled to `window` frames and decoded: `[1, N]`, on the CPU.

    `start` is in seconds of the clip.
    """
    places = latents.new_tensor([[start * codec.frame_rate]]), latents.new_tensor([[ratio]])
    with torch.no_grad():
        return codec.decode(resample_windows(latents, *places, window)[0])[0].cpu()
