"""Which backend runs a call, and why one cannot. Imports nothing of Triton until its backend is asked for."""

from __future__ import annotations

import importlib.util
import os

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from .native import library

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"  # Triton reads it once, when it is imported; so do we


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:  # an import hook forbids it
        return False


TRITON_INSTALLED = _installed("triton")  # looked up once: torch.compile cannot trace the search


def _why_not_triton(x: Tensor) -> str | None:
    """None where the Triton backend can run on `x`, else the reason."""
    if not TRITON_INSTALLED:
        return "the triton package is not installed"
    if x.device.type == "cuda" or (INTERPRETED and x.device.type == "cpu"):
        return None
    return f"x is on {x.device}; it needs a CUDA device, or TRITON_INTERPRET=1 set before the start for CPU tensors"


def has_tangent(*tensors: Tensor) -> bool:
    """Whether forward-mode derivatives are being taken through one of them."""
    return any(forward_ad.unpack_dual(value).tangent is not None for value in tensors)


def _why_not_native(tensors: tuple[Tensor, ...], taps: int) -> str | None:
    """None where the compiled CPU kernels can take these tensors, else the reason.

    They read memory by address: what traces or transforms a program would not see them do it.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return "a program is being traced, and it cannot be"
    for value in tensors:
        if value.device.type != "cpu":
            return f"a tensor is on {value.device}; it needs CPU tensors"
        if type(value) not in (Tensor, torch.nn.Parameter):
            return f"it cannot read a {type(value).__name__}"
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "a transform of torch.func is active, which it cannot follow"
    if is_in_torch_dispatch_mode():
        return "a dispatch mode is active, which it cannot follow"
    if has_tangent(*tensors):
        return "it has no forward-mode derivative"
    if taps > library.MAX_TAPS:
        return f"it takes at most {library.MAX_TAPS} taps, got K = {taps}"
    return library.why_not()


def choose_backend(backend: str, *tensors: Tensor, taps: int = 1) -> str:
    """`"triton"`, `"native"` or `"reference"` for a call with these tensors, x first, and K = `taps`.

    A backend asked for by name never falls back.
    """

    def why_not(name: str) -> str | None:
        return _why_not_triton(tensors[0]) if name == "triton" else _why_not_native(tensors, taps)

    if backend in ("triton", "native"):
        reason = why_not(backend)
        if reason is not None:
            raise RuntimeError(f"backend='{backend}' cannot run: {reason}")
        return backend
    fastest = "triton" if tensors[0].device.type == "cuda" else "native"
    return fastest if backend == "auto" and why_not(fastest) is None else "reference"
