"""Which backend runs a call, and why one cannot. Imports nothing of Triton until its backend is asked for.

A backend is a module with one face: `check(op, tensors, numbers)` refuses what it cannot count or hold, `Calls(op,
tensors, numbers)` runs the calls of one signature (`forward`, `backward`), `kept(op, tensors, numbers)` tells how much
of forward a traced backward pass is given, and `NAME` is what messages call its kernels.
"""

from __future__ import annotations

import importlib.util
import os
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from . import reference
from .native import library
from .validation import NO_FORWARD_MODE

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"  # Triton reads it once, when it is imported; so do we
_TRANSFORMED = "a transform of torch.func is active, which it cannot follow"
library.why_not()  # loads it: torch.compile cannot trace that


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:  # an import hook forbids it
        return False


TRITON_INSTALLED = _installed("triton")  # looked up once: torch.compile cannot trace the search


def module(name: str) -> ModuleType:
    """The backend of this name; `reference` has no other face than its functions."""
    if name == "triton":
        from .triton import backend as triton

        return triton
    if name == "native":
        from .native import backend as native

        return native
    return reference


def _why_not_triton(tensors: tuple[Tensor, ...]) -> str | None:
    """None where the Triton backend can run on these tensors, x first, else the reason."""
    if not TRITON_INSTALLED:
        return "the triton package is not installed"
    for value in tensors:
        if not (value.device.type == "cuda" or (INTERPRETED and value.device.type == "cpu")):
            where = f"x is on {value.device}" if value is tensors[0] else f"a tensor is on {value.device}"
            return f"{where}; it needs a CUDA device, or TRITON_INTERPRET=1 set before the start for CPU tensors"
    if not torch.compiler.is_compiling() and differentiating():
        return _TRANSFORMED + " (use backward, torch.autograd.grad, or backend='reference')"
    return None


def has_tangent(*tensors: Tensor) -> bool:
    """Whether forward-mode derivatives are being taken through one of them."""
    return any(forward_ad.unpack_dual(value).tangent is not None for value in tensors)


def differentiating() -> bool:
    """Whether torch.func takes derivatives here (vmap alone takes none)."""
    stack = torch._C._functorch.get_interpreter_stack()
    return stack is not None and any(level.key() != torch._C._functorch.TransformType.Vmap for level in stack)


def watched() -> bool:
    """Whether what is called now is traced, transformed or watched, so that a kernel may not simply be started."""
    return (
        torch._C._functorch.peek_interpreter_stack() is not None
        or is_in_torch_dispatch_mode()
        or forward_ad._current_level >= 0
        or torch.jit.is_tracing()
    )


def _why_not_native(tensors: tuple[Tensor, ...], taps: int) -> str | None:
    """None where the compiled CPU kernels can take these tensors, else the reason.

    They read memory by address. `torch.compile` sees them as one operator; what else watches or transforms a program
    would not see what they do.
    """
    compiling = torch.compiler.is_compiling()
    if not compiling and torch.jit.is_tracing():
        return "a program is being traced, and it cannot be"
    for value in tensors:
        if value.device.type != "cpu":
            return f"a tensor is on {value.device}; it needs CPU tensors"
        if not compiling and type(value) not in (Tensor, torch.nn.Parameter):
            return f"it cannot read a {type(value).__name__}"
    if taps > library.MAX_TAPS:
        return f"it takes at most {library.MAX_TAPS} taps, got K = {taps}"
    if compiling:
        return library.why_not()
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return _TRANSFORMED
    if is_in_torch_dispatch_mode():
        return "a dispatch mode is active, which it cannot follow"
    if has_tangent(*tensors):
        return "it has no forward-mode derivative"
    return library.why_not()


def choose_backend(backend: str, tensors: tuple[Tensor, ...], taps: int = 1) -> str:
    """`"triton"`, `"native"` or `"reference"` for a call with these tensors, x first, and K = `taps`.

    A backend asked for by name never falls back.
    """

    def why_not(name: str) -> str | None:
        return _why_not_triton(tensors) if name == "triton" else _why_not_native(tensors, taps)

    if backend in ("triton", "native"):
        reason = why_not(backend)
        if backend == "triton" and not torch.compiler.is_compiling() and has_tangent(*tensors):
            raise NotImplementedError(NO_FORWARD_MODE)
        if reason is not None:
            raise RuntimeError(f"backend='{backend}' cannot run: {reason}")
        return backend
    if backend == "reference":
        return backend
    fastest = "triton" if tensors[0].device.type == "cuda" else "native"
    if fastest == "triton" and not torch.compiler.is_compiling() and has_tangent(*tensors):
        return "reference"
    return fastest if why_not(fastest) is None else "reference"
