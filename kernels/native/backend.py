"""The face of the compiled CPU kernels (see `backends`): forward and backward on plain tensors, no autograd here.

Kept for backward: x in rows, where frames lie in it, and the pointwise product of the blend. Every gradient of the
blend is computed whoever asks, but those of x and the positions only when asked for. 16 bits are computed in float32
and rounded once, at the end.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..memory import settled
from . import launch
from .positions import place_slopes

KERNELS = "compiled CPU"  # in messages
Gradients = tuple[Tensor | None, ...]
_WHOLE = 16  # parts of what is kept begin at whole multiples of so many elements


def check(op: Any, tensors: tuple[Tensor, ...], numbers: tuple[Any, ...]) -> None:
    """Any size will do."""


def _parts(op: Any, tensors: tuple[Tensor, ...], numbers: tuple[Any, ...]) -> list[tuple[tuple[int, ...], bool]]:
    """What is kept of forward: shapes, and whether of frame numbers (int64)."""
    channels, window = tensors[0].shape[-2], op.window(tensors, numbers)
    batch, pairs = tensors[op.pairs].shape[:2]
    count = batch * pairs
    parts: list[tuple[tuple[int, ...], bool]] = []
    if op.name != "tonality_blend":  # of `launch.Clips`
        parts += [((batch, tensors[0].shape[-1], channels), False), ((count, window), True), ((count, window), False)]
    if op.name != "resample_windows":  # of `launch.blend`
        parts += [((count, window, channels), False), ((count, window, 2), False)]
    return parts


def _room(shape: tuple[int, ...], frames: bool, dtype: torch.dtype) -> int:
    """Elements of `dtype`."""
    wide = 8 // dtype.itemsize if frames else 1
    return -(-math.prod(shape) * wide // _WHOLE) * _WHOLE


def kept(op: Any, tensors: tuple[Tensor, ...], numbers: tuple[Any, ...]) -> int:
    """How many elements of the compute dtype forward keeps."""
    dtype = reference.compute_dtype(tensors[0].dtype)
    return sum(_room(*part, dtype) for part in _parts(op, tensors, numbers))


def _plain(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Its numbers in memory that C can read."""
    return value.to(dtype).contiguous()


def _prepared(weights: tuple[Tensor, ...], dtype: torch.dtype) -> launch.Weights:
    dw, db, pw, pb, gamma, beta = (_plain(w, dtype) for w in weights)
    mix = pw[:, :, 0]
    return launch.Weights(dw[:, 0].t().contiguous(), mix, torch.addmv(pb, mix, db), gamma, beta)


def _weight_gradients(d: launch.Weights, mix: Tensor, depthwise_bias: Tensor) -> tuple[Tensor, ...]:
    """Of the six weights; the bias of `launch.Weights` is pb + mix·db."""
    dmix = torch.addr(d.mix, d.bias, depthwise_bias)
    return d.taps.t()[:, None].contiguous(), mix.t() @ d.bias, dmix[:, :, None], d.bias, d.gamma, d.beta


