"""For the tests of the compiled CPU kernels: calls with arguments, gradients, and the mark of tests that need them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from window_cases import small_calls

from adaptive_window.kernels.native import library

native_only = pytest.mark.skipif(library.why_not() is not None, reason=f"no compiled CPU kernels: {library.why_not()}")


def call(name: str, backend: str = "native") -> tuple[Callable[..., Tensor], list[Tensor]]:
    """A public function on small windows, with arguments."""
    function, make = small_calls(backend)[name]
    return function, make()


def gradients(function: Callable[..., Tensor], given: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    """The output, and the gradient of every argument."""
    leaves = [v.detach().clone().requires_grad_() for v in given]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))]
