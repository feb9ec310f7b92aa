"""What the public functions refuse, and what they say of it.

Checks read shapes, dtypes, devices and layouts: never values, which would wait for the device. Every message names the
argument, what it was and what it must be.
"""

from __future__ import annotations

import torch
from torch import Tensor

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
HALVES = (torch.bfloat16, torch.float16)
BACKENDS = ("auto", "triton", "native", "reference")
RESTORE = ("none", "frame")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_tensor(name: str, value: object, shape: str) -> None:
    """A dense floating tensor with as many dimensions as `shape` ("B, C, T") has letters."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor of shape [{shape}], got {type(value).__name__}")
    if value.is_nested:
        raise TypeError(f"{name} must be a dense (strided) tensor of shape [{shape}], got a nested tensor")
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be a dense (strided) tensor, got layout {value.layout}; call .to_dense()")
    if value.dtype not in FLOATS:
        allowed = ", ".join(map(_short, FLOATS))
        raise TypeError(f"{name} must have a floating dtype ({allowed}), got {_short(value.dtype)}")
    rank = len(shape.split(","))
    if value.dim() != rank:
        raise ValueError(f"{name} must have shape [{shape}] ({rank} dimensions), got {list(value.shape)}")


def check_shape(name: str, value: Tensor, wanted: tuple[int, ...], meaning: str) -> None:
    if tuple(value.shape) != wanted:
        raise ValueError(f"{name} must have shape {list(wanted)} ({meaning}), got {list(value.shape)}")


def check_like(name: str, value: Tensor, x_name: str, x: Tensor, *, wide_allowed: bool = False) -> None:
    """Same device, and same dtype unless `wide_allowed` and `x` has 16 bits."""
    if value.device != x.device:
        raise ValueError(f"{name} must be on the device of {x_name} ({x.device}), got {value.device}")
    if value.dtype == x.dtype or (wide_allowed and x.dtype in HALVES and value.dtype not in HALVES):
        return
    wider = " or float32 or wider" if wide_allowed and x.dtype in HALVES else ""
    raise TypeError(f"{name} must have the dtype of {x_name} ({_short(x.dtype)}){wider}, got {_short(value.dtype)}")


def check_window(window: object) -> None:
    # SymInt: what torch.compile passes for a size it has made dynamic
    if isinstance(window, bool) or not isinstance(window, int | torch.SymInt):
        raise TypeError(f"window must be an int (frames of the output), got {type(window).__name__}")
    if window < 1:
        raise ValueError(f"window must be at least 1 frame, got {window}")


def check_eps(eps: object) -> None:
    if isinstance(eps, bool) or not isinstance(eps, int | float):
        raise TypeError(f"eps must be a number, got {type(eps).__name__}")
    if not 0 < eps < float("inf"):
        raise ValueError(f"eps must be positive and finite, got {eps}")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be one of {', '.join(map(repr, choices))}, got {type(value).__name__}")
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_backend(backend: object) -> None:
    check_choice("backend", backend, BACKENDS)


def check_source(x: object, start: object, ratio: object, window: object) -> None:
    """The arguments of `resample_windows`."""
    check_tensor("x", x, "B, C, T")
    assert isinstance(x, Tensor)  # narrows the type; check_tensor has raised otherwise
    batch, channels, frames = x.shape
    if frames < 1:
        raise ValueError(f"x must have at least one frame (T >= 1), got shape {list(x.shape)}")
    if channels < 1:
        raise ValueError(f"x must have at least one channel (C >= 1), got shape {list(x.shape)}")
    check_window(window)
    for name, value in (("start", start), ("ratio", ratio)):
        check_tensor(name, value, "B, P")
        assert isinstance(value, Tensor)  # as above
        if value.shape[0] != batch:
            raise ValueError(f"{name} must have shape [B, P] with B = {batch} as in x, got {list(value.shape)}")
        check_like(name, value, "x", x, wide_allowed=True)
    assert isinstance(start, Tensor) and isinstance(ratio, Tensor)  # noqa: PT018 - as above
    check_shape("ratio", ratio, tuple(start.shape), "[B, P] as start")


def check_windows(y: object) -> None:
    """The first argument of `tonality_blend`."""
    check_tensor("y", y, "B, P, C, W")
    assert isinstance(y, Tensor)  # as above
    for size, letter in zip(y.shape[2:], "CW", strict=True):
        if size < 1:
            raise ValueError(f"y must have {letter} >= 1, got shape {list(y.shape)}")


def check_tonality(
    name: str, y: Tensor, pairs: int, strength: object, weights: dict[str, object], eps: object, restore: object
) -> None:
    """`strength` and the six weights against the signal `y` (called `name` in messages), and the two numbers."""
    batch, channels = y.shape[0], (y.shape[2] if y.dim() == 4 else y.shape[1])
    check_tensor("strength", strength, "B, P")
    assert isinstance(strength, Tensor)  # as above
    check_shape("strength", strength, (batch, pairs), "[B, P]")
    check_like("strength", strength, name, y)
    shapes = {
        "depthwise_weight": "C, 1, K",
        "depthwise_bias": "C",
        "pointwise_weight": "C, C, 1",
        "pointwise_bias": "C",
        "norm_weight": "C",
        "norm_bias": "C",
    }
    for key, shape in shapes.items():
        value = weights[key]
        check_tensor(key, value, shape)
        assert isinstance(value, Tensor)  # as above
        check_like(key, value, name, y)
        sizes = {"C": channels, "1": 1, "K": value.shape[-1]}
        check_shape(key, value, tuple(sizes[letter] for letter in shape.split(", ")), f"[{shape}], C = {channels}")
    taps = weights["depthwise_weight"].shape[-1]  # type: ignore[attr-defined]  # checked above
    if taps % 2 != 1:
        raise ValueError(f"depthwise_weight must have an odd number of taps K, got K = {taps}")
    check_eps(eps)
    check_choice("restore", restore, RESTORE)


NO_SECOND_DERIVATIVE = (
    "the {} kernels have no second derivative: call backward without create_graph=True (of the three functions, "
    "tonality_blend alone has one, with backend='reference')"
)
NO_FORWARD_MODE = (
    "the Triton kernels have no forward-mode derivative (torch.func.jvp, torch.autograd.forward_ad): use backward (of "
    "the three functions, tonality_blend alone has one, with backend='reference')"
)
