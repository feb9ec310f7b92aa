"""The differentiable operations, once for all backends: one forward and one backward each, and what is refused.

In eager mode a call goes through `torch.autograd.Function`, the cheapest way there is, straight to its backend. What is
traced (`torch.compile`, `torch.export`), watched by a dispatch mode or mapped by `vmap` meets an operator instead,
`torch.ops.adaptive_window.*`, which PyTorch keeps as one node: its fake implementation states shapes, dtypes and
strides, and backward operators return only the gradients that are asked for.

Forward operators return the output, and whatever of forward their backward pass needs beside the inputs, as one tensor.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import backends, reference
from .memory import settled
from .native import library
from .validation import NO_SECOND_DERIVATIVE
from .weights import Weights

Tensors = tuple[Tensor, ...]
Numbers = tuple[Any, ...]
KNOWN = 512  # signatures whose calls are remembered; the oldest is forgotten


@dataclass(frozen=True)
class Op:
    """A function of tensors, all of them differentiable, and numbers (or words)."""

    name: str
    tensors: tuple[str, ...]
    numbers: tuple[str, ...]  # with types, as in an operator's schema
    window: Callable[[Tensors, Numbers], int]
    pairs: int  # the tensor whose first two sizes are B and P

    def result(self, tensors: Tensors, numbers: Numbers) -> Tensor:
        """An output without values: [B, P, C, W], contiguous, in the dtype of the first tensor."""
        batch, pairs = tensors[self.pairs].shape[:2]
        return tensors[0].new_empty(batch, pairs, tensors[0].shape[-2], self.window(tensors, numbers))


RESAMPLE_WINDOWS = Op("resample_windows", ("x", "start", "ratio"), ("SymInt window",), lambda _, n: n[0], 1)
TONALITY_BLEND = Op(
    "tonality_blend", ("y", "strength", *Weights._fields), ("float eps", "str restore"), lambda t, _: t[0].shape[-1], 0
)
WINDOWED_TONALITY = Op(
    "windowed_tonality",
    ("x", "start", "ratio", "strength", *Weights._fields),
    ("SymInt window", "float eps", "str restore"),
    lambda _, n: n[0],
    1,
)
OPS = {op.name: op for op in (RESAMPLE_WINDOWS, TONALITY_BLEND, WINDOWED_TONALITY)}


# ------------------------------------------------------------------ eager


class _Gradient(torch.autograd.Function):
    """A backend's backward pass where a graph of it is asked for: its derivative raises instead of being zero."""

    @staticmethod
    def forward(ctx: Any, compute: Callable[..., tuple[Tensor | None, ...]], name: str, *tensors: Tensor) -> Any:
        ctx.name = name
        return compute()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise NotImplementedError(NO_SECOND_DERIVATIVE.format(ctx.name))


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, calls: Any, *tensors: Tensor) -> Tensor:
        out, kept = calls.forward(tensors, True)
        ctx.calls = calls
        if calls.saves:  # large: hooks of saved tensors (checkpoints, offloading) have to see it
            ctx.save_for_backward(*tensors, kept)
        else:
            ctx.kept = kept
            ctx.save_for_backward(*tensors)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        calls, tensors = ctx.calls, ctx.saved_tensors
        if calls.saves:
            *tensors, kept = tensors
            tensors = tuple(tensors)
        else:
            kept = ctx.kept
        needs = ctx.needs_input_grad[1:]
        if torch.is_grad_enabled():
            compute = partial(calls.backward, grad, tensors, kept, needs)
            return None, *_Gradient.apply(compute, calls.kernels, grad, *tensors)
        return None, *calls.backward(grad, tensors, kept, needs)


_known: dict[Any, Any] = {}
_learning = threading.Lock()


def _forked() -> None:
    global _learning
    _learning = threading.Lock()  # whoever held it is not in this process


os.register_at_fork(after_in_child=_forked)


def _signature(op: Op, tensors: Tensors, numbers: Numbers, backend: str) -> Any:
    """Calls of equal signature pass the same checks and run the same way."""
    described = [(v.__class__, v.shape, v.stride(), v.dtype, v.device, v.is_neg()) for v in tensors]
    kinds = [n.__class__ for n in numbers]  # 1, 1.0 and True are equal
    return (op.name, backend, numbers, *kinds, *described, backends.INTERPRETED, library.why_not())


def known(op: Op, tensors: Tensors, numbers: Numbers, backend: str) -> Any:
    """The calls of this signature, if it was met before and a kernel may simply be started; else None."""
    if torch.compiler.is_compiling() or backends.watched():
        return None
    try:
        return _known.get(_signature(op, tensors, numbers, backend))
    except (AttributeError, TypeError, RuntimeError):  # not tensors, not dense, not hashable: the checks name it
        return None


def _learn(op: Op, tensors: Tensors, numbers: Numbers, backend: str, calls: Any) -> None:
    with _learning:
        while len(_known) >= KNOWN:
            del _known[next(iter(_known))]
        _known[_signature(op, tensors, numbers, backend)] = calls


def forget() -> None:
    """Forget every signature, with the plans that hang on it."""
    with _learning:
        _known.clear()


class _Reference:
    """Calls of one signature by the specification, whose gradients are PyTorch's."""

    def __init__(self, op: Op, numbers: Numbers) -> None:
        self.function, self.numbers = getattr(reference, op.name), numbers

    def run(self, tensors: Tensors) -> Tensor:
        out: Tensor = self.function(*tensors, *self.numbers)
        return out


def again(calls: Any, tensors: Tensors) -> Tensor:
    """A call of a known signature."""
    if calls.__class__ is _Reference:
        return calls.run(tensors)
    if torch.is_grad_enabled():
        for value in tensors:
            if value.requires_grad:
                return _Differentiable.apply(calls, *tensors)
    return calls.forward(tensors, False)[0]


