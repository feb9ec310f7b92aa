"""The composer's transformer encoder: PyTorch's modules and keys, each called as a module."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.utils.checkpoint import checkpoint

from . import lean
from .attention import attention
from .bias import ROWS, add_dropped, linear_in_blocks
from .dropout import Dropout, draw_for, is_plain_dropout
from .gelu import gelu
from .plain import is_plain


def compiles_for_cuda(x: Tensor) -> bool:
    return torch.compiler.is_compiling() and x.device.type == "cuda"


class SelfAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention`, batch first, whose self-attention without masks is `attention`, lean on CPUs.

    Its output projection is called as a module, which PyTorch's own forward does not do.
    """

    def __init__(self, d_model: int, heads: int, dropout: float) -> None:
        super().__init__(d_model, heads, dropout=dropout, batch_first=True)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        """As `nn.MultiheadAttention.forward`; `x, x, x, need_weights=False` with x `[N, S, d_model]` is lean."""
        same = query.shape == key.shape == value.shape and query.dim() == 3
        if args or options != {"need_weights": False} or not same:
            return super().forward(query, key, value, *args, **options)
        if query is key is value:
            parts = self.projected(query)
        else:  # a full backward hook makes three tensors of the one
            weight, bias = self.in_proj_weight, self.in_proj_bias
            parts = tuple(map(F.linear, (query, key, value), weight.chunk(3), bias.chunk(3)))
        return self.attended(*parts), None

    def projected(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values for x, all `[N, S, d_model]`."""
        weight, bias = self.in_proj_weight, self.in_proj_bias
        if compiles_for_cuda(x) and bias is not None:
            rows = linear_in_blocks(x.flatten(0, 1), weight, bias, 2 * ROWS)
            return tuple(part.view(x.shape) for part in rows.chunk(3, dim=2))
        return F.linear(x, weight, bias).chunk(3, dim=2)

    def attended(self, *parts: Tensor) -> Tensor:
        """The output for queries, keys and values `[N, S, d_model]`, already projected."""
        return self.out_proj(self.joined(*parts))

    def joined(self, *parts: Tensor) -> Tensor:
        """The same before the output's projection: all heads side by side, `[N, S, d_model]`."""
        q, k, v = (part.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for part in parts)  # [N, heads, S, d]
        out = attention(q, k, v, self.dropout if self.training else 0.0)
        return out.transpose(1, 2).flatten(2)


class _Added:
    """`x + dropout(linear(rows))`, all of two dimensions, where x is a LayerNorm's output.

    Made before what the rows are computed from: the bias's gradient then comes behind theirs, with the kernel that
    reads what it is a sum of, which is that LayerNorm's.
    """

    def __init__(self, linear: nn.Linear, dropout: nn.Dropout, n: int) -> None:
        self.linear, self.dropout = linear, dropout
        plain = is_plain(linear, nn.Linear) or is_plain(linear, NonDynamicallyQuantizableLinear)
        self.spread = linear.bias.expand(n, -1) if plain and linear.bias is not None else None  # [n, d]

    def __call__(self, x: Tensor, rows: Tensor) -> Tensor:
        drawn = draw_for(self.dropout, x)
        if self.spread is None or drawn is None:
            return x + self.dropout(self.linear(rows))
        z = F.linear(rows, self.linear.weight, self.linear.bias.detach())
        return add_dropped(x, z, self.spread, *drawn)


class EncoderLayer(nn.TransformerEncoderLayer):
    """Post-norm encoder layer with GELU, batch first; parameters and keys of `nn.TransformerEncoderLayer`.

        x = norm1(x + dropout1(self_attn(x)))
        x = norm2(x + dropout2(linear2(dropout(gelu(linear1(x))))))

    Masks are not supported: every frame of a window attends to every other.
    """

    follows_norm = False  # whether its input is a LayerNorm's output

    def __init__(self, d_model: int, heads: int, feed_forward: int, dropout: float) -> None:
        nn.Module.__init__(self)  # its parent's would draw the weights of an attention of its own
        self.self_attn = SelfAttention(d_model, heads, dropout)
        self.linear1 = nn.Linear(d_model, feed_forward)
        self.dropout = Dropout(dropout)
        self.linear2 = nn.Linear(feed_forward, d_model)
        self.norm_first = False
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.dropout1, self.dropout2 = Dropout(dropout), Dropout(dropout)
        self.activation = F.gelu
        self.activation_relu_or_gelu = 2  # what PyTorch's own code calls GELU

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """`[N, S, d_model]` -> `[N, S, d_model]`; the masks of PyTorch's layer must be None."""
        if src_mask is not None or src_key_padding_mask is not None or is_causal:
            raise ValueError("EncoderLayer takes no masks: src_mask, src_key_padding_mask must be None")
        if compiles_for_cuda(src) and src.dim() == 3 and self.is_lean():
            return self._by_rows(src).view(src.shape)
        x = self.norm1(src + self.dropout1(self.self_attn(src, src, src, need_weights=False)[0]))
        return self.norm2(x + self._ff_block(x))

    def _by_rows(self, src: Tensor) -> Tensor:
        """The layer's output, `[N·S, d_model]` as all is that comes behind attention.

        TorchInductor goes through a tensor as it is shaped. What is shaped alike (dropout, the sum, LayerNorm and its
        cast for the next product, and all their gradients) it can do in one kernel.
        """
        attention_ = self.self_attn
        assert isinstance(attention_, SelfAttention)  # as is_lean found; narrows the type
        n, rows, parts = src.shape[0] * src.shape[1], src.flatten(0, 1), attention_.projected(src)
        add = _Added(attention_.out_proj, self.dropout1, n)
        if self.follows_norm and add.spread is not None:
            x = self.norm1(add(rows, attention_.joined(*parts).flatten(0, 1)))
        else:
            x = self.norm1(rows + self.dropout1(attention_.attended(*parts).flatten(0, 1)))
        add = _Added(self.linear2, self.dropout2, n)
        hidden = self.dropout(gelu(linear_in_blocks(x, self.linear1.weight, self.linear1.bias)))
        return self.norm2(add(x, hidden.flatten(0, 1)))

    def is_lean(self) -> bool:
        """Whether `lean_forward` may stand for the layer: all that it does not call is as it was built."""
        attention_, norms = self.self_attn, (self.norm1, self.norm2)
        return (
            is_plain(self, EncoderLayer, activation=F.gelu, norm_first=False)
            and is_plain(attention_, SelfAttention, bias_k=None, add_zero_attn=False, batch_first=True)
            and attention_.in_proj_weight is not None
            and all(is_plain(norm, nn.LayerNorm, elementwise_affine=True) and norm.bias is not None for norm in norms)
            and all(is_plain(layer, nn.Linear) and layer.bias is not None for layer in (self.linear1, self.linear2))
            and all(map(is_plain_dropout, (self.dropout, self.dropout1, self.dropout2)))
        )

    def lean_forward(self, src: Tensor, norm: nn.LayerNorm | None) -> Tensor:
        """The layer on `norm(src)`, or on src, but for its `norm2`: the layer's output is `norm2` of what this returns.

        A norm is handed on undone, since the next layer's projection is what has to keep its input.
        """
        attention_ = self.self_attn
        assert isinstance(attention_, SelfAttention)  # as is_lean found; narrows the type
        if norm is None:
            x, qkv = src, F.linear(src, attention_.in_proj_weight, attention_.in_proj_bias)
        else:
            x, qkv = lean.norm_linear(src, norm, attention_.in_proj_weight, attention_.in_proj_bias)
        dropout, dropout1, dropout2 = (d.p if d.training else 0.0 for d in (self.dropout, self.dropout1, self.dropout2))
        x = lean.add_dropped(x, attention_.attended(*qkv.chunk(3, dim=2)), dropout1)
        x, hidden = lean.norm_linear(x, self.norm1, self.linear1.weight, self.linear1.bias)
        return lean.add_dropped(x, lean.gelu_dropout_linear(hidden, self.linear2, dropout), dropout2)


class Encoder(nn.TransformerEncoder):
    """A stack of `EncoderLayer`s, or of what took their places: whatever maps `[N, S, d_model]` to the same."""

    def __init__(self, d_model: int, heads: int, feed_forward: int, layers: int, dropout: float) -> None:
        # nested tensors serve padding masks, of which there are none
        super().__init__(EncoderLayer(d_model, heads, feed_forward, dropout), layers, enable_nested_tensor=False)
        for layer in self.layers[1:]:
            layer.follows_norm = True
        self.recompute = False  # in the backward pass, layer by layer, from each one's input

    def forward(  # type: ignore[override]  # no masks
        self, src: Tensor
    ) -> Tensor:
        """`[N, S, d_model]` -> `[N, S, d_model]`."""
        norm: nn.LayerNorm | None = None  # of the layer before, not applied yet
        again = self.recompute and torch.is_grad_enabled()
        for layer in self.layers:
            if lean.can_be_lean(src) and isinstance(layer, EncoderLayer) and layer.is_lean():
                call: Callable[[Tensor], Tensor] = partial(layer.lean_forward, norm=norm)
                norm = layer.norm2
            else:
                src, norm, call = src if norm is None else norm(src), None, cast(Callable[[Tensor], Tensor], layer)
            src = checkpoint(call, src, use_reentrant=False) if again else call(src)  # draws the same dropout again
        return src if norm is None else norm(src)
