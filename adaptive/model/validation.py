"""What the modules refuse, and what they say of it.

Checks read shapes, dtypes and devices: never values, which would wait for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adaptive_window.kernels.reference import autocast_available
from adaptive_window.kernels.validation import check_shape, check_tensor

from ..losses.checks import check_count

__all__ = ["check_count", "check_positive", "check_probability", "check_share", "check_streams", "check_windows"]


def check_positive(name: str, value: object) -> None:
    """A finite number above zero."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be positive and finite, got {value}")


def check_probability(name: str, value: object) -> None:
    """A number in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be in [0, 1), got {value}")


def check_share(name: str, value: object) -> None:
    """A number in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value}")


def check_windows(
    encoding_dim: object, num_pairs: object, window_frames: object, max_ratio: object, max_strength: object
) -> None:
    """What every selector is built with: three counts, a positive ratio and a share."""
    check_count("encoding_dim", encoding_dim)
    check_count("num_pairs", num_pairs)
    check_count("window_frames", window_frames)
    check_positive("max_ratio", max_ratio)
    check_share("max_strength", max_strength)


def check_streams(module: nn.Module, x_input: Tensor, x_target: Tensor, channels: int, least_frames: int = 1) -> None:
    """Two latent clips `[B, C, T]` of one shape, on the module's device and, outside autocast, of its dtype."""
    for name, value in (("x_input", x_input), ("x_target", x_target)):
        check_tensor(name, value, "B, C, T")
        batch, got, frames = value.shape
        if batch < 1:
            raise ValueError(f"{name} must hold at least one clip (B >= 1), got shape {list(value.shape)}")
        if got != channels:
            raise ValueError(
                f"{name} must have {channels} channels (encoding_dim), got {got} in shape {list(value.shape)}"
            )
        if frames < least_frames:
            raise ValueError(f"{name} must have at least {least_frames} frames, got {frames}")
        _check_weights_match(module, name, value)
    check_shape("x_target", x_target, tuple(x_input.shape), "the shape of x_input")


def _check_weights_match(module: nn.Module, name: str, x: Tensor) -> None:
    """Quantized weights have no say in dtypes, and where weights of several dtypes are mixed, any of them will do."""
    weight = next((p for p in module.parameters() if p.is_floating_point()), None)
    if weight is None:
        return
    if x.device != weight.device:
        raise ValueError(f"{name} must be on the device of the module's weights ({weight.device}), got {x.device}")
    device = x.device.type
    autocast = autocast_available(device) and torch.is_autocast_enabled(device)
    if x.dtype != weight.dtype and not autocast and all(p.dtype != x.dtype for p in module.parameters()):
        raise TypeError(f"{name} must have the dtype of the module's weights ({weight.dtype}), got {x.dtype}")
