"""What `refine_windows` refuses, and what it says of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adaptive_window.kernels.reference import compute_dtype
from adaptive_window.kernels.validation import check_backend, check_like, check_tensor, check_window

from ..losses.scale_space import check_sigma
from ..model.validation import check_count
from .lattice import Windows


def check_signals(x: Tensor, y: Tensor, window_frames: int, move: Sequence[str]) -> None:
    for name, value in (("x", x), ("y", y)):
        check_tensor(name, value, "B, C, T")
        if min(value.shape) < 1:
            raise ValueError(f"{name} must have at least one clip, channel and frame, got shape {list(value.shape)}")
    if x.shape[:2] != y.shape[:2]:
        raise ValueError(f"y must have the batch and channels of x {list(x.shape[:2])}, got shape {list(y.shape)}")
    check_like("y", y, "x", x)
    if isinstance(move, str) or not isinstance(move, Sequence):
        raise TypeError(f'move must be a tuple of names, ("x",), ("y",) or ("x", "y"), got {move!r}')
    if not move or len(set(move)) != len(move) or not set(move) <= {"x", "y"}:
        raise ValueError(f'move must be ("x",), ("y",) or ("x", "y"), got {move!r}')
    check_count("window_frames", window_frames, least=2)
    check_window(window_frames)
    for name, value in (("x", x), ("y", y)):
        if name in move and value.shape[-1] < window_frames:
            raise ValueError(
                f"{name} must have at least window_frames ({window_frames}) frames to be searched, got "
                f"{value.shape[-1]}"
            )


def check_search(restarts: int, levels: int, steps_per_level: int, blur: float, max_ratio: float, backend: str) -> None:
    check_count("restarts", restarts)
    check_count("levels", levels)
    check_count("steps_per_level", steps_per_level)
    check_sigma(blur, "blur")
    if isinstance(max_ratio, bool) or not isinstance(max_ratio, int | float):
        raise TypeError(f"max_ratio must be a number, got {type(max_ratio).__name__}")
    if not 1 <= max_ratio < float("inf"):
        raise ValueError(f"max_ratio must be finite and at least 1, got {max_ratio}")
    check_backend(backend)


def given_windows(
    name: str, signal: Tensor, start: float | Tensor | None, ratio: float | Tensor | None, frames: int, *, moved: bool
) -> Windows | None:
    """The window of a signal, start and ratio `[B, 1]`; None where it is sought and no guess was given."""
    if moved and start is None and ratio is None:
        return None
    if moved and (start is None or ratio is None):
        lacking, present = (f"start_{name}", f"ratio_{name}") if start is None else (f"ratio_{name}", f"start_{name}")
        raise ValueError(f"{lacking} must be given too where {present} is and {name} is moved (a first guess)")
    start, ratio = (0.0 if start is None else start), (1.0 if ratio is None else ratio)
    values = [_values(f"start_{name}", start, signal), _values(f"ratio_{name}", ratio, signal)]
    numbers = not isinstance(start, Tensor), not isinstance(ratio, Tensor)
    if numbers[0] and not 0 <= start < float("inf"):
        raise ValueError(f"start_{name} must be finite and at least 0 frames, got {start}")
    if numbers[1] and not 0 < ratio < float("inf"):
        raise ValueError(f"ratio_{name} must be positive and finite, got {ratio}")
    clip = signal.shape[-1]
    if all(numbers) and start + ratio * frames > clip * (1 + 1e-6):
        raise ValueError(
            f"{name} must hold its window: start_{name} {start:g} + ratio_{name} {ratio:g} · {frames} frames is beyond "
            f"its {clip} frames"
        )
    return Windows(values[0], values[1], frames)


def _values(name: str, value: float | Tensor, signal: Tensor) -> Tensor:
    """`[B, 1]`, in the dtype of the computation."""
    dtype, batch = compute_dtype(signal.dtype), len(signal)
    if isinstance(value, Tensor):
        check_tensor(name, value, "B")
        if len(value) != batch:
            raise ValueError(
                f"{name} must be a number or [B] with B = {batch} as in {name[-1]}, got {list(value.shape)}"
            )
        if value.device != signal.device:
            raise ValueError(f"{name} must be on the device of {name[-1]} ({signal.device}), got {value.device}")
        return value.detach().to(dtype)[:, None]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number or a tensor [B], got {type(value).__name__}")
    return torch.full((batch, 1), float(value), dtype=dtype, device=signal.device)
