"""The face of the Triton kernels (see `backends`): the calls of one signature, each planned once.

A plan hangs on what its signature does not say: which gradients are asked for, how addresses are aligned, how PyTorch's
switches want products computed. Forward keeps the prepared weights for backward, and with them the precision it took.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..memory import addresses, extent, settled
from ..weights import Weights
from . import resample, transform
from .launch import _recorders, precision_of, recorded, target_of
from .plan import Bound, Plan
from .source import Source

KERNELS = "Triton"  # in messages
COMPILED = {"cuda"}  # device types; on others, kernels are interpreted
PLANS = 64  # of one signature; more and all are made anew
Gradients = tuple[Tensor | None, ...]
MAX_FRAMES = 2**24  # frame numbers are exact in float32 below it
MAX_CHANNELS = 1024  # one program sums a row of so many when gradients are finished


def check(op: Any, tensors: tuple[Tensor, ...], numbers: tuple[Any, ...]) -> None:
    """What the kernels cannot count, or hold."""
    name, x, window = op.tensors[0], tensors[0], op.window(tensors, numbers)
    channels = x.shape[-2]
    if channels > MAX_CHANNELS:
        raise ValueError(
            f"{name} must have at most {MAX_CHANNELS} channels for backend='triton', got C = {channels} in shape "
            f"{list(x.shape)}; use backend='reference'"
        )
    if x.shape[-1] >= MAX_FRAMES:
        raise ValueError(
            f"{name} must have fewer than 2²⁴ frames for backend='triton', got shape {list(x.shape)}; cut it into clips"
        )
    if window >= MAX_FRAMES:
        raise ValueError(f"window must be less than 2²⁴ frames for backend='triton', got {window}")


def kept(op: Any, tensors: tuple[Tensor, ...], numbers: tuple[Any, ...]) -> int:
    """A traced backward pass prepares the weights itself: PyTorch's switches may have changed until it runs."""
    return 0


_planning = threading.Lock()


def _forked() -> None:
    global _planning
    _planning = threading.Lock()


os.register_at_fork(after_in_child=_forked)


class Kept(NamedTuple):
    """What forward leaves to its backward pass."""

    memory: Tensor  # the prepared weights, as `prepare` lays them out
    precision: str  # of the product that they were prepared for


class Calls:
    """The calls of one signature; see `backends`."""

    saves = False  # what is kept is no more than the weights once more
    kernels = KERNELS

    def __init__(self, op: Any, tensors: tuple[Tensor, ...], numbers: tuple[Any, ...]) -> None:
        self.op = op
        self.window = op.window(tensors, numbers)
        self.blends = op.name != "resample_windows"
        if self.blends:
            self.eps, self.restore = numbers[-2], numbers[-1] == "frame"
        self.dtype, self.device = tensors[0].dtype, tensors[0].device
        self.extents = [extent(value) for value in tensors]
        # kernels take the signal with its strides, everything else in one piece
        self.scattered = [n for n, value in enumerate(tensors) if n and not value.is_contiguous()]
        batch, pairs = tensors[op.pairs].shape[:2]
        self.grad_bytes = batch * pairs * tensors[0].shape[-2] * self.window * self.dtype.itemsize
        self.plans: dict[Any, Any] = {}

    def forward(self, tensors: Sequence[Tensor], keep: bool) -> tuple[Tensor, Kept | None]:
        """The output, and what backward takes beside the inputs."""
        inputs, found = self._inputs(tensors)
        target = target_of(self.device)
        precision = precision_of(self.dtype, target)
        keep = keep and self.blends

        def build(*twins: Tensor) -> Sequence[Tensor | None]:
            planned = replace(target, precision=precision)
            if not self.blends:
                x, start, ratio = twins
                return (resample.resample(x, start, ratio, self.window, planned),)
            parts = self._parts(twins)
            return transform.forward(*parts, self.window, self.eps, planned, restore=self.restore, keep=keep)

        out, *kept = self._run((keep, target.arch, target.processors, precision), build, inputs, found)
        assert out is not None
        return out, Kept(kept[0], precision) if keep and kept[0] is not None else None

    def backward(
        self, grad: Tensor, tensors: Sequence[Tensor], kept: Kept | None, needs: tuple[bool, ...]
    ) -> Gradients:
        """The gradients of `tensors`, None where nobody needs one."""
        inputs, found = self._inputs(tensors)
        if self.blends and not grad.is_contiguous():
            grad = grad.contiguous()
        size = self.grad_bytes if grad.is_contiguous() else extent(grad)
        at = addresses((grad,), (size,))
        if at is None or grad.is_neg():
            grad = settled("the gradient", grad)
            at = [grad.data_ptr()]
        target = target_of(self.device)
        if kept is None:
            precision, memory = precision_of(self.dtype, target), []
        else:
            precision, memory = kept.precision, [kept.memory]
            found.append(kept.memory.data_ptr())
        key = (needs, target.arch, target.processors, precision, not memory, None if self.blends else grad.stride())

        def build(grad: Tensor, *twins: Tensor) -> Sequence[Tensor | None]:
            planned = replace(target, precision=precision)
            if not self.blends:
                x, start, ratio = twins
                return resample.gradients(grad, x, start, ratio, needs, planned)
            given = twins[len(tensors)] if memory else None
            parts = self._parts(twins[: len(tensors)])
            return transform.backward(grad, *parts, self.eps, needs, planned, given, restore=self.restore)

        return tuple(self._run(key, build, [grad, *inputs, *memory], at + found))

    def _parts(self, twins: Sequence[Tensor]) -> tuple[Source, Tensor, Weights]:
        clips = self.op.name != "tonality_blend"
        source = Source.of_clips(*twins[:3]) if clips else Source.of_windows(twins[0])
        return source, twins[-7], Weights(*twins[-6:])

    def _inputs(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[int]]:
        """The tensors as plans take them, and their addresses."""
        found = addresses(tensors, self.extents)
        inputs = list(tensors)
        if found is None:
            inputs = [settled(name, value) for name, value in zip(self.op.tensors, tensors, strict=True)]
            found = [value.data_ptr() for value in inputs]
        for n in self.scattered:
            inputs[n] = inputs[n].contiguous()
            found[n] = inputs[n].data_ptr()
        return inputs, found

    def _run(self, key: Any, build: Callable[..., Any], inputs: list[Tensor], found: list[int]) -> list[Tensor | None]:
        bits = 0
        for address in found:
            bits |= address
        if bits & 15:
            key = (*key, *[address & 15 for address in found])
        plan = self.plans.get(key)
        if plan is None:
            plan = self._plan(key, build, inputs, found)
        if not isinstance(plan, Bound):
            return plan.interpret(inputs)
        if _recorders:
            recorded(plan.plan.launches)
        index = self.device.index
        if index is not None and torch.cuda.current_device() != index:
            with torch.cuda.device(index):
                return plan(inputs, found)
        return plan(inputs, found)

    def _plan(self, key: Any, build: Callable[..., Any], inputs: list[Tensor], found: list[int]) -> Plan | Bound:
        with _planning:
            made = Plan(build, inputs)
            plan: Plan | Bound = made
            if self.device.type in COMPILED:
                with torch.cuda.device_of(inputs[0]):
                    plan = Bound(made, found)
            if len(self.plans) >= PLANS:
                self.plans.clear()
            self.plans[key] = plan
        return plan
