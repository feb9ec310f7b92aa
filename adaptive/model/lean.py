"""Pieces of the composer that keep for the backward pass only what cannot be had again cheaply.

PyTorch's layers, one by one, keep a LayerNorm's input and its output, a GELU's input, its output, what dropout left of
it and the mask; a LeakyReLU's input and its output. Here the cheap ones (elementwise, and LayerNorm from its kept
statistics) are computed again in the backward pass, from the one tensor that is kept:

    norm_linear          keeps r                       y = norm(r), z = linear(y)
    add_dropped          keeps a seed                  x + dropout(o)
    gelu_dropout_linear  keeps h                       linear(dropout(gelu(h)))
    weighted_linear      keeps the components          linear of components times their weights
    leaky_relu           keeps its output, or signs

Matrix products are never repeated. Each piece has one formula (`_plain`), which second derivatives are taken through.
They serve plain layers in eager training; what is hooked, replaced, compiled or transformed is called as modules.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from adaptive_window.kernels.reference import without_autocast

from . import convolution
from .dropout import Mask, draw

aten = torch.ops.aten


def can_be_lean(x: Tensor) -> bool:
    """Whether gradients are taken, eagerly and by nothing that has to see into the pieces."""
    return (
        torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and torch._C._functorch.peek_interpreter_stack() is None
        and forward_ad.unpack_dual(x).tangent is None
    )


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast computes products in, None outside it."""
    device = x.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return None
    return None if x.dtype == torch.float64 else torch.get_autocast_dtype(device)


def _products(x: Tensor, *tensors: Tensor | None) -> list[Tensor | None]:
    """Operands of a product as autocast would have them."""
    dtype = autocast_dtype(x)
    return [t if t is None or dtype is None else t.to(dtype) for t in tensors]


