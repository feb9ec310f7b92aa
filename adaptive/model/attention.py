"""A transformer encoder layer whose attention stays small and quick in training on a CPU.

PyTorch's CPU attention has a lean kernel only without dropout. With it, `scaled_dot_product_attention` writes out and
keeps several `[N, heads, S, S]` float tensors per layer (at 12 windows of 800 frames and 8 heads 245 MB each), and
spends half its time drawing the dropout mask. Here training on a CPU goes through the samples one by one, in buffers
that stay in the cache, keeps one byte per weight (the mask) and recomputes the rest in the backward pass. Everywhere
else it is PyTorch's own attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 2**16  # dropout probabilities are rounded to multiples of 1/LEVELS
RANDOM = (torch.Tag.nondeterministic_seeded,)  # two draws of one shape are not one and the same
DRAW = "(SymInt[] shape, int zeros) -> Tensor"
ATTEND = "(Tensor q, Tensor k, Tensor v, Tensor mask, float factor) -> Tensor"
ATTEND_BACKWARD = (
    "(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor mask, Tensor out, float factor) -> (Tensor, Tensor, Tensor)"
)


@torch.library.custom_op("adaptive_window::draw_mask", mutates_args=(), schema=DRAW, tags=RANDOM)
def draw_mask(shape: Sequence[int], zeros: int) -> Tensor:
    """A random mask on the CPU, uint8: 0 with probability zeros/LEVELS, else 1.

    Four 16-bit draws come from each 64-bit random number: four times as fast as `bernoulli_`.
    """
    mask = torch.empty(shape, dtype=torch.uint8)
    for part in mask:  # one sample at a time: the random numbers stay in the cache
        bits = torch.empty((part.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        draws = bits.view(torch.int16)[: part.numel()].view(part.shape)  # uniform on −32768 ... 32767
        torch.ge(draws, zeros - LEVELS // 2, out=part)
    return mask


@draw_mask.register_fake
def _(shape: Sequence[int], zeros: int) -> Tensor:
    return torch.empty(shape, dtype=torch.uint8)


@torch.library.custom_op("adaptive_window::masked_attention", mutates_args=(), schema=ATTEND)
def masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, factor: float) -> Tensor:
    """(softmax(q·kᵀ/√d) · mask · factor) · v for q, k, v `[N, heads, S, d]` and a mask `[N, heads, S, S]`.

    An operator of its own, so that `torch.compile` leaves the loop and its buffers as they are.
    """
    out = torch.empty(q.shape, dtype=q.dtype)
    scores = torch.empty(mask.shape[1:], dtype=q.dtype)  # [heads, S, S]
    for n in range(q.shape[0]):
        _softmax_scores(q[n], k[n], scores)
        torch.matmul(scores.mul_(mask[n]), v[n], out=out[n])
    return out.mul_(factor)


@torch.library.custom_op("adaptive_window::masked_attention_backward", mutates_args=(), schema=ATTEND_BACKWARD)
def masked_attention_backward(
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


@masked_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, factor: float) -> Tensor:
    return q.new_empty(q.shape)


@masked_attention_backward.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, out: Tensor, factor: float
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.factor = inputs
    ctx.save_for_backward(*tensors, output)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return (*masked_attention_backward(grad, *ctx.saved_tensors, ctx.factor), None, None)


masked_attention.register_autograd(_backward, setup_context=_save)


def _softmax_scores(q: Tensor, k: Tensor, out: Tensor) -> None:
    """softmax(q·kᵀ/√d) of one sample into `out` `[heads, S, S]`."""
    torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-2, -1), out=out)
    torch.softmax(out, dim=-1, out=out)


def attention(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
    """Scaled dot-product attention with dropout on its weights, `[N, heads, S, d]`."""
    if dropout == 0.0 or q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    zeros = round(dropout * LEVELS)
    mask = draw_mask([*q.shape[:3], k.shape[2]], zeros)
    factor = LEVELS / (LEVELS - zeros)  # exact for the rounded probability: the mean is unbiased
    wide = torch.float32 if q.dtype in (torch.bfloat16, torch.float16) else q.dtype
    return masked_attention(q.to(wide), k.to(wide), v.to(wide), mask, factor).to(q.dtype)


class EncoderLayer(nn.TransformerEncoderLayer):
    """Post-norm encoder layer with GELU, batch first; parameters and keys of `nn.TransformerEncoderLayer`.

        x = norm1(x + dropout1(self_attn(x)))
        x = norm2(x + dropout2(linear2(dropout(gelu(linear1(x))))))

    Masks are not supported: every frame of a window attends to every other.
    """

    def __init__(self, d_model: int, nhead: int, dim_feedforward: int, dropout: float) -> None:
        super().__init__(d_model, nhead, dim_feedforward, dropout, activation="gelu", batch_first=True)

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """`[N, S, d_model]` -> `[N, S, d_model]`; the masks, which `nn.TransformerEncoder` passes, must be None."""
        if src_mask is not None or src_key_padding_mask is not None or is_causal:
            raise ValueError("EncoderLayer takes no masks: src_mask, src_key_padding_mask must be None")
        x = self.norm1(src + self.dropout1(self._attend(src)))
        return self.norm2(x + self._ff_block(x))

    def _attend(self, x: Tensor) -> Tensor:
        heads = self.self_attn.num_heads
        qkv = F.linear(x, self.self_attn.in_proj_weight, self.self_attn.in_proj_bias)  # [N, S, 3·d_model]
        q, k, v = qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)  # each [N, heads, S, d]
        out = attention(q, k, v, self.self_attn.dropout if self.training else 0.0)
        return self.self_attn.out_proj(out.transpose(1, 2).flatten(2))
