"""Which passes of `windows.c` make an operation, forward and backward; no autograd here.

Rows are frames with channels side by side. Few windows go through all passes at a time, in buffers that stay in the
processor's cache; the pointwise convolution's three matrix products between the passes are PyTorch's. N = B·P windows,
numbered clip by clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .library import TILE, call

BUFFER_BYTES = 5 * 2**18  # of one buffer; a pass reads and writes two to four. Half and twice as much are slower
VALUES_PER_THREAD = 2**15  # fewer are not worth waking a thread for: PyTorch's own grain


class Weights(NamedTuple):
    """The transform as the passes read it: taps `[K, C]`, mix `[C, C]` (out, in), and three rows `[C]`.

    The depthwise bias has gone through the mix into `bias`.
    """

    taps: Tensor
    mix: Tensor
    bias: Tensor
    gamma: Tensor
    beta: Tensor


Buffers = tuple[Tensor | None, ...]  # of a source's gradients: None where nobody asks


class Source(Protocol):
    """Where rows come from, and where their gradient goes."""

    def read(self, part: slice, y: Tensor) -> None:
        """Fill y `[n, W, C]` with the windows of `part`."""

    def accept(self, part: slice, dy: Tensor, into: Buffers) -> None:
        """Take the gradient of those windows."""


def _threads(values: int) -> int:
    return max(1, min(torch.get_num_threads(), values // VALUES_PER_THREAD))


def _turn(number: int, rows: int, columns: int, source: Tensor, target: Tensor) -> None:
    """The first `number` of source `[., rows, columns]` into target `[., columns, rows]`."""
    call("turn", source.dtype, _threads(number * rows * columns), number, rows, columns, source, target)


def turned(x: Tensor, out: Tensor | None = None) -> Tensor:
    """`[A, R, S]` -> `[A, S, R]`, both contiguous."""
    number, rows, columns = x.shape
    out = x.new_empty(number, columns, rows) if out is None else out
    _turn(number, rows, columns, x, out)
    return out


def _parts(windows: Tensor, buffers: int) -> tuple[list[slice], list[Tensor]]:
    """Which of the windows `[N, C, W]` go through the passes together, and as many buffers `[n, W, C]` for them."""
    count, channels, window = windows.shape
    size = max(1, BUFFER_BYTES // (window * channels * windows.element_size()))
    parts = [slice(first, min(count, first + size)) for first in range(0, count, size)]
    return parts, [windows.new_empty(min(count, size), window, channels) for _ in range(buffers)]


class Clips(NamedTuple):
    """Windows cut out of clips."""

    clips: Tensor  # [B, T, C]
    left: Tensor  # [N, W], int64: the frame before each position
    fraction: Tensor  # [N, W]: how far beyond it; NaN marks its whole window
    pairs: int

    @classmethod
    def at(cls, x: Tensor, positions: Tensor, memory: Sequence[Tensor | None] = (None, None, None)) -> Clips:
        """x `[B, C, T]` and positions `[B, P, W]` in frames, both contiguous; the three tensors lie in `memory`."""
        left = positions.nan_to_num(0.0).floor()
        fraction = (positions - left).to(x.dtype).flatten(0, 1)
        clips, index, beyond = memory
        index = left.long().flatten(0, 1) if index is None else index.copy_(left.flatten(0, 1))
        return cls(turned(x, clips), index, fraction if beyond is None else beyond.copy_(fraction), positions.shape[1])

    def _sizes(self, part: slice) -> tuple[int, ...]:
        number, window, (_, frames, channels) = part.stop - part.start, self.left.shape[1], self.clips.shape
        threads = _threads(number * window * channels)
        return threads, number, self.pairs, part.start, frames, window, channels

    def read(self, part: slice, y: Tensor) -> None:
        call("cut", y.dtype, *self._sizes(part), self.clips, self.left[part], self.fraction[part], y)

    def buffers(self, of_x: bool, of_positions: bool) -> Buffers:
        return (
            torch.zeros_like(self.clips) if of_x else None,
            torch.empty_like(self.fraction) if of_positions else None,
        )

    def accept(self, part: slice, dy: Tensor, into: Buffers) -> None:
        sizes, left, (dclips, dplace) = self._sizes(part), self.left[part], into
        if dplace is not None:
            call("place_backward", dy.dtype, *sizes, self.clips, left, dy, dplace[part])
        if dclips is not None:
            call("cut_backward", dy.dtype, *sizes, left, self.fraction[part], dy, dclips)


class Windows(NamedTuple):
    """Windows that are there already."""

    windows: Tensor  # [N, C, W]

    def read(self, part: slice, y: Tensor) -> None:
        number, channels, window = self.windows[part].shape
        _turn(number, channels, window, self.windows[part], y)

    def buffers(self, of_y: bool) -> Buffers:
        return (torch.empty_like(self.windows) if of_y else None,)

    def accept(self, part: slice, dy: Tensor, into: Buffers) -> None:
        (dwindows,) = into
        if dwindows is not None:
            number, channels, window = dwindows[part].shape
            _turn(number, window, channels, dy, dwindows[part])


def resample(clips: Clips) -> Tensor:
    """-> `[N, C, W]`."""
    (count, window), channels = clips.left.shape, clips.clips.shape[2]
    out = clips.clips.new_empty(count, channels, window)
    parts, (y,) = _parts(out, 1)
    for part in parts:
        clips.read(part, y)
        Windows(out).accept(part, y, (out,))
    return out


def resample_backward(grad_out: Tensor, clips: Clips, into: Buffers) -> None:
    """grad_out `[N, C, W]`, contiguous."""
    grad = Windows(grad_out)
    parts, (dy,) = _parts(grad_out, 1)
    for part in parts:
        grad.read(part, dy)
        clips.accept(part, dy, into)


def blend(
    source: Source,
    shape: tuple[int, int, int],
    strength: Tensor,
    weights: Weights,
    eps: float,
    restore: bool,
    memory: Sequence[Tensor | None] = (None, None),
) -> Tensor:
    """-> out `[N, C, W]`; into `memory` what backward needs: u `[N, W, C]` and each of its rows' moments `[N, W, 2]`.

    restore: each frame of y gives its own mean and spread to the normalized u.
    """
    _, channels, window = shape
    out = strength.new_empty(shape)
    parts, (y, z) = _parts(out, 2)
    u, moments = memory
    keep = u is not None
    if u is None or moments is None:
        u, moments = out.new_empty(len(y), window, channels), out.new_empty(len(y), window, 2)
    transposed = weights.mix.t()
    for part in parts:
        number = part.stop - part.start
        sizes = _threads(number * window * channels), number, window, channels
        here = part if keep else slice(0, number)
        source.read(part, y)
        call("convolve", out.dtype, *sizes, len(weights.taps), weights.taps, y, z)
        torch.mm(z[:number].flatten(0, 1), transposed, out=u[here].flatten(0, 1))
        call("blend", out.dtype, *sizes, restore, eps, weights.bias, strength[part], weights.gamma, weights.beta,
             u[here], y, out[part], moments[here])  # fmt: skip
    return out


def blend_backward(
    grad_out: Tensor,
    source: Source,
    into: Buffers,
    strength: Tensor,
    weights: Weights,
    eps: float,
    restore: bool,
    u: Tensor,
    moments: Tensor,
) -> tuple[Tensor, Weights]:
    """grad_out `[N, C, W]`, contiguous -> the gradients of strength `[N]` and weights; the source's go `into` buffers.

    u, moments: what `blend` kept.
    """
    count, channels, window = grad_out.shape
    taps, tiles = len(weights.taps), -(-window // TILE)
    empty = grad_out.new_empty
    sums, dstrength, dtaps = empty(count, tiles, 3, channels), empty(count, tiles), empty(count, tiles, taps, channels)
    dmix = torch.zeros_like(weights.mix)
    parts, (y, z, du, dy) = _parts(grad_out, 4)
    for part in parts:
        number = part.stop - part.start
        sizes = _threads(number * window * channels), number, window, channels
        source.read(part, y)
        call("convolve", y.dtype, *sizes, taps, weights.taps, y, z)
        call("blend_backward", y.dtype, *sizes, restore, eps, grad_out[part], u[part], moments[part], y,
             strength[part], weights.gamma, weights.beta, du, dy, sums[part], dstrength[part])  # fmt: skip
        du_rows, z_rows = du[:number].flatten(0, 1), z[:number].flatten(0, 1)
        dmix.addmm_(du_rows.t(), z_rows)
        torch.mm(du_rows, weights.mix, out=z_rows)  # z is not needed any more: here lies its gradient
        call("convolve_backward", y.dtype, *sizes, taps, weights.taps, y, z, dy, dtaps[part])
        source.accept(part, dy, into)
    dgamma, dbeta, dbias = sums.sum((0, 1))
    return dstrength.sum(1), Weights(dtaps.sum((0, 1)), dmix, dbias, dgamma, dbeta)