class _Piece(torch.autograd.Function):
    """`_plain(*tensors, **options)` with a backward pass of its own, and second derivatives through the formula."""

    @staticmethod
    def _plain(options: Any, *tensors: Tensor) -> Any:
        raise NotImplementedError

    @classmethod
    def _again(cls, ctx: Any, tensors: Sequence[Tensor], grads: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        """The gradients, differentiable: autograd's own of the formula."""
        wanted = [t for t, need in zip(tensors, ctx.needs_input_grad[1:], strict=True) if need]
        with torch.enable_grad(), _no_autocast(tensors[0]):
            outputs = cls._plain(ctx.options, *tensors)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            found = iter(torch.autograd.grad(outputs, wanted, grads, create_graph=True, materialize_grads=True))
        return (None, *(next(found) if need else None for need in ctx.needs_input_grad[1:]))


def _no_autocast(x: Tensor) -> AbstractContextManager[object]:
    return without_autocast(x.device.type)


def _linear_grads(
    needs: Sequence[bool], x: Tensor, weight: Tensor, grad: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Of x, the weight and the bias of `linear(x)`; x and grad with the features last."""
    rows = grad.reshape(-1, grad.shape[-1])
    grad_x = (rows @ weight).view(x.shape) if needs[0] else None
    grad_weight = rows.t() @ x.reshape(-1, x.shape[-1]) if needs[1] else None
    return grad_x, grad_weight, rows.sum(0) if needs[2] else None


class _NormLinear(_Piece):
    @staticmethod
    def _plain(options: Any, *tensors: Tensor) -> Any:
        r, gamma, beta, weight, bias = tensors
        y = F.layer_norm(r, gamma.shape, gamma, beta, options[0])
        return y, F.linear(y.to(options[1]), weight, bias)

    @staticmethod
    def forward(
        ctx: Any,
        options: tuple[float, torch.dtype],
        r: Tensor,
        gamma: Tensor,
        beta: Tensor,
        weight: Tensor,
        bias: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.options = options
        with _no_autocast(r):
            y, mean, rstd = torch.native_layer_norm(r, gamma.shape, gamma, beta, options[0])
            z = F.linear(y.to(options[1]), weight, bias)
        ctx.save_for_backward(r, gamma, beta, weight, bias, mean, rstd)
        return y, z

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, grad_z: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, mean, rstd = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _NormLinear._again(ctx, tensors, (grad_y, grad_z))
        r, gamma, beta, weight, _ = tensors
        eps, dtype = ctx.options
        _, need_r, need_gamma, need_beta, need_weight, need_bias = ctx.needs_input_grad
        with _no_autocast(r):
            y = torch.native_layer_norm(r, gamma.shape, gamma, beta, eps)[0].to(dtype) if need_weight else r
            through, by_weight, by_bias = _linear_grads((True, need_weight, need_bias), y, weight, grad_z)
            assert through is not None  # asked for
            by_norm = aten.native_layer_norm_backward(
                grad_y + through, r, gamma.shape, mean, rstd, gamma, beta, (need_r, need_gamma, need_beta)
            )
        return (None, *(g if need else None for g, need in zip(by_norm, ctx.needs_input_grad[1:4], strict=True)),
                by_weight, by_bias)  # fmt: skip


def norm_linear(r: Tensor, norm: nn.LayerNorm, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """`y = norm(r)` and `linear(y)`."""
    r = r.to(norm.weight.dtype)  # autocast normalizes in the weights' precision
    weight, bias = _products(r, weight, bias)  # type: ignore[assignment]  # the weight is never None
    return _NormLinear.apply((norm.eps, weight.dtype), r, norm.weight, norm.bias, weight, bias)


class _AddDropped(_Piece):
    @staticmethod
    def _plain(options: Any, *tensors: Tensor) -> Any:
        x, o = tensors
        return x + o * options.of(o) * options.factor

    @staticmethod
    def forward(ctx: Any, mask: Mask, drawn: Tensor, x: Tensor, o: Tensor) -> Tensor:
        ctx.options, ctx.dtypes = mask, (x.dtype, o.dtype)
        return torch.addcmul(x, o, drawn, value=mask.factor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        of_x, of_o = ctx.dtypes
        mask = ctx.options
        dropped = grad.to(of_o) * mask.of(grad) * mask.factor if ctx.needs_input_grad[3] else None
        return None, None, grad.to(of_x), dropped


def add_dropped(x: Tensor, o: Tensor, probability: float) -> Tensor:
    """`x + dropout(o)`."""
    mask, drawn = draw(o, probability)
    return x + o if mask is None else _AddDropped.apply(mask, drawn, x, o)


class _GeluDropoutLinear(_Piece):
    @staticmethod
    def _plain(options: Any, *tensors: Tensor) -> Any:
        h, weight, bias = tensors
        return F.linear(_gelu_dropped(h, options, None), weight, bias)

    @staticmethod
    def forward(ctx: Any, options: Any, h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        mask, drawn = options
        ctx.options = mask
        ctx.save_for_backward(h, weight, bias)
        with _no_autocast(h):
            return F.linear(_gelu_dropped(h, mask, drawn), weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tensors, mask = ctx.saved_tensors, ctx.options
        if torch.is_grad_enabled():
            return _GeluDropoutLinear._again(ctx, tensors, (grad,))
        h, weight, _ = tensors
        drawn = None if mask is None else mask.of(h)
        with _no_autocast(h):
            a = _gelu_dropped(h, mask, drawn)
            by_a, by_weight, by_bias = _linear_grads(ctx.needs_input_grad[1:], a, weight, grad)
            del a
            if by_a is not None and mask is not None and drawn is not None:
                by_a.mul_(drawn).mul_(mask.factor)
            by_h = None if by_a is None else aten.gelu_backward(by_a, h)
        return None, by_h, by_weight, by_bias


def _gelu_dropped(h: Tensor, mask: Mask | None, drawn: Tensor | None) -> Tensor:
    a = F.gelu(h)
    if mask is None:
        return a
    return a * mask.of(h) * mask.factor if drawn is None else a.mul_(drawn).mul_(mask.factor)


def gelu_dropout_linear(h: Tensor, linear: nn.Linear, probability: float) -> Tensor:
    """`linear(dropout(gelu(h)))`."""
    weight, bias = _products(h, linear.weight, linear.bias)
    return _GeluDropoutLinear.apply(draw(h, probability), h, weight, bias)


class _WeightedLinear(_Piece):
    @staticmethod
    def _plain(options: Any, *tensors: Tensor) -> Any:
        components, weights, weight, bias = tensors
        return F.linear(_weighted(components, weights).to(weight.dtype), weight, bias)

    @staticmethod
    def forward(ctx: Any, options: None, components: Tensor, weights: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.options = options
        ctx.save_for_backward(components, weights, weight, bias)
        with _no_autocast(components):
            return _WeightedLinear._plain(None, components, weights, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _WeightedLinear._again(ctx, tensors, (grad,))
        components, weights, weight, _ = tensors
        with _no_autocast(components):
            x = _weighted(components, weights).to(weight.dtype)
            needs = (True, *ctx.needs_input_grad[3:])
            by_x, by_weight, by_bias = _linear_grads(needs, x, weight, grad)
            assert by_x is not None  # asked for
            both = by_x.transpose(1, 2).unflatten(1, components.shape[1:3])  # [N, 6, component_dim, W]
            by_components = (both * weights[:, :, None]).to(components.dtype)
            by_weights = (both * components).sum(2).to(weights.dtype)
        return None, by_components, by_weights, by_weight, by_bias


def _weighted(components: Tensor, weights: Tensor) -> Tensor:
    """Components `[N, 6, component_dim, W]` times weights `[N, 6, W]`, frame by frame: `[N, W, 6·component_dim]`."""
    return (components * weights[:, :, None]).flatten(1, 2).transpose(1, 2)


def weighted_linear(components: Tensor, weights: Tensor, linear: nn.Linear) -> Tensor:
    """`linear` of the weighted components, frames before channels: `[N, W, out_features]`."""
    weight, bias = _products(components, linear.weight, linear.bias)
    return _WeightedLinear.apply(None, components, weights, weight, bias)


class _LeakyRelu(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, slope: float, keep: str) -> Tensor:
        return F.leaky_relu(x, slope)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float, str], output: Tensor) -> None:
        _, ctx.slope, keep = inputs
        ctx.save_for_backward(output if keep == "output" else output > 0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (kept,) = ctx.saved_tensors
        if kept.dtype == torch.bool:
            return torch.where(kept, grad, grad * ctx.slope), None, None
        return aten.leaky_relu_backward(grad, kept, ctx.slope, True), None, None


def leaky_relu(x: Tensor, slope: float, keep: str = "output") -> Tensor:
    """`F.leaky_relu` for slope > 0; keeps its `"output"`, which the next layer keeps as well, or its `"signs"`.

    In compiled steps on CUDA too, which would otherwise keep its input and make its output again for the next layer.
    """
    lean = can_be_lean(x) or (keep == "output" and convolution.channels_together(x))
    return _LeakyRelu.apply(x, slope, keep) if lean else F.leaky_relu(x, slope)
