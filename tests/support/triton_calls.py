"""The Triton backend below autograd: backward passes as its operators run them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from adaptive_window.kernels.ops import TONALITY_BLEND, WINDOWED_TONALITY
from adaptive_window.kernels.triton.backend import Calls

Grads = tuple[Tensor | None, ...]
Needs = tuple[bool, ...]


def windowed_tonality_backward(
    grad_out: Tensor, values: Sequence[Tensor], eps: float, needs: Needs, restore: str = "none"
) -> Grads:
    """Gradients of the ten tensors, None where `needs` is false."""
    calls = Calls(WINDOWED_TONALITY, tuple(values), (grad_out.shape[3], eps, restore))
    return calls.backward(grad_out, values, None, needs)


def tonality_blend_backward(
    grad_out: Tensor, values: Sequence[Tensor], eps: float, needs: Needs, restore: str = "none"
) -> Grads:
    """Gradients of the eight tensors, None where `needs` is false."""
    return Calls(TONALITY_BLEND, tuple(values), (eps, restore)).backward(grad_out, values, None, needs)