def run(op: Op, tensors: Tensors, numbers: Numbers, backend: str) -> Tensor:
    """A call whose arguments have been checked."""
    taps = tensors[op.tensors.index("depthwise_weight")].shape[-1] if "depthwise_weight" in op.tensors else 1
    chosen = backends.choose_backend(backend, tensors, taps)
    apart = torch.compiler.is_compiling() or backends.watched()
    calls: Any
    if chosen == "reference":
        calls = _Reference(op, numbers)
        if apart:
            return calls.run(tensors)
    else:
        backend_module = backends.module(chosen)
        backend_module.check(op, tensors, numbers)
        if apart or any(type(value) not in (Tensor, torch.nn.Parameter) for value in tensors):
            keep = torch.is_grad_enabled() and any(value.requires_grad for value in tensors)
            return OPERATORS[op.name](*tensors, *numbers, chosen, keep)[0]
        given = tensors
        tensors = tuple(settled(name, value) for name, value in zip(op.tensors, tensors, strict=True))
        calls = backend_module.Calls(op, tensors, numbers)
        if any(value is not before for value, before in zip(tensors, given, strict=True)):
            return again(calls, tensors)
    _learn(op, tensors, numbers, backend, calls)
    return again(calls, tensors)


# ------------------------------------------------------------------ traced


def _owned(grads: tuple[Tensor | None, ...]) -> list[Tensor]:
    """Those that exist, contiguous and each in memory of its own, as an operator must return them."""
    found = []
    for grad in grads:
        if grad is not None:
            alone = grad.is_contiguous() and grad.untyped_storage().nbytes() == grad.numel() * grad.element_size()
            found.append(grad if alone else grad.clone(memory_format=torch.contiguous_format))
    return found


_LIBRARY = torch.library.Library("adaptive_window", "DEF")
OPERATORS: dict[str, Any] = {}


def _register(op: Op) -> None:
    """The operators `op.name` and `op.name` + "_backward": schemas, implementations, fakes, gradient rules."""
    count = len(op.tensors)
    tensors = ", ".join(f"Tensor {name}" for name in op.tensors)
    numbers = ", ".join(op.numbers)
    tags = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order)
    forward_name, backward_name = op.name, f"{op.name}_backward"
    _LIBRARY.define(f"{forward_name}({tensors}, {numbers}, str backend, bool keep) -> (Tensor, Tensor)", tags=tags)
    _LIBRARY.define(
        f"{backward_name}(Tensor grad, {tensors}, Tensor kept, {numbers}, str backend, bool[] needs) -> Tensor[]",
        tags=tags,
    )

    def calls_of(backend: str, given: Tensors, numbers: Numbers) -> Any:
        named = zip(op.tensors, given, strict=True)
        given = tuple(settled(name, value) for name, value in named)
        return backends.module(backend).Calls(op, given, numbers), given

    def forward(*given: Any) -> tuple[Tensor, Tensor]:
        *others, backend, keep = given
        calls, tensors = calls_of(backend, tuple(others[:count]), tuple(others[count:]))
        out, kept = calls.forward(tensors, keep and calls.saves)
        return out, tensors[0].new_empty(0) if kept is None else kept

    def backward(grad: Tensor, *given: Any) -> list[Tensor]:
        *others, backend, needs = given
        calls, tensors = calls_of(backend, tuple(others[:count]), tuple(others[count + 1 :]))
        kept = others[count] if others[count].numel() else None
        return _owned(calls.backward(settled("the gradient", grad), tensors, kept, tuple(needs)))

    def fake_forward(*given: Any) -> tuple[Tensor, Tensor]:
        *others, backend, keep = given
        tensors, numbers = tuple(others[:count]), tuple(others[count:])
        size = backends.module(backend).kept(op, tensors, numbers) if keep else 0
        kept = tensors[0].new_empty(size, dtype=reference.compute_dtype(tensors[0].dtype) if size else None)
        return op.result(tensors, numbers), kept

    def fake_backward(grad: Tensor, *given: Any) -> list[Tensor]:
        return [
            torch.empty(value.shape, dtype=value.dtype, device=value.device)
            for value, need in zip(given[:count], given[-1], strict=True)
            if need
        ]

    for name, function, fake in (
        (forward_name, forward, fake_forward),
        (backward_name, backward, fake_backward),
    ):
        _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
        torch.library.register_fake(f"adaptive_window::{name}", fake, lib=_LIBRARY)
        OPERATORS[name] = getattr(torch.ops.adaptive_window, name).default

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs[:count], output[1])
        ctx.numbers = inputs[count:-1]
        ctx.mark_non_differentiable(output[1])

    def gradient(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        *tensors, kept = ctx.saved_tensors
        needs = list(ctx.needs_input_grad[:count])
        found = iter(OPERATORS[backward_name](grad, *tensors, kept, *ctx.numbers, needs))
        return (*(next(found) if need else None for need in needs), *(None for _ in ctx.numbers), None)

    def refuse(ctx: Any, *grads: Any) -> None:
        raise NotImplementedError(NO_SECOND_DERIVATIVE.format(ctx.kernels))

    def remember(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.kernels = backends.module(inputs[-2]).KERNELS

    qualified = f"adaptive_window::{backward_name}"
    torch.library.register_autograd(
        f"adaptive_window::{forward_name}", gradient, setup_context=setup_context, lib=_LIBRARY
    )
    torch.library.register_autograd(qualified, refuse, setup_context=remember, lib=_LIBRARY)


for _op in OPS.values():
    _register(_op)
