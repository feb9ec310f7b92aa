"""Planned launches without a GPU: kernels are started with addresses, as on one, and run in the interpreter.

    with started() as starts:
        ...               # backend="triton" on CPU tensors: starts[n] is (kernel, stream)

What starts a kernel gets bare integers in the order of its parameters, and rebuilds tensors at those addresses.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from adaptive_window.kernels import ops
from adaptive_window.kernels.memory import extent
from adaptive_window.kernels.triton import backend, plan
from adaptive_window.kernels.triton.launch import Launch

STREAM = 4711


def at(address: int, like: Tensor) -> Tensor:
    """A tensor of the sizes and strides of `like` in the memory at `address`."""
    size = extent(like)
    if size == 0:
        return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype)
    memory = (ctypes.c_char * size).from_address(address)
    return torch.frombuffer(memory, dtype=like.dtype).as_strided(like.shape, like.stride())


@contextmanager
def started() -> Iterator[list[tuple[str, int]]]:
    starts: list[tuple[str, int]] = []

    def compiled(step: Launch, arguments: Sequence[Any]) -> Any:
        pointers = {
            n: step.arguments[step.kernel.arg_names[n]] for n, a in enumerate(arguments) if hasattr(a, "data_ptr")
        }

        def start(*given: Any, stream: int) -> None:
            starts.append((step.name, stream))
            assert len(given) == len(step.kernel.arg_names)
            for n, value in enumerate(given):
                assert (n in pointers) or value == arguments[n]
            values = [at(v, pointers[n]) if n in pointers else v for n, v in enumerate(given)]
            for n in pointers:
                assert given[n] % 16 == arguments[n].data_ptr(), "compiled for another alignment"
            named = dict(zip(step.kernel.arg_names, values, strict=True))
            step.kernel[step.grid](**named, num_warps=step.num_warps, num_stages=step.num_stages)

        return start

    before = plan.compiled, plan.stream_of
    plan.compiled, plan.stream_of = compiled, lambda device: STREAM
    backend.COMPILED.add("cpu")
    ops.forget()
    try:
        yield starts
    finally:
        plan.compiled, plan.stream_of = before
        backend.COMPILED.discard("cpu")
        ops.forget()
