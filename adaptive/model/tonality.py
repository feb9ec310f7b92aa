"""A learned change of each window's harmonic content, blended in by a strength."""

from __future__ import annotations

from typing import TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adaptive_window.kernels import resample_windows, tonality_blend, windowed_tonality
from adaptive_window.kernels.validation import RESTORE, check_choice, check_shape, check_tensor

from .plain import is_plain
from .validation import check_count

SixWeights: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]  # in the order the kernels take them


class TonalityReducer(nn.Module):
    """out = (1 − strength)·x + strength·LayerNorm(pointwise(depthwise(x))), LayerNorm over channels of each frame.

    The convolutions start as identity (centre tap 1, pointwise the unit matrix, biases 0). LayerNorm follows them, so
    at first the transform is LayerNorm alone, not identity: each frame loses its mean and its spread (its loudness) in
    proportion to the strength. "No change until trained" holds exactly only at strength 0.

    With `restore="frame"` each frame's own mean and spread are put in the place of what LayerNorm took: nothing is
    changed until trained, at any strength, and loudness stays with the frames (`adaptive_window.kernels.tonality_blend`
    has the formula). Weights learn one of the two, so loading them into the other changes what is heard.

    While its three layers are as they were built, they are one fused call. Once one of them is replaced, hooked,
    parametrized, adapted or compiled, each is called as a module instead, on windows that are written out.

    Args:
        encoding_dim: C, channels.
        kernel_size: K, taps of the depthwise convolution, odd; zero padding at the window's edges.
        restore: `"none"`, as the original; or `"frame"`.
        backend: as `adaptive_window.kernels.tonality_blend`.
    """

    def __init__(
        self, encoding_dim: int = 128, kernel_size: int = 7, *, restore: str = "none", backend: str = "auto"
    ) -> None:
        super().__init__()
        check_count("encoding_dim", encoding_dim)
        check_count("kernel_size", kernel_size)
        if kernel_size % 2 != 1:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        check_choice("restore", restore, RESTORE)
        self.restore, self.backend = restore, backend
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

    def forward(
        self,
        x: Tensor,
        strength: Tensor,
        start: Tensor | None = None,
        ratio: Tensor | None = None,
        window: int | None = None,
    ) -> Tensor:
        """Windows, transformed; or windows cut out of clips and transformed, where their places are given.

        Args:
            x: windows, `[B, C, W]` with `strength [B]` or `[B, P, C, W]` with `strength [B, P]`; or, with `start`,
                `ratio` and `window`, clips `[B, C, T]` with `strength [B, P]`.
            strength: how much of the transform is heard, 0 to 1.
            start, ratio, window: of the windows of clips, as `adaptive_window.kernels.resample_windows`.

        Returns:
            The shape of x, or `[B, P, C, W]`.

        Raises:
            TypeError, ValueError, RuntimeError: as `adaptive_window.kernels.windowed_tonality`.
        """
        if start is not None or ratio is not None or window is not None:
            if start is None or ratio is None or window is None:
                raise TypeError("start, ratio and window go together: give all three, or none")
            return self._of_clips(x, strength, start, ratio, window)
        if not isinstance(x, Tensor) or x.dim() != 3:
            return self._of_windows(x, strength)
        check_tensor("strength", strength, "B")
        check_shape("strength", strength, (x.shape[0],), "[B]")
        return self._of_windows(x[:, None], strength[:, None])[:, 0]

    def windowed(self, x: Tensor, start: Tensor, ratio: Tensor, strength: Tensor, window: int) -> Tensor:
        """`self(x, strength, start, ratio, window)`."""
        return self(x, strength, start, ratio, window)

    def _of_clips(self, x: Tensor, strength: Tensor, start: Tensor, ratio: Tensor, window: int) -> Tensor:
        if self._fusible():
            return windowed_tonality(
                x,
                start,
                ratio,
                strength,
                *self._weights(),
                window,
                eps=self.norm.eps,
                restore=self.restore,
                backend=self.backend,
            )
        return self._through_layers(resample_windows(x, start, ratio, window, backend=self.backend), strength)

    def _of_windows(self, y: Tensor, strength: Tensor) -> Tensor:
        if self._fusible():
            return tonality_blend(
                y, strength, *self._weights(), eps=self.norm.eps, restore=self.restore, backend=self.backend
            )
        check_tensor("y", y, "B, P, C, W")
        return self._through_layers(y, strength)

    def _fusible(self) -> bool:
        """Whether the layers are plain, and still those of the fused function's formula."""
        depthwise, pointwise, norm = self.depthwise, self.pointwise, self.norm
        convolution = {"stride": (1,), "dilation": (1,), "padding_mode": "zeros"}
        if not is_plain(depthwise, nn.Conv1d, **convolution) or not is_plain(
            pointwise, nn.Conv1d, kernel_size=(1,), padding=(0,), groups=1, **convolution
        ):
            return False
        channels, taps = depthwise.in_channels, depthwise.kernel_size[0]
        return (
            depthwise.groups == channels == depthwise.out_channels
            and taps % 2 == 1
            and depthwise.padding == (taps // 2,)
            and pointwise.in_channels == channels == pointwise.out_channels
            and is_plain(norm, nn.LayerNorm, normalized_shape=(channels,), elementwise_affine=True)
            and all(layer.bias is not None for layer in (depthwise, pointwise, norm))
        )

    def _weights(self) -> SixWeights:
        layers = (self.depthwise, self.pointwise, self.norm)
        return cast(SixWeights, tuple(tensor for layer in layers for tensor in (layer.weight, layer.bias)))

    def _through_layers(self, y: Tensor, strength: Tensor) -> Tensor:
        """The same formula with every layer called as a module: `y [B, P, C, W]`, `strength [B, P]`.

        To restore, the norm's bias is what it makes of a frame of zeros, whatever it is by now: it is given one more.
        """
        check_tensor("strength", strength, "B, P")
        check_shape("strength", strength, tuple(y.shape[:2]), "[B, P]")
        mixed = self.pointwise(self.depthwise(y.flatten(0, 1)))  # [B·P, C, W]
        if self.restore == "frame":
            mixed = F.pad(mixed, (0, 1))
        wide = torch.promote_types(y.dtype, torch.float32)
        changed = self.norm(mixed.transpose(1, 2)).transpose(1, 2).unflatten(0, y.shape[:2]).to(wide)
        rows = y.to(wide)
        if self.restore == "frame":
            changed, bias = changed[..., :-1], changed[..., -1:]
            variance, mean = torch.var_mean(rows, 2, correction=0, keepdim=True)  # [B, P, 1, W]
            changed = mean + torch.sqrt(variance + self.norm.eps) * (changed - bias) + bias
        return torch.lerp(rows, changed, strength.to(wide)[:, :, None, None]).to(y.dtype).contiguous()

    def extra_repr(self) -> str:
        return f"restore={self.restore!r}, backend={self.backend!r}"
