"""Attention that stays small and quick in training on a CPU.

PyTorch's CPU attention has a lean kernel only without dropout. With it, `scaled_dot_product_attention` writes out and
keeps several `[N, heads, S, S]` float tensors per layer (at 12 windows of 800 frames and 8 heads 245 MB each), and
spends half its time drawing the dropout mask. Here training on a CPU goes through the samples one by one, in buffers
that stay in the cache, keeps one byte per weight (the mask) and recomputes the rest in the backward pass. On CUDA, in
float32 with TF32 allowed, products are float16's (`attention_tf32`). Everywhere else it is PyTorch's own attention.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention_tf32 import takes, tf32_attention

LEVELS = 2**16  # dropout probabilities are rounded to multiples of 1/LEVELS
# Operators of their own, so that `torch.compile` leaves their loops and buffers as they are. Defined by schema, since
# `torch.library.custom_op` would import torch's compiler at the first eager call, for seconds.
torch.library.define(
    "adaptive_window::draw_mask",
    "(Tensor q, int zeros) -> Tensor",
    tags=(torch.Tag.nondeterministic_seeded,),  # two draws of one shape are not one and the same
)
torch.library.define(
    "adaptive_window::masked_attention",
    "(Tensor q, Tensor k, Tensor v, Tensor mask, float factor) -> Tensor",
)
torch.library.define(
    "adaptive_window::masked_attention_backward",
    "(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor mask, Tensor out, float factor) -> (Tensor, Tensor, Tensor)",
)
draw_mask = torch.ops.adaptive_window.draw_mask.default
masked_attention = torch.ops.adaptive_window.masked_attention.default
masked_attention_backward = torch.ops.adaptive_window.masked_attention_backward.default


@torch.library.impl("adaptive_window::draw_mask", "CPU")
def _draw_mask(q: Tensor, zeros: int) -> Tensor:
    """For q `[N, heads, S, d]` a random mask `[N, heads, S, S]`, uint8: 0 with probability zeros/LEVELS, else 1.

    Four 16-bit draws come from each 64-bit random number: four times as fast as `bernoulli_`.
    """
    mask = _mask_for(q)
    for part in mask:  # one sample at a time: the random numbers stay in the cache
        bits = torch.empty((part.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        draws = bits.view(torch.int16)[: part.numel()].view(part.shape)  # uniform on −32768 ... 32767
        torch.ge(draws, zeros - LEVELS // 2, out=part)
    return mask


@torch.library.register_fake("adaptive_window::draw_mask")
def _fake_draw_mask(q: Tensor, zeros: int) -> Tensor:
    return _mask_for(q)


def _mask_for(q: Tensor) -> Tensor:
    return q.new_empty((*q.shape[:3], q.shape[2]), dtype=torch.uint8)


@torch.library.impl("adaptive_window::masked_attention", "CPU")
def _masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, factor: float) -> Tensor:
    """(softmax(q·kᵀ/√d) · mask · factor) · v for q, k, v `[N, heads, S, d]` and a mask `[N, heads, S, S]`."""
    out = torch.empty(q.shape, dtype=q.dtype)
    scores = torch.empty(mask.shape[1:], dtype=q.dtype)  # [heads, S, S]
    for n in range(q.shape[0]):
        _softmax_scores(q[n], k[n], scores)
        torch.matmul(scores.mul_(mask[n]), v[n], out=out[n])
    return out.mul_(factor)


@torch.library.impl("adaptive_window::masked_attention_backward", "CPU")
def _masked_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, out: Tensor, factor: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `masked_attention` for q, k, v.

    With P the softmax, M = mask · factor, O the output and g its gradient: dV = (P·M)ᵀ g; dP = (g Vᵀ)·M;
    dS = P·(dP − rowsum(g·O)), since rowsum(P·dP) = rowsum(g·O) (Dao et al. 2022, arXiv:2205.14135, appendix B);
    dQ = dS·K/√d; dK = dSᵀ·Q/√d.
    """
    dq, dk, dv = (torch.empty(t.shape, dtype=t.dtype) for t in (q, k, v))
    delta = (grad * out).sum(-1, keepdim=True)  # [N, heads, S, 1]
    grad = grad * factor
    scale = q.shape[-1] ** -0.5
    weights, dweights = (torch.empty(mask.shape[1:], dtype=q.dtype) for _ in range(2))
    for n in range(q.shape[0]):
        _softmax_scores(q[n], k[n], weights)
        torch.mul(weights, mask[n], out=dweights)
        torch.matmul(dweights.transpose(-2, -1), grad[n], out=dv[n])
        torch.matmul(grad[n], v[n].transpose(-2, -1), out=dweights)
        dweights.mul_(mask[n]).sub_(delta[n]).mul_(weights)
        torch.matmul(dweights, k[n], out=dq[n])
        torch.matmul(dweights.transpose(-2, -1), q[n], out=dk[n])
    return dq.mul_(scale), dk.mul_(scale), dv


@torch.library.register_fake("adaptive_window::masked_attention")
def _fake_masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, factor: float) -> Tensor:
    return q.new_empty(q.shape)


@torch.library.register_fake("adaptive_window::masked_attention_backward")
def _fake_masked_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, out: Tensor, factor: float
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.factor = inputs
    ctx.save_for_backward(*tensors, output)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return (*masked_attention_backward(grad, *ctx.saved_tensors, ctx.factor), None, None)


def _no_second_derivative(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError("attention with dropout on the CPU has no second derivative; set dropout=0 for one")


torch.library.register_autograd("adaptive_window::masked_attention", _backward, setup_context=_save)
torch.library.register_autograd("adaptive_window::masked_attention_backward", _no_second_derivative)


def _softmax_scores(q: Tensor, k: Tensor, out: Tensor) -> None:
    """softmax(q·kᵀ/√d) of one sample into `out` `[heads, S, S]`."""
    torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-2, -1), out=out)
    torch.softmax(out, dim=-1, out=out)


def attention(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
    """Scaled dot-product self-attention with dropout on its weights, q, k, v `[N, heads, S, d]`, 0 ≤ dropout < 1."""
    if takes(q):
        return tf32_attention(q, k, v, dropout)
    if dropout == 0.0 or q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    zeros = min(round(dropout * LEVELS), LEVELS - 1)
    mask = draw_mask(q, zeros)
    factor = LEVELS / (LEVELS - zeros)  # exact for the rounded probability: the mean is unbiased
    wide = torch.float32 if q.dtype in (torch.bfloat16, torch.float16) else q.dtype
    return masked_attention(q.to(wide), k.to(wide), v.to(wide), mask, factor).to(q.dtype)
