"""What every stage shares: how a kernel call is described, and what it is planned for.

Stages run on tensors of device "meta" alone: `launch` describes a kernel call, `host` one of PyTorch's, and `plan`
keeps what they describe and runs it, again and again, on tensors of the same sizes. Nothing here waits for the device.

`record_launches` collects the kernel calls, of stages and of plans that run (tests count them, the tools compile them).
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from .configurations import PRECISIONS, Configuration, Target

TRITON_TYPE = {torch.float32: tl.float32, torch.float64: tl.float64}
FUSED_CHANNELS = 128  # beyond, a tile of all channels no longer fits the registers of one program
MAX_GRID = (2**31 - 1, 65535, 65535)


@dataclass(frozen=True)
class Launch:
    """One kernel call."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    num_warps: int
    num_stages: int
    outputs: int  # elements that one program writes; where `looped`, in one pass of its persistent loop
    looped: bool

    @property
    def name(self) -> str:
        return self.kernel.__name__


@dataclass(frozen=True)
class Host:
    """One call of PyTorch, which writes into some of its tensors."""

    function: Callable[..., object]
    tensors: tuple[Tensor, ...]


Step = Launch | Host


class _Planning(threading.local):
    steps: list[Step] | None = None  # of the plan that this thread is making


_planning = _Planning()
_recorders: list[list[Launch]] = []
_targets: list[Target] = []


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    config: Configuration,
    arguments: dict[str, Any],
    *,
    outputs: int,
    looped: bool = False,
) -> None:
    """Describe a call of `kernel` with `arguments` and the configuration's constants."""
    for size, most in zip(grid, MAX_GRID, strict=False):
        if size > most:
            raise ValueError(f"tensors too large: {kernel.__name__} would need a grid of {grid}, at most {MAX_GRID}")
    arguments = {**arguments, **config.constants}
    step = Launch(kernel, grid, arguments, config.num_warps, config.num_stages, outputs, looped)
    if _planning.steps is not None:
        _planning.steps.append(step)
    else:
        recorded([step])


def host(function: Callable[..., object], *tensors: Tensor) -> None:
    """Describe a call of a function of PyTorch's that writes into some of `tensors`."""
    if _planning.steps is not None:
        _planning.steps.append(Host(function, tensors))


@contextmanager
def planning() -> Iterator[list[Step]]:
    """What is described in the `with` block by this thread."""
    before = _planning.steps
    steps: list[Step] = []
    _planning.steps = steps
    try:
        yield steps
    finally:
        _planning.steps = before


def recorded(launches: list[Launch]) -> None:
    for recorder in _recorders:
        recorder.extend(launches)


@contextmanager
def record_launches() -> Iterator[list[Launch]]:
    """Every launch in the `with` block, from any thread."""
    launches: list[Launch] = []
    _recorders.append(launches)
    try:
        yield launches
    finally:
        _recorders.remove(launches)


@contextmanager
def use_target(target: Target) -> Iterator[None]:
    """Plan as if running on `target`: for inspection and tests."""
    _targets.append(target)
    try:
        yield
    finally:
        _targets.pop()


@functools.cache
def _cuda_target(index: int) -> Target:
    properties = torch.cuda.get_device_properties(index)
    if properties.major < 8:
        raise RuntimeError(
            f"backend='triton' needs compute capability 8.0 or later, {properties.name} has "
            f"{properties.major}.{properties.minor}; use backend='reference'"
        )
    return Target(90 if properties.major >= 9 else 80, properties.multi_processor_count)


_INTERPRETER = Target(0, 3)


def target_of(device: torch.device) -> Target:
    if _targets:
        return _targets[-1]
    if device.type == "cuda":
        return _cuda_target(device.index if device.index is not None else torch.cuda.current_device())
    return _INTERPRETER


def precision_of(dtype: torch.dtype, target: Target) -> str:
    """How the pointwise product is computed: as PyTorch's own switch for float32 convolutions says."""
    known = PRECISIONS[str(dtype).removeprefix("torch.")]
    if target.precision in known:
        return target.precision
    if target.arch == 0 and dtype != torch.float64:
        return "ieee"
    # Reading the older `torch.backends.cudnn.allow_tf32` raises once the newer switch has been set to "ieee".
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # its module is built at import time
    if dtype == torch.float32 and convolutions.fp32_precision != "tf32":
        return "bf16x3"
    return known[0]
