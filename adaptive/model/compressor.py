"""Windows cut at any place and resampled to a fixed length."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adaptive_window.kernels import resample_windows
from adaptive_window.kernels.validation import check_tensor


class TemporalCompressor(nn.Module):
    """Compresses `ratio`·`target_length` frames into `target_length` by linear interpolation; no parameters.

    Args:
        backend: as `adaptive_window.kernels.resample_windows`.
    """

    def __init__(self, *, backend: str = "auto") -> None:
        super().__init__()
        self.backend = backend

    def forward(
        self, x: Tensor, ratio: float | Tensor, target_length: int = 800, start: float | Tensor = 0.0
    ) -> Tensor:
        """Windows of clips `[B, C, T]`.

        Args:
            x: clips, `[B, C, T]`.
            ratio: frames of x per output frame, > 0: a number, `[B]`, or `[B, P]` for P windows of each clip.
            target_length: W, frames of each output.
            start: first frame of each window, fractions allowed: a number, `[B]` or `[B, P]`.

        Returns:
            `[B, C, W]`, or `[B, P, C, W]` where ratio or start is `[B, P]`. Differentiable in x, ratio and start; the
            convention is that of `resample_windows`.

        Raises:
            TypeError, ValueError: as `resample_windows`; ratio and start of different shapes.
        """
        check_tensor("x", x, "B, C, T")
        given = {"ratio": ratio, "start": start}
        for name, value in given.items():
            if isinstance(value, bool) or not isinstance(value, int | float | Tensor):
                raise TypeError(f"{name} must be a number or a tensor [B] or [B, P], got {type(value).__name__}")
            if isinstance(value, Tensor) and value.dim() not in (1, 2):
                raise ValueError(f"{name} must be a number, [B] or [B, P], got a tensor of shape {list(value.shape)}")
        if not isinstance(ratio, Tensor) and not 0 < ratio < float("inf"):
            raise ValueError(f"ratio must be positive and finite, got {ratio}")

        shapes = {name: value.shape for name, value in given.items() if isinstance(value, Tensor)}
        if len(set(shapes.values())) > 1:
            raise ValueError(
                f"ratio and start must have one shape, [B] or [B, P], where both are tensors, "
                f"got {list(shapes['ratio'])} and {list(shapes['start'])}"
            )
        shape = next(iter(shapes.values()), x.shape[:1])
        # numbers: never in 16 bits, which count frames one by one only to 256 (bfloat16)
        wide = torch.float32 if x.dtype in (torch.bfloat16, torch.float16) else x.dtype
        starts, ratios = (
            value if isinstance(value, Tensor) else torch.full(shape, value, dtype=wide, device=x.device)
            for value in (start, ratio)
        )
        if len(shape) == 2:
            return resample_windows(x, starts, ratios, target_length, backend=self.backend)
        return resample_windows(x, starts[:, None], ratios[:, None], target_length, backend=self.backend)[:, 0]

    def extra_repr(self) -> str:
        return f"backend={self.backend!r}"
