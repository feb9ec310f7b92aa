"""Gradients of biases in compiled steps on CUDA: summed by the kernel that writes what is summed.

A bias's gradient is a sum over all rows, 76,800 of them at 96 windows of 800 frames. TorchInductor divides such a sum
into chunks as nothing else is divided, so that a kernel of its own reads again what one before has just written. Here
rows come in blocks, for what is elementwise as well: the sums over a block's rows, in float32, are one thing more that
the kernel stores, and few are left to add up. Between LayerNorms, whose kernels sum over all rows anyway, there are no
blocks (`add_dropped`).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = 32  # of a block: few enough to be had at once, and its sums are a sixteenth of its bytes


class _Biased(torch.autograd.Function):
    """(z, bias) -> z, to which the bias has been added: `[..., rows, d]`, and `[d]` or, spread, `[blocks, d]`."""

    @staticmethod
    def forward(z: Tensor, bias: Tensor) -> Tensor:
        return z.view(z.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.dtype, ctx.spread = inputs[1].dtype, inputs[1].dim() == 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        grad = grad.contiguous()
        # Strided anew, a tensor is written before it is read. Else the sum would be over what makes the gradient, not
        # over the gradient, and one could not take the other's place in memory.
        written = grad.as_strided(grad.shape, grad.stride())
        wide = torch.float64 if grad.dtype == torch.float64 else torch.float32
        sums = written.sum(-2, dtype=wide).flatten(0, -2)  # [blocks, d]
        return grad, (sums if ctx.spread else sums.sum(0)).to(ctx.dtype)


class _Dropped(torch.autograd.Function):
    """(r, spread, mask, factor) -> r, to which spread · mask · factor has been added, all `[rows, d]`.

    No mask keeps everything.
    """

    @staticmethod
    def forward(r: Tensor, spread: Tensor, mask: Tensor | None, factor: float) -> Tensor:
        return r.view(r.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None, float], output: Tensor) -> None:
        _, spread, mask, ctx.factor = inputs
        ctx.dtype = spread.dtype
        ctx.save_for_backward(mask)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        grad = grad.contiguous()
        written = grad.as_strided(grad.shape, grad.stride())  # as in `_Biased`
        return grad, (written if mask is None else written * mask * ctx.factor).to(ctx.dtype), None, None


def add_dropped(x: Tensor, z: Tensor, spread: Tensor, mask: Tensor | None, factor: float) -> Tensor:
    """x + z · mask · factor, all `[rows, d]`, where z has a bias, detached, whose gradient goes to `spread`.

    So that gradient is a sum over what arrives here. Between two LayerNorms that is written by one kernel with sums
    along rows, which cannot sum it over rows as well. The next one reads it for sums of both kinds, of which this is
    one more. What dropout leaves of it for z is read by products only.
    """
    return _Dropped.apply(x + (z if mask is None else z * mask * factor), spread, mask, factor)


def linear_in_blocks(x: Tensor, weight: Tensor, bias: Tensor, rows: int = ROWS) -> Tensor:
    """`F.linear(x, weight, bias)` of x `[n, channels]` as `[n / rows, rows, d]`, or `[1, n, d]` where n is no multiple.

    What follows, as far as it is elementwise, has to keep the shape.
    """
    return linear_as(x, weight, bias, blocks_of(x.shape[0], rows))


def linear_as(x: Tensor, weight: Tensor, bias: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`F.linear(x, weight, bias)` of x `[n, channels]`, as `[*shape, d]`: its last but one are rows of a block."""
    return _Biased.apply(F.linear(x, weight, bias.detach()).view(*shape, -1), bias)


def add_bias(x: Tensor, bias: Tensor, spread: Tensor | None = None) -> Tensor:
    """x + bias, in x's dtype, for x `[N, rows, d]` and a bias `[d]`; its gradient goes to `spread`, if there is one."""
    shape = (x.shape[0], *blocks_of(x.shape[1]), x.shape[2])
    z = x.view(shape) + bias.detach().to(x.dtype)
    return _Biased.apply(z, bias if spread is None else spread).flatten(1, 2)


def blocks_of(n: int, rows: int = ROWS) -> tuple[int, int]:
    """(blocks, rows of each) of n rows."""
    return (n // rows, rows) if n % rows == 0 else (1, n)


def spread_over(biases: list[Tensor], blocks: int) -> tuple[Tensor, ...]:
    """Each `[d]` as `[blocks, d]`, for `add_bias`: what is left of all their sums is then one sum."""
    return torch.cat(biases).expand(blocks, -1).split([len(bias) for bias in biases], dim=1)
