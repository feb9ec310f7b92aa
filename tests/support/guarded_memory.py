"""The compiled CPU kernels between guards: what they read or write beyond a tensor they were given is noticed.

Every tensor of a call lies in memory of its own between two guards, which have to come back unchanged. Guards of
numbers are NaN, so a number read from them spoils the result that the test compares; guards of frame indices are 2⁶²,
so an index read from them is an access far outside the process.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from adaptive_window.kernels.native import library

GUARD = 4096  # elements on either side: more than a row of the widest test, and a vector


class Guarded:
    """Stands in for `launch.call`; counts calls by function."""

    def __init__(self) -> None:
        self.calls: dict[str, int] = {}

    def __call__(self, name: str, dtype: torch.dtype, *arguments: Tensor | float) -> None:
        self.calls[name] = self.calls.get(name, 0) + 1
        stored = []
        for value in arguments:
            if not isinstance(value, Tensor):
                continue
            assert value.is_contiguous(), f"{name} reads a tensor of strides {value.stride()} as if it were contiguous"
            assert value.dtype in (dtype, torch.int64), f"{name}_{dtype} was given {value.dtype}"
            filler = 2**62 if value.dtype == torch.int64 else math.nan
            memory = torch.full((value.numel() + 2 * GUARD,), filler, dtype=value.dtype)
            memory[GUARD : GUARD + value.numel()] = value.flatten()
            stored.append((value, memory))
        inside = iter(memory[GUARD : GUARD + value.numel()] for value, memory in stored)
        library.call(name, dtype, *(next(inside) if isinstance(value, Tensor) else value for value in arguments))
        for value, memory in stored:
            for guard in (memory[:GUARD], memory[GUARD + value.numel() :]):
                untouched = guard.isnan() if guard.is_floating_point() else guard == 2**62
                assert bool(untouched.all()), f"{name} wrote beyond a tensor of shape {list(value.shape)}"
            value.copy_(memory[GUARD : GUARD + value.numel()].view(value.shape))
