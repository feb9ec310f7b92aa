"""The gate before every time: values and gradients against the specification in float64, on the same inputs.

A tensor's error is ‖got − true‖ / ‖true‖; NaN fails. Bounds per precision, for the output and for each gradient:

    float64    1e-10   rounding, 2e-16, over sums of up to 1e5 terms in any order
    float32    1e-4    3·2⁻¹⁸ for each of two products of three bfloat16 parts in a row is 2.3e-5; eager is under 1e-5.
                       Peers compute positions in float32: T·2⁻²⁴ frames of rounding, a few times over, are added
    tf32       5e-3    operands keep 2⁻¹¹ = 4.9e-4, twice per product, three products deep in the weights' gradients
    bfloat16   2e-2    and 5e-2 for gradients: peers round every intermediate to 2⁻⁹ = 2e-3, ours rounds once
    float16    as tf32
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from providers import EPS, NAMES, WITHOUT_PLACE_GRADIENT, Call, Case
from torch import Tensor

from adaptive_window.kernels import reference

BOUNDS = {
    "float64": (1e-10, 1e-10),
    "float32": (1e-4, 1e-4),
    "tf32": (5e-3, 5e-3),
    "bfloat16": (2e-2, 5e-2),
    "float16": (5e-3, 5e-3),
}


@dataclass
class Parity:
    """Relative errors by tensor, `"output"` first, and what is wrong, if anything."""

    errors: dict[str, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)  # gradients that a provider cannot have

    @property
    def passed(self) -> bool:
        return not self.failures

    def worst(self) -> float:
        return max(self.errors.values(), default=float("nan"))


def bounds(case: Case) -> tuple[float, float]:
    value, gradient = BOUNDS["tf32" if case.dtype == "float32" and case.tf32 else case.dtype]
    places = 0.0 if case.dtype == "float64" else 4 * case.frames * 2.0**-24
    return value + places, gradient + places


def error(got: Tensor, true: Tensor) -> float:
    return ((got.double() - true).norm() / true.norm()).item()


def truth(inputs: tuple[Tensor, ...], grad_out: Tensor, window: int) -> tuple[Tensor, list[Tensor]]:
    """Output and gradients of the specification, in float64 from the inputs as they are."""
    wide = [v.detach().double().requires_grad_() for v in inputs]
    out = reference.windowed_tonality(*wide, window, EPS)
    return out.detach(), list(torch.autograd.grad(out, wide, grad_out.double()))


def check(
    name: str,
    call: Call,
    case: Case,
    inputs: tuple[Tensor, ...],
    grad_out: Tensor,
    true: tuple[Tensor, list[Tensor]],
) -> Parity:
    """Runs the provider once, forward and backward."""
    result = Parity()
    out = call(*inputs)
    grads = torch.autograd.grad(out, inputs, grad_out, allow_unused=True)
    of_values, of_gradients = bounds(case)
    pairs = [("output", out.detach(), true[0]), *zip(NAMES, grads, true[1], strict=True)]
    for tensor, got, wanted in pairs:
        if got is None:
            excused = name in WITHOUT_PLACE_GRADIENT and tensor in ("start", "ratio")
            (result.absent if excused else result.failures).append(tensor if excused else f"no gradient for {tensor}")
            continue
        if got.shape != wanted.shape:
            result.failures.append(f"{tensor} has shape {list(got.shape)}, wanted {list(wanted.shape)}")
            continue
        result.errors[tensor] = error(got, wanted)
        bound = of_values if tensor == "output" else of_gradients
        if not result.errors[tensor] <= bound:
            result.failures.append(f"{tensor} is off by {result.errors[tensor]:.1e}, allowed {bound:.0e}")
    return result