class Calls:
    """The calls of one signature; see `backends`."""

    saves = True  # what is kept is large
    kernels = KERNELS

    def __init__(self, op: Any, tensors: tuple[Tensor, ...], numbers: tuple[Any, ...]) -> None:
        self.op = op
        self.clips, self.blends = op.name != "tonality_blend", op.name != "resample_windows"
        self.window = op.window(tensors, numbers)
        if self.blends:
            self.eps, self.restore = numbers[-2], numbers[-1] == "frame"
        self.dtype = reference.compute_dtype(tensors[0].dtype)
        self.parts = _parts(op, tensors, numbers)

    def _lay_out(self, memory: Tensor, *, fresh: bool = False) -> list[Tensor]:
        """The parts of what is kept, in one piece of memory."""
        found, first = [], 0
        for shape, frames in self.parts:
            size = _room(shape, frames, self.dtype)
            part = memory[first : first + size]
            part = part.view(torch.int64) if frames else part
            if fresh:
                part[math.prod(shape) :].zero_()  # an operator's result is the same in every run, to the last element
            found.append(part[: math.prod(shape)].view(shape))
            first += size
        return found

    def _settled(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(settled(name, value) for name, value in zip(self.op.tensors, tensors, strict=True))

    def forward(self, tensors: tuple[Tensor, ...], keep: bool) -> tuple[Tensor, Tensor | None]:
        """The output, and what backward needs beside the inputs."""
        with torch.no_grad(), reference.without_autocast("cpu"):
            tensors = self._settled(tensors)
            size = sum(_room(*part, self.dtype) for part in self.parts)
            memory = torch.empty(size, dtype=self.dtype) if keep else None
            kept = self._lay_out(memory, fresh=True) if memory is not None else [None] * len(self.parts)
            out = self._compute(tensors, kept)
            return out.to(tensors[0].dtype), memory

    def _compute(self, tensors: tuple[Tensor, ...], kept: list[Any]) -> Tensor:
        batch, pairs = tensors[self.op.pairs].shape[:2]
        shape = batch * pairs, tensors[0].shape[-2], self.window
        source: Any
        if self.clips:
            x, start, ratio = tensors[:3]
            positions = reference.window_positions(start.double(), ratio.double(), self.window, x.shape[-1])
            source = launch.Clips.at(_plain(x, self.dtype), positions.contiguous(), kept[:3])
        else:
            source = launch.Windows(_plain(tensors[0].flatten(0, 1), self.dtype))
        if not self.blends:
            out = launch.resample(source)
        else:
            strength, *weights = tensors[-7:]
            prepared = _prepared(tuple(weights), self.dtype)
            shares = _plain(strength.flatten(), self.dtype)
            out = launch.blend(source, shape, shares, prepared, self.eps, self.restore, kept[-2:])
        return out.view(batch, pairs, *shape[1:])

    def backward(
        self, grad: Tensor, tensors: tuple[Tensor, ...], kept: Tensor | None, needs: tuple[bool, ...]
    ) -> Gradients:
        """The gradients of `tensors`, None where nobody needs one."""
        assert kept is not None  # forward keeps it where a backward pass may follow
        with torch.no_grad(), reference.without_autocast("cpu"):  # backward may run beneath one too
            tensors = self._settled(tensors)
            grad = _plain(settled("the gradient", grad).flatten(0, 1), self.dtype)
            parts = self._lay_out(settled("what forward kept", kept))
            source: Any
            if self.clips:
                clips, left, fraction = parts[:3]
                source = launch.Clips(clips, left, fraction, tensors[1].shape[1])
                into = source.buffers(needs[0], needs[1] or needs[2])
            else:
                source = launch.Windows(_plain(tensors[0].flatten(0, 1), self.dtype))
                into = source.buffers(needs[0])
            others: Gradients = ()
            if not self.blends:
                launch.resample_backward(grad, source, into)
            else:
                strength, *weights = tensors[-7:]
                prepared = _prepared(tuple(weights), self.dtype)
                shares = _plain(strength.flatten(), self.dtype)
                dstrength, d = launch.blend_backward(
                    grad, source, into, shares, prepared, self.eps, self.restore, *parts[-2:]
                )
                depthwise_bias = _plain(weights[1], self.dtype)
                others = dstrength, *_weight_gradients(d, prepared.mix, depthwise_bias)
            first = self._source_gradients(into, tensors)
            found = (*first, *others)
            return tuple(
                g.to(v.dtype).view(v.shape) if need and g is not None else None
                for g, v, need in zip(found, tensors, needs, strict=True)
            )

    def _source_gradients(self, into: launch.Buffers, tensors: tuple[Tensor, ...]) -> Gradients:
        """Of x, start and ratio, or of y, from the buffers of the source."""
        if not self.clips:
            return into
        dclips, dplace = into
        dx = None if dclips is None else launch.turned(dclips)
        if dplace is None:
            return dx, None, None
        x, start, ratio = tensors[:3]
        slopes = place_slopes(start.double(), ratio.double(), self.window, x.shape[-1])
        by_place = dplace.double().view(slopes[0].shape)
        return dx, *((by_place * slope).sum(-1) for slope in slopes)
