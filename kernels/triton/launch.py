"""What every host function of the kernels shares: how a kernel is called, what on, and with which prepared weights.

Nothing here waits for the device.

A `Launch` is a complete description of one kernel call. `record_launches` collects them (tests count them, `tools`
compiles them); on tensors of device "meta" they are recorded and not run.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from ..reference import compute_dtype
from .configurations import PRECISIONS, Configuration, Target, configuration
from .tonality import prepare_weights

TRITON_TYPE = {torch.float32: tl.float32, torch.float64: tl.float64}
FUSED_CHANNELS = 128  # beyond, a tile of all channels no longer fits the registers of one program
MAX_GRID = (2**31 - 1, 65535, 65535)

_recorders: list[list[Launch]] = []
_targets: list[Target] = []


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

    def run(self) -> None:
        for recorder in _recorders:
            recorder.append(self)
        if any(isinstance(a, Tensor) and a.is_meta for a in self.arguments.values()):
            return
        self.kernel[self.grid](**self.arguments, num_warps=self.num_warps, num_stages=self.num_stages)


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    config: Configuration,
    arguments: dict[str, Any],
    *,
    outputs: int,
    looped: bool = False,
) -> None:
    """Run `kernel` with `arguments` and the configuration's constants."""
    for size, most in zip(grid, MAX_GRID, strict=False):
        if size > most:
            raise ValueError(f"tensors too large: {kernel.__name__} would need a grid of {grid}, at most {MAX_GRID}")
    arguments = {**arguments, **config.constants}
    Launch(kernel, grid, arguments, config.num_warps, config.num_stages, outputs, looped).run()


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


def target_of(device: torch.device) -> Target:
    if _targets:
        return _targets[-1]
    if device.type == "cuda":
        return _cuda_target(device.index if device.index is not None else torch.cuda.current_device())
    return Target(0, 3)


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


class Weights(NamedTuple):
    """The six weights of the transform, or something of each, in argument order."""

    depthwise_weight: Tensor  # [C, 1, K]
    depthwise_bias: Tensor  # [C]
    pointwise_weight: Tensor  # [C, C, 1]
    pointwise_bias: Tensor  # [C]
    norm_weight: Tensor  # [C]
    norm_bias: Tensor  # [C]


class Source(NamedTuple):
    """What the windows are made of: x [B, C, T] with start and ratio, or y [B, P, C, W] itself."""

    tensor: Tensor
    start: Tensor  # [B, P], contiguous
    ratio: Tensor
    resample: bool

    @classmethod
    def of_clips(cls, x: Tensor, start: Tensor, ratio: Tensor) -> Source:
        return cls(x, start.contiguous(), ratio.contiguous(), True)

    @classmethod
    def of_windows(cls, y: Tensor) -> Source:
        return cls(y, y, y, False)

    def arguments(self, pairs: int) -> dict[str, Any]:
        """Arguments of the kernels that read windows."""
        stride = self.tensor.stride()
        single = self.tensor.shape[-1] == 1  # both neighbours of a single frame are itself
        return {
            "source_ptr": self.tensor,
            "start_ptr": self.start,
            "ratio_ptr": self.ratio,
            "T": self.tensor.shape[-1],
            "P": pairs,
            "stride_b": stride[0],
            "stride_p": stride[1],
            "STRIDE_C": stride[-2],
            "STRIDE_T": 0 if single else stride[-1],
            "RESAMPLE": self.resample,
        }


class Split(NamedTuple):
    """An operand of the pointwise products: hi + lo for "bf16x3", else hi alone (and lo is hi)."""

    hi: Tensor
    lo: Tensor

    @classmethod
    def empty(cls, shape: torch.Size, like: Tensor, precision: str) -> Split:
        """Room for an operand, in the dtype of `like`."""
        hi = torch.empty(shape, dtype=like.dtype, device=like.device)
        return cls(hi, torch.empty_like(hi) if precision == "bf16x3" else hi)


class Prepared(NamedTuple):
    """The weights in the compute dtype, padded to a whole number of channel blocks, the pointwise one centred."""

    depthwise: Tensor  # [K, PADDED]
    pointwise: Split  # [PADDED, PADDED] (out, in)
    bias: Tensor  # [PADDED], centred, the depthwise bias folded in
    norm: Tensor  # [PADDED]
    norm_bias: Tensor  # [PADDED]


def prepare(weights: Weights, target: Target, precision: str) -> Prepared:
    """One launch; for more than 128 channels a few PyTorch calls, which are then small beside the rest."""
    channels, _, taps = weights.depthwise_weight.shape
    compute = compute_dtype(weights.norm_weight.dtype)
    operand = torch.bfloat16 if precision.startswith("bf16") else compute
    if channels > FUSED_CHANNELS:
        return _prepare_wide(weights, compute, operand)
    padded = 64 if channels <= 64 else 128
    device = weights.norm_weight.device
    depthwise = torch.empty(taps, padded, dtype=compute, device=device)
    hi = torch.empty(padded, padded, dtype=operand, device=device)
    lo = torch.empty_like(hi) if precision == "bf16x3" else hi
    vectors = torch.empty(3, padded, dtype=compute, device=device)
    config = configuration("prepare_weights", target, precision, channels)
    arguments: dict[str, Any] = {
        f"{name}_ptr": weight.contiguous() for name, weight in zip(Weights._fields, weights, strict=True)
    }
    arguments |= {"depthwise_ptr": depthwise, "hi_ptr": hi, "lo_ptr": lo, "vectors_ptr": vectors}
    arguments |= {"C": channels, "K": taps, "PADDED": padded, "PRECISION": precision, "COMPUTE": TRITON_TYPE[compute]}
    programs = padded // config.constants["BLOCK"] + 1
    launch(prepare_weights, (programs,), config, arguments, outputs=padded * config.constants["BLOCK"])
    return Prepared(depthwise, Split(hi, lo), *vectors)


def _prepare_wide(weights: Weights, compute: torch.dtype, operand: torch.dtype) -> Prepared:
    depthwise, depthwise_bias, pointwise, pointwise_bias, norm, norm_bias = (w.to(compute) for w in weights)
    channels = norm.shape[0]
    grow = (0, triton.cdiv(channels, 64) * 64 - channels)
    weight = pointwise[..., 0]
    bias = pointwise_bias + (weight * depthwise_bias).sum(1)
    weight = F.pad(weight - weight.mean(0), grow + grow)
    hi = weight.to(operand)
    return Prepared(
        F.pad(depthwise[:, 0].T, grow).contiguous(),
        Split(hi, (weight - hi).to(operand)),
        F.pad(bias - bias.mean(), grow),
        F.pad(norm, grow),
        F.pad(norm_bias, grow),
    )
