"""Gradient rules of the operators: what is saved (inputs, nothing else), what is asked for, and what is refused.

A backward operator is not differentiable itself: asking for a second derivative raises instead of returning zeros.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from . import ops
from .backends import has_tangent
from .validation import NO_SECOND_DERIVATIVE, check_triton_sizes


def _refuse_forward_mode(*tensors: Tensor) -> None:
    """An operator without a forward-mode rule would pass a tangent of zeros on, silently."""
    if has_tangent(*tensors):
        raise NotImplementedError(
            "the Triton kernels have no forward-mode derivative (torch.func.jvp, torch.autograd.forward_ad): use "
            "backward (of the three functions, tonality_blend alone has one, with backend='reference')"
        )


def resample_windows(x: Tensor, start: Tensor, ratio: Tensor, window: int) -> Tensor:
    check_triton_sizes("x", x, window)
    _refuse_forward_mode(x, start, ratio)
    return ops.resample_windows(x, start, ratio, window)


def tonality_blend(y: Tensor, strength: Tensor, weights: tuple[Tensor, ...], eps: float) -> Tensor:
    check_triton_sizes("y", y, y.shape[3])
    _refuse_forward_mode(y, strength, *weights)
    return ops.tonality_blend(y, strength, *weights, eps)


def windowed_tonality(
    x: Tensor,
    start: Tensor,
    ratio: Tensor,
    strength: Tensor,
    weights: tuple[Tensor, ...],
    window: int,
    eps: float,
) -> Tensor:
    check_triton_sizes("x", x, window)
    _refuse_forward_mode(x, start, ratio, strength, *weights)
    return ops.windowed_tonality(x, start, ratio, strength, *weights, window, eps)


def _differentiate(forward: Any, backward: Callable[..., list[Tensor]]) -> None:
    """Make `backward` the gradient of the operator `forward`, whose tensors come first, followed by numbers.

    `backward(grad_out, *tensors, *numbers, needs)` returns the gradients of the tensors whose flag in `needs` is set.
    """

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        tensors = [v for v in inputs if isinstance(v, Tensor)]
        ctx.save_for_backward(*tensors)
        ctx.numbers = inputs[len(tensors) :]

    def gradient(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        needs = list(ctx.needs_input_grad[: len(tensors)])
        grads = iter(backward(grad_out, *tensors, *ctx.numbers, needs))
        return (*(next(grads) if need else None for need in needs), *(None for _ in ctx.numbers))

    forward.register_autograd(gradient, setup_context=setup_context)


def _refuse_second_derivative(ctx: Any, *grads: Any) -> None:
    raise NotImplementedError(NO_SECOND_DERIVATIVE.format("Triton"))


_differentiate(
    ops.resample_windows,
    lambda grad_out, x, start, ratio, window, needs: ops.resample_windows_backward(grad_out, x, start, ratio, needs),
)
_differentiate(ops.tonality_blend, ops.tonality_blend_backward)
_differentiate(ops.windowed_tonality, ops.windowed_tonality_backward)
for _backward in (ops.resample_windows_backward, ops.tonality_blend_backward, ops.windowed_tonality_backward):
    _backward.register_autograd(_refuse_second_derivative)
