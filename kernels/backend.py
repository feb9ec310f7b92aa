"""Which backend runs a call, and why one cannot. Imports nothing of Triton until its backend is asked for."""

from __future__ import annotations

import importlib.util
import os

from torch import Tensor

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


def choose_backend(backend: str, x: Tensor) -> str:
    """`"triton"` or `"reference"`; a backend asked for by name never falls back."""
    if backend == "triton":
        reason = _why_not_triton(x)
        if reason is not None:
            raise RuntimeError(f"backend='triton' cannot run: {reason}")
        return "triton"
    if backend == "auto" and x.device.type == "cuda" and _why_not_triton(x) is None:
        return "triton"
    return "reference"
