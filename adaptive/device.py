"""Where to compute."""

from __future__ import annotations

import torch

from .errors import UsageError


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU.

    Raises:
        UsageError: a device that is not there.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: this PyTorch finds no CUDA device; use --device cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
