"""The launches of the shipped kernels on tensors of 2³¹ elements and more, which exist as shapes and strides alone.

Host code plans the launches on meta tensors, as many programs as there are tiles; the sanitizer then runs some programs
of each, the first and the last among them, on addresses without memory: no 32-bit arithmetic may wrap around, and no
address may leave its tensor.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sanitizer import Sanitizer
from torch import Tensor

from adaptive_window.kernels.triton import resample, transform
from adaptive_window.kernels.triton.configurations import Target
from adaptive_window.kernels.triton.launch import Launch, record_launches, use_target
from adaptive_window.kernels.triton.source import Source
from adaptive_window.kernels.weights import Weights

TAPS, EPS = 3, 1e-5


@dataclass(frozen=True)
class Huge:
    """Sizes of a call, and the order in which x lies in memory."""

    batch: int
    pairs: int
    channels: int
    frames: int
    window: int
    layout: tuple[int, int, int] = (0, 1, 2)  # axes of x, slowest first
    start: float = 0.0
    ratio: float = 1.0
    without: frozenset[str] = frozenset()  # kernels that are left out
    channels_last: bool = False  # of y and the gradient

    def windows(self, dtype: torch.dtype) -> Tensor:
        b, p, c, w = self.batch, self.pairs, self.channels, self.window
        if self.channels_last:
            return torch.empty(b, p, w, c, dtype=dtype, device="meta").transpose(2, 3)
        return torch.empty(b, p, c, w, dtype=dtype, device="meta")

    def clip(self, dtype: torch.dtype) -> Tensor:
        sizes = (self.batch, self.channels, self.frames)
        stored = torch.empty([sizes[axis] for axis in self.layout], dtype=dtype, device="meta")
        return stored.permute([self.layout.index(axis) for axis in range(3)])


SUMMING = frozenset({"finish_gradients"})  # partial sums of all programs
WALKING = SUMMING | {"window_backward", "resample_dx"}  # along a whole window
HUGE = {
    "many clips": Huge(300, 1, 4, 1 << 21, 20, start=(1 << 21) - 20.0),
    "channels far apart": Huge(2, 1, 128, (1 << 24) - 1, 20, layout=(1, 0, 2), start=(1 << 24) - 20.0),
    "frames far apart": Huge(1, 2, 130, (1 << 24) - 1, 20, layout=(0, 2, 1), start=(1 << 24) - 20.0),
    "clips interleaved": Huge(43, 1, 3, (1 << 24) - 1, 20, layout=(2, 1, 0), start=(1 << 24) - 20.0),
    # left out: what would take for ever in the interpreter; others form the same offsets
    "many windows": Huge(1 << 17, 4, 64, 100, 80, start=20.0, without=SUMMING),
    "moments of single channels": Huge(1 << 17, 4, 1, 50, 2100, ratio=1e-2, without=SUMMING),
    "long windows": Huge(2, 1, 70, 50, (1 << 24) - 1, ratio=1e-6, without=WALKING),
    "long windows, whole chunks": Huge(1, 1, 256, (1 << 24) - 1, (1 << 24) - 1, without=SUMMING | {"window_backward"}),
    "long windows, many channels": Huge(1, 1, 130, 50, (1 << 24) - 1, ratio=1e-6, without=WALKING, channels_last=True),
}


def launches(huge: Huge, dtype: torch.dtype) -> list[Launch]:
    """All launches of the three functions, forward and backward."""
    b, p, c, w = huge.batch, huge.pairs, huge.channels, huge.window

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    x, y, grad, places = huge.clip(dtype), huge.windows(dtype), huge.windows(dtype), empty(b, p)
    weights = Weights(empty(c, 1, TAPS), empty(c), empty(c, c, 1), empty(c), empty(c), empty(c))
    everything, whole = (True,) * 10, grad.contiguous()
    as_many_programs_as_tiles = Target(0, 1 << 30)
    with use_target(as_many_programs_as_tiles), record_launches() as recorded:
        resample.resample(x, places, places, w)
        resample.gradients(grad, x, places, places, everything[:3])
        # restoring does all that the other does, and more
        for source in (Source.of_clips(x, places, places), Source.of_windows(y)):
            transform.forward(source, places, weights, w, EPS, restore=True)
        transform.backward(whole, Source.of_clips(x, places, places), places, weights, EPS, everything, restore=True)
        transform.backward(whole, Source.of_windows(y), places, weights, EPS, everything[:8], restore=True)
    return [launch for launch in recorded if launch.name not in huge.without]


def check_huge_tensors(name: str, programs: int = 5, dtype: torch.dtype = torch.float32) -> Sanitizer:
    """Runs `programs` programs of each launch of HUGE[name]; raises what the sanitizer finds."""
    huge = HUGE[name]
    contents = {"start_ptr": huge.start, "ratio_ptr": huge.ratio}
    with Sanitizer(contents=contents, programs=programs) as sanitizer:
        for launch in launches(huge, dtype):
            launch.kernel[launch.grid](**launch.arguments)
    return sanitizer
