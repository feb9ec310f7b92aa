"""Calls of the public functions that stand for all others when kernels are compiled without a GPU: sizes, layouts, and
the launches that they lead to. `inspect_kernels` compiles these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .h100 import PROCESSORS

if TYPE_CHECKING:
    from adaptive_window.kernels.triton.launch import Launch

EPS = 1e-5


@dataclass(frozen=True)
class Shape:
    """Sizes of one call, and how x lies in memory."""

    B: int = 32
    P: int = 3
    C: int = 128
    T: int = 1200
    W: int = 800
    K: int = 7
    row: int | None = None  # elements from one channel of x to the next, where that is not T
    channels_last: bool = False  # x and y: neighbours in memory are channels

    def clips(self, dtype: torch.dtype) -> torch.Tensor:
        """x [B, C, T], without memory."""
        if self.channels_last:
            return torch.empty(self.B, self.T, self.C, dtype=dtype, device="meta").transpose(1, 2)
        return torch.empty(self.B, self.C, self.row or self.T, dtype=dtype, device="meta")[..., : self.T]

    def windows(self, dtype: torch.dtype) -> torch.Tensor:
        """y [B, P, C, W], without memory."""
        if self.channels_last:
            return torch.empty(self.B, self.P, self.W, self.C, dtype=dtype, device="meta").transpose(2, 3)
        return torch.empty(self.B, self.P, self.C, self.W, dtype=dtype, device="meta")


SHAPES = {
    "nominal": Shape(),
    "75 fps": Shape(T=1800, W=1200),
    "odd": Shape(
        T=1199, W=797, row=1203
    ),  # nothing divides by anything: no two loads share their addresses' arithmetic
    "96 channels": Shape(C=96),
    "64 channels": Shape(C=64),
    "16 channels": Shape(C=16, K=3),
    "channels last": Shape(channels_last=True),
    "160 channels": Shape(C=160),
}
NOMINAL = {name: getattr(SHAPES["nominal"], name) for name in "BPCTWK"}


@dataclass(frozen=True)
class Specimen:
    """One launch of a call, and what it belongs to."""

    shape: str
    op: str  # "windowed_tonality forward", ...
    dtype: str
    precision: str  # of the pointwise product
    window_elements: int  # B·P·C·W
    launch: Launch

    def named(self, only: Sequence[str]) -> bool:
        """Whether each of `only` is this one's op (or its beginning), kernel, dtype or precision."""
        mine = (self.launch.name, self.dtype, self.precision)
        return all(name in mine or self.op.startswith(name) for name in only)

    def key(self) -> tuple[Any, ...]:
        """Equal keys compile to the same code, of which there is the same to tell."""
        described = tuple((name, _describe(value)) for name, value in sorted(self.launch.arguments.items()))
        return self.launch.name, self.launch.num_warps, self.launch.num_stages, self.window_elements, described


def _describe(value: Any) -> str:
    return str(value.dtype) if isinstance(value, torch.Tensor) else repr(value)


def _calls(shape: Shape, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """Each public function's forward and whole backward, on tensors that take no memory."""
    from adaptive_window.kernels.triton import resample, transform
    from adaptive_window.kernels.triton.source import Source
    from adaptive_window.kernels.weights import Weights

    def empty(*sizes: int) -> torch.Tensor:
        return torch.empty(sizes, dtype=dtype, device="meta")

    b, p, c, w, k = (getattr(shape, name) for name in "BPCWK")
    x, y, grad = shape.clips(dtype), shape.windows(dtype), empty(b, p, c, w)
    start, ratio, strength = (empty(b, p) for _ in range(3))
    weights = Weights(empty(c, 1, k), empty(c), empty(c, c, 1), empty(c), empty(c), empty(c))
    windowed, blend = Source.of_clips(x, start, ratio), Source.of_windows(y)

    everything = (True,) * 10

    def forward(source: Source, restore: bool, keep: bool = True) -> object:
        return transform.forward(source, strength, weights, w, EPS, restore=restore, keep=keep)

    def backward(source: Source, needs: tuple[bool, ...], restore: bool) -> object:
        return transform.backward(grad, source, strength, weights, EPS, needs, restore=restore)

    return {
        "windowed_tonality forward": lambda: forward(windowed, False),
        "composing windowed_tonality forward": lambda: forward(windowed, False, keep=False),
        "windowed_tonality backward": lambda: backward(windowed, everything, False),
        "tonality_blend forward": lambda: forward(blend, False),
        "tonality_blend backward": lambda: backward(blend, everything[:8], False),
        "restoring windowed_tonality forward": lambda: forward(windowed, True),
        "restoring windowed_tonality backward": lambda: backward(windowed, everything, True),
        "restoring tonality_blend forward": lambda: forward(blend, True),
        "restoring tonality_blend backward": lambda: backward(blend, everything[:8], True),
        "resample_windows forward": lambda: resample.resample(x, start, ratio, w),
        "resample_windows backward": lambda: resample.gradients(grad, x, start, ratio, everything[:3]),
    }


def specimens(arch: int, shapes: Sequence[str] = ("nominal",)) -> list[Specimen]:
    """Every launch of every public function, forward and backward, in every dtype and precision, for each shape."""
    from adaptive_window.kernels.triton.configurations import PRECISIONS, Target
    from adaptive_window.kernels.triton.launch import record_launches, use_target

    found = []
    for name in shapes:
        shape = SHAPES[name]
        elements = shape.B * shape.P * shape.C * shape.W
        for dtype, precisions in PRECISIONS.items():
            for precision in precisions:
                if precision == "ieee":  # the interpreter's
                    continue
                for op, call in _calls(shape, getattr(torch, dtype)).items():
                    with use_target(Target(arch, PROCESSORS, precision)), record_launches() as launches:
                        call()
                    found += [Specimen(name, op, dtype, precision, elements, launch) for launch in launches]
    return found
