"""A transformer encoder layer whose attention stays small in training on a CPU.

PyTorch's CPU attention has a lean kernel only without dropout. With it, `scaled_dot_product_attention` writes out and
keeps several `[N, heads, S, S]` tensors per layer: at 12 windows of 800 frames and 8 heads, 245 MB each. Here training
on a CPU takes the samples a few at a time and recomputes their weights in the backward pass (activation checkpointing,
Chen et al. 2016, arXiv:1604.06174). Everywhere else it is PyTorch's own attention.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

SAMPLES_AT_ONCE = 1


def _attend(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    """softmax(q·kᵀ/√d), dropout, times v: the definition, for `[..., S, d]`."""
    weights = torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, dim=-1)
    return F.dropout(weights, dropout) @ v


def attention(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
    """Scaled dot-product attention with dropout on its weights, `[N, heads, S, d]`."""
    if dropout == 0.0 or q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    chunks = zip(*(t.split(SAMPLES_AT_ONCE) for t in (q, k, v)), strict=True)
    return torch.cat([checkpoint(_attend, *chunk, dropout, use_reentrant=False) for chunk in chunks])


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
