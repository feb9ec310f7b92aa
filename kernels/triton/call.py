"""One call of the transform, forward or backward: what its stages share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ..weights import Weights
from .configurations import Configuration, Target, configuration
from .launch import FUSED_CHANNELS, TRITON_TYPE, host, precision_of, target_of
from .moments import Moments
from .operands import Split
from .prepare import Prepared, lay_out, room
from .source import Source


def _sum(rows: Tensor, total: Tensor) -> None:
    torch.sum(rows, 0, out=total)


class Places(NamedTuple):
    """Where every frame of every window lies, [B, P, W] each."""

    index: Tensor  # int32, i
    fraction: Tensor  # f
    along_start: Tensor | None  # ∂p/∂start
    along_ratio: Tensor | None


class Normed(NamedTuple):
    """What `Chain.norm` leaves, as far as it was asked for."""

    du: Split | None = None
    heard: Tensor | None = None  # [B, P, tiles of a window]
    restored: Tensor | None = None  # [B, P, 3, W]
    dbias: Tensor | None = None  # [rows, C], to be summed over rows
    dnorm: Tensor | None = None  # [rows, C]


class Windowed(NamedTuple):
    """What `Chain.window` leaves, as far as it was asked for."""

    dy: Tensor | None = None  # [B, P, C, W]
    taps: Tensor | None = None  # [B, P, K, C]
    sums: Tensor | None = None  # [B, P, C]
    scalars: Tensor | None = None  # [B, P, chunks, 3]


@dataclass(frozen=True)
class Call:
    """The tensors that the stages read, and how they compute."""

    source: Source
    strength: Tensor  # [B, P], contiguous
    prepared: Prepared
    window: int
    eps: float
    restore: bool  # of each frame, mean and spread
    target: Target
    precision: str  # of the pointwise products

    @classmethod
    def of(
        cls,
        source: Source,
        strength: Tensor,
        weights: Weights,
        window: int,
        eps: float,
        target: Target | None,
        memory: Tensor | None = None,
        *,
        restore: bool = False,
    ) -> Call:
        """Choose the precision, and where the prepared weights lie: in `memory`, if there is some."""
        target = target or target_of(source.tensor.device)
        precision = precision_of(source.tensor.dtype, target)
        if memory is None:
            compute, size = room(weights, precision)
            memory = torch.empty(size, dtype=compute, device=strength.device)
        prepared = lay_out(memory, weights, precision)
        return cls(source, strength, prepared, window, eps, restore, target, precision)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the windows: B, P, C, W."""
        batch, pairs = self.strength.shape
        return batch, pairs, self.source.tensor.shape[-2], self.window

    @property
    def compute(self) -> torch.dtype:
        return self.prepared.bias.dtype

    @property
    def passed(self) -> torch.dtype:
        """Of gradients on their way through memory, dz and dy: bfloat16 for such a signal, as PyTorch passes them."""
        return torch.bfloat16 if self.precision == "bf16" else self.compute

    @property
    def taps(self) -> int:
        return self.prepared.depthwise.shape[0]

    @property
    def padded(self) -> int:
        """Channels, padded to whole blocks."""
        return self.prepared.depthwise.shape[1]

    @property
    def joint(self) -> Configuration | None:
        """Of the one kernel that takes z to dz; None where there are two, `norm_backward` and `product_backward`."""
        if self.shape[2] > FUSED_CHANNELS:
            return None
        config = self.configuration("joint_backward")
        return config if config.constants else None

    @property
    def operand_precision(self) -> str:
        """How z is stored and multiplied, backward: in one kernel, three products stand for TF32's (see `joint`)."""
        return "bf16x3" if self.precision == "tf32" and self.joint else self.precision

    @property
    def packs(self) -> bool:
        """Whether `joint_backward` passes dz on in 24 bits (`operands.pack`): 2⁻¹⁶ off at most, which is less than its
        two products may be, and 32 times less than TF32 itself. Without TF32, dz is passed on as it is computed.
        """
        return self.precision == "tf32" and self.operand_precision == "bf16x3"

    def scratch(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(shape, dtype=dtype or self.compute, device=self.strength.device)

    def spare(self, tensor: Tensor | None) -> Tensor:
        """`tensor`, or something to pass in the place of one that the kernel does not touch."""
        return self.strength if tensor is None else tensor

    def summed(self, rows: Tensor) -> Tensor:
        """The sum over the first axis, by PyTorch."""
        total = self.scratch(*rows.shape[1:])
        host(_sum, rows, total)
        return total

    def operand(self) -> Split:
        """[B, P, C, W], as the products take it."""
        like = self.prepared.pointwise if self.operand_precision == self.precision else self.prepared.operand
        return Split.empty(torch.Size(self.shape), like.hi, self.operand_precision)

    def configuration(self, kernel: str) -> Configuration:
        return configuration(
            kernel,
            self.target,
            self.precision,
            *self.shape[2:],
            frame_stride=self.source.tensor.stride(-1),
            resample=self.source.resample,
            restore=self.restore,
        )

    def sizes(self) -> dict[str, Any]:
        _, _, channels, window = self.shape
        return {"W": window, "C": channels, "COMPUTE": TRITON_TYPE[self.compute]}

    @property
    def halo(self) -> int:
        """HALO: frames on either side of a tile that only feed the convolution; whole 16 bytes, so stores align."""
        return max(4, triton.cdiv(self.taps // 2, 4) * 4)

    def with_overlap(self, kernel: str) -> tuple[Configuration, int]:
        """Configuration of a kernel that convolves, its tile large enough for the taps; and HALO."""
        config = self.configuration(kernel)
        block_t = max(config.constants["BLOCK_T"], triton.next_power_of_2(4 * self.halo))
        return replace(config, constants={**config.constants, "BLOCK_T": block_t}), self.halo


def place_arguments(call: Call, places: Places | None) -> dict[str, Tensor]:
    """Arguments of the kernels that write or read places."""
    return {f"{name}_ptr": call.spare(getattr(places, name, None)) for name in Places._fields}


def moments_arguments(call: Call, moments: Moments | None) -> dict[str, Any]:
    """Arguments of the kernels that put moments together."""
    return {
        "moments_ptr": call.spare(None if moments is None else moments.tensor),
        "RESTORE": moments is not None,
        "WIDTH": 1 if moments is None else moments.width,
    }
