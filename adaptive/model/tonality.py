"""A learned change of each window's harmonic content, blended in by a strength."""

from __future__ import annotations

from typing import TypeAlias, cast

import torch
from torch import Tensor, nn

from adaptive_window.kernels import tonality_blend, windowed_tonality
from adaptive_window.kernels.validation import check_shape, check_tensor

from .validation import check_count

SixWeights: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]  # in the order the kernels take them


class TonalityReducer(nn.Module):
    """out = (1 − strength)·x + strength·LayerNorm(pointwise(depthwise(x))), LayerNorm over channels of each frame.

    The convolutions start as identity (centre tap 1, pointwise the unit matrix, biases 0). LayerNorm follows them, so
    at first the transform is LayerNorm alone, not identity: each frame loses its mean and its spread (its loudness) in
    proportion to the strength. "No change until trained" holds exactly only at strength 0.

    Args:
        encoding_dim: C, channels.
        kernel_size: K, taps of the depthwise convolution, odd; zero padding at the window's edges.
        backend: as `adaptive_window.kernels.tonality_blend`.
    """

    def __init__(self, encoding_dim: int = 128, kernel_size: int = 7, *, backend: str = "auto") -> None:
        super().__init__()
        check_count("encoding_dim", encoding_dim)
        check_count("kernel_size", kernel_size)
        if kernel_size % 2 != 1:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        self.backend = backend
        self.depthwise = nn.Conv1d(
            encoding_dim, encoding_dim, kernel_size, padding=kernel_size // 2, groups=encoding_dim
        )
        self.pointwise = nn.Conv1d(encoding_dim, encoding_dim, 1)
        self.norm = nn.LayerNorm(encoding_dim)
        with torch.no_grad():
            nn.init.dirac_(self.depthwise.weight, groups=encoding_dim)
            nn.init.dirac_(self.pointwise.weight)
            nn.init.zeros_(cast(Tensor, self.depthwise.bias))
            nn.init.zeros_(cast(Tensor, self.pointwise.bias))

    def _weights(self) -> SixWeights:
        layers = (self.depthwise, self.pointwise, self.norm)
        return cast(SixWeights, tuple(tensor for layer in layers for tensor in (layer.weight, layer.bias)))

    def forward(self, x: Tensor, strength: Tensor) -> Tensor:
        """`x [B, C, W]` with `strength [B]`, or `x [B, P, C, W]` with `strength [B, P]`; returns the shape of x."""
        if not isinstance(x, Tensor) or x.dim() != 3:
            return tonality_blend(x, strength, *self._weights(), eps=self.norm.eps, backend=self.backend)
        check_tensor("strength", strength, "B")
        check_shape("strength", strength, (x.shape[0],), "[B]")
        one = self.forward(x[:, None], strength[:, None])
        return one[:, 0]

    def windowed(self, x: Tensor, start: Tensor, ratio: Tensor, strength: Tensor, window: int) -> Tensor:
        """Windows of clips `[B, C, T]` cut at `start`, compressed by `ratio` and transformed, in one fused call.

        start, ratio, strength: `[B, P]`. Returns `[B, P, C, W]`.
        """
        return windowed_tonality(
            x, start, ratio, strength, *self._weights(), window, eps=self.norm.eps, backend=self.backend
        )

    def extra_repr(self) -> str:
        return f"backend={self.backend!r}"
