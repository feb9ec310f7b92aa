"""Attention of float32 tensors on CUDA where TF32 is allowed: its products in float16, which rounds as TF32 does.

PyTorch has no fast attention for float32: at 48 windows of 800 frames on an H100 its kernel takes 32 of the 74 ms of a
training step, seven times what it takes in 16 bits. Where the user allows TF32 for matrix products, every operand of
one is rounded to 10 bits of mantissa, and float16 has just these; sums are float32 in both. So q, k, v and the softmax,
operands of products, are rounded no further than TF32 products would round them, and so is the output, an operand of
the projection that follows.

What float16 lacks is range. Forward, it suffices: latents behind a LayerNorm are far below 65504 (what is above becomes
infinite, then NaN, and is not hidden). Gradients are brought into it, for each window and head by a power of two of its
own, with which attention's backward pass is linear: their largest element lies in [8, 16) there. At that scale dV, at
most the sum over a column of the softmax, stays below 16 times the number of frames, and what is rounded as a
subnormal, below 6e-5, is less than 1e-5 of the largest.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

aten = torch.ops.aten

LARGEST = 4.0  # gradients are scaled to at most 2 to this


def _allowed() -> bool:
    return torch.backends.cuda.matmul.fp32_precision == "tf32" and torch.backends.cuda.flash_sdp_enabled()


# What `torch.compiler.assume_constant_result` does, which imports PyTorch's compiler, for seconds. Compiled graphs are
# guarded by PyTorch's own TF32 switch: turned, they are compiled anew.
_allowed._dynamo_marked_constant = True  # type: ignore[attr-defined]


def takes(q: Tensor) -> bool:
    """Whether attention of these tensors is computed here."""
    if q.device.type != "cuda" or q.dtype != torch.float32 or q.shape[-1] % 8 or q.shape[-1] > 256:
        return False
    return _allowed() and (torch.compiler.is_compiling() or not _transformed(q))


def _transformed(q: Tensor) -> bool:
    """By torch.func, or with a tangent: left to PyTorch's own attention."""
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad.unpack_dual(q).tangent is not None


class _Attention(torch.autograd.Function):
    """q, k, v `[N, heads, S, d]` float32; PyTorch's own flash kernels, forward and backward."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        q, k, v = q.half(), k.half(), v.half()
        out, logsumexp, _, _, ctx.longest_q, ctx.longest_k, seed, offset, _ = aten._scaled_dot_product_flash_attention(
            q, k, v, dropout, False, False
        )
        ctx.dropout = dropout
        ctx.save_for_backward(q, k, v, out, logsumexp, seed, offset)
        return out.float()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, logsumexp, seed, offset = ctx.saved_tensors
        scale = power_of_two(grad)
        grads = aten._scaled_dot_product_flash_attention_backward(
            (grad * scale).half(),
            q,
            k,
            v,
            out,
            logsumexp,
            None,
            None,
            ctx.longest_q,
            ctx.longest_k,
            ctx.dropout,
            False,
            seed,
            offset,
        )
        dq, dk, dv = (g.float() / scale for g in grads)
        return dq, dk, dv, None


def power_of_two(grad: Tensor) -> Tensor:
    """`[N, heads, 1, 1]`: what brings the largest element of each `[S, d]` into [8, 16); nothing makes zeros larger."""
    largest = grad.abs().amax((-2, -1), keepdim=True).clamp(min=1e-30)
    return torch.exp2(LARGEST - torch.floor(torch.log2(largest)) - 1)


def tf32_attention(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    """Scaled dot-product self-attention with dropout on its weights, q, k, v `[N, heads, S, d]` that `takes` takes."""
    return _Attention.apply(q, k, v, dropout)
