"""The steps of the backward pass, one method each: scratch, grids, configurations. `launch_backward` orders them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from .configurations import Configuration, Target, configuration
from .launch import (
    FUSED_CHANNELS,
    TRITON_TYPE,
    Prepared,
    Source,
    Split,
    Weights,
    launch,
    precision_of,
    prepare,
    target_of,
)
from .launch_forward import overlap
from .launch_wide import multiply_wide, weight_product_wide
from .pointwise_backward import norm_backward, product_backward
from .wide import wide_norm_backward
from .windowed_tonality_backward import place_windows, recompute_windows, window_backward


class Normed(NamedTuple):
    """What `Chain.norm` leaves, as far as it was asked for."""

    du: Split | None = None
    heard: Tensor | None = None  # [B, P, W]
    dbias: Tensor | None = None  # [rows, C], to be summed over rows
    dnorm: Tensor | None = None  # [rows, C]


class Windowed(NamedTuple):
    """What `Chain.window` leaves, as far as it was asked for."""

    dy: Tensor | None = None  # [B, P, C, W]
    taps: Tensor | None = None  # [B, P, K, C]
    sums: Tensor | None = None  # [B, P, C]
    scalars: Tensor | None = None  # [B, P, chunks, 3]


@dataclass(frozen=True)
class Chain:
    """One backward call: the tensors that its steps read."""

    grad_out: Tensor  # [B, P, C, W], contiguous
    source: Source
    strength: Tensor  # [B, P], contiguous
    prepared: Prepared
    eps: float
    target: Target
    precision: str  # of the pointwise products

    @property
    def compute(self) -> torch.dtype:
        return self.prepared.bias.dtype

    def scratch(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(shape, dtype=dtype or self.compute, device=self.grad_out.device)

    def spare(self, tensor: Tensor | None) -> Tensor:
        """`tensor`, or something to pass in the place of one that the kernel does not touch."""
        return self.strength if tensor is None else tensor

    def operand(self) -> Split:
        """[B, P, C, W], as the products take it."""
        return Split.empty(self.grad_out.shape, self.prepared.pointwise.hi, self.precision)

    def configuration(self, kernel: str) -> Configuration:
        step = self.source.tensor.stride(-1)
        return configuration(kernel, self.target, self.precision, *self.grad_out.shape[2:], frame_stride=step)

    def sizes(self) -> dict[str, Any]:
        _, _, channels, window = self.grad_out.shape
        return {"W": window, "C": channels, "COMPUTE": TRITON_TYPE[self.compute]}

    def with_overlap(self, kernel: str) -> tuple[Configuration, int]:
        """Configuration of a kernel that convolves, its tile large enough for the taps; and HALO."""
        config = self.configuration(kernel)
        halo = overlap(self.prepared.depthwise.shape[0])
        block_t = max(config.constants["BLOCK_T"], triton.next_power_of_2(4 * halo))
        return replace(config, constants={**config.constants, "BLOCK_T": block_t}), halo

    def recompute(self) -> Split:
        """z."""
        batch, pairs, channels, window = self.grad_out.shape
        config, halo = self.with_overlap("recompute_windows")
        own, block_c = config.constants["BLOCK_T"] - 2 * halo, config.constants["BLOCK_C"]
        z = self.operand()
        arguments = {
            **self.source.arguments(pairs),
            "depthwise_ptr": self.prepared.depthwise,
            "z_ptr": z.hi,
            "z_lo_ptr": z.lo,
            "K": self.prepared.depthwise.shape[0],
            "PADDED": self.prepared.depthwise.shape[1],
            "HALO": halo,
            "PRECISION": self.precision,
            **self.sizes(),
        }
        grid = (batch * pairs * triton.cdiv(window, own), triton.cdiv(channels, block_c))
        launch(recompute_windows, grid, config, arguments, outputs=own * block_c)
        return z

    def norm(self, z: Split, *, du: bool, bias: bool, norm: bool, heard: bool) -> Normed:
        """du, and partial sums for dâ, dγ and dstrength."""
        batch, pairs, channels, window = self.grad_out.shape
        config = self.configuration("norm_backward")
        block_t = config.constants["BLOCK_T"]
        tiles = batch * pairs * triton.cdiv(window, block_t)
        programs = min(tiles, self.target.processors * config.per_processor)
        out = Normed(
            self.operand() if du else None,
            self.scratch(batch, pairs, window) if heard else None,
            self.scratch(programs, channels) if bias else None,
            self.scratch(programs, channels) if norm else None,
        )
        written = out.du or z
        arguments = {
            "z_ptr": z.hi,
            "z_lo_ptr": z.lo,
            "strength_ptr": self.strength,
            "pointwise_hi_ptr": self.prepared.pointwise.hi,
            "pointwise_lo_ptr": self.prepared.pointwise.lo,
            "pointwise_bias_ptr": self.prepared.bias,
            "norm_weight_ptr": self.prepared.norm,
            "grad_ptr": self.grad_out,
            "du_ptr": written.hi,
            "du_lo_ptr": written.lo,
            "heard_ptr": self.spare(out.heard),
            "dbias_ptr": self.spare(out.dbias),
            "dnorm_ptr": self.spare(out.dnorm),
            "tiles": tiles,
            "EPS": self.eps,
            "NEED_DU": du,
            "NEED_BIAS": bias,
            "NEED_NORM": norm,
            "NEED_HEARD": heard,
            "PADDED": self.prepared.bias.shape[0],
            "PRECISION": self.precision,
            **self.sizes(),
        }
        launch(norm_backward, (programs,), config, arguments, outputs=block_t * channels, looped=True)
        return out

    def product(self, z: Split, du: Split, *, dz: bool, weight: bool) -> tuple[Tensor | None, Tensor | None]:
        """dz [B, P, C, W], and dÂ [C, C], as far as asked for."""
        batch, pairs, channels, window = self.grad_out.shape
        config = self.configuration("product_backward")
        block_t = config.constants["BLOCK_T"]
        tiles = batch * pairs * triton.cdiv(window, block_t)
        programs = min(tiles, self.target.processors * config.per_processor)
        out = self.scratch(*self.grad_out.shape) if dz else None
        partial = self.scratch(programs, channels, channels) if weight else None
        arguments = {
            "z_ptr": z.hi,
            "z_lo_ptr": z.lo,
            "du_ptr": du.hi,
            "du_lo_ptr": du.lo,
            "pointwise_hi_ptr": self.prepared.pointwise.hi,
            "pointwise_lo_ptr": self.prepared.pointwise.lo,
            "dz_ptr": self.spare(out),
            "dpointwise_ptr": self.spare(partial),
            "tiles": tiles,
            "PADDED": self.prepared.bias.shape[0],
            "PRECISION": self.precision,
            **self.sizes(),
        }
        steps = [(dz, weight)]
        if dz and weight and not products_together(self.target, self.precision):
            steps = [(True, False), (False, True)]
        for need_dz, need_weight in steps:
            arguments |= {"NEED_DZ": need_dz, "NEED_WEIGHT": need_weight}
            launch(product_backward, (programs,), config, arguments, outputs=block_t * channels, looped=True)
        return out, None if partial is None else partial.sum(0)

    def places(self, *, slopes: bool) -> dict[str, Tensor]:
        """i, f and, if asked for, the slopes of every frame of every window."""
        batch, pairs, _, window = self.grad_out.shape
        config = self.configuration("place_windows")
        block_t = config.constants["BLOCK_T"]
        places = {
            "index_ptr": self.scratch(batch, pairs, window, dtype=torch.int32),
            "fraction_ptr": self.scratch(batch, pairs, window),
            "along_start_ptr": self.spare(self.scratch(batch, pairs, window) if slopes else None),
            "along_ratio_ptr": self.spare(self.scratch(batch, pairs, window) if slopes else None),
        }
        arguments = {
            "start_ptr": self.source.start,
            "ratio_ptr": self.source.ratio,
            **places,
            "T": self.source.tensor.shape[-1],
            "W": window,
            "NEED_PLACE": slopes,
            "COMPUTE": TRITON_TYPE[self.compute],
        }
        programs = batch * pairs * triton.cdiv(window, block_t)
        # each frame is placed for all channels
        launch(place_windows, (programs,), config, arguments, outputs=block_t * self.grad_out.shape[2])
        return places

    def window(
        self, dz: Tensor | None, *, dy: torch.dtype | None, place: bool, taps: bool, blend: bool, sums: bool
    ) -> Windowed:
        """dy in the dtype given, and partial sums for dd, dstart, dratio, dstrength and dβ."""
        batch, pairs, channels, _ = self.grad_out.shape
        width = self.prepared.depthwise.shape[0]
        config, halo = self.with_overlap("window_backward")
        own, block_c = config.constants["BLOCK_T"] - 2 * halo, config.constants["BLOCK_C"]
        chunks = triton.cdiv(channels, block_c)
        out = Windowed(
            self.scratch(*self.grad_out.shape, dtype=dy) if dy else None,
            self.scratch(batch, pairs, width, channels) if taps else None,
            self.scratch(batch, pairs, channels) if sums else None,
            self.scratch(batch, pairs, chunks, 3) if place or blend else None,
        )
        places = dict.fromkeys(("index_ptr", "fraction_ptr", "along_start_ptr", "along_ratio_ptr"), self.strength)
        if self.source.resample and (place or taps or blend):
            places = self.places(slopes=place)
        source = self.source.arguments(pairs)
        for name in ("start_ptr", "ratio_ptr", "T"):
            del source[name]
        arguments = {
            **source,
            **places,
            "strength_ptr": self.strength,
            "depthwise_ptr": self.prepared.depthwise,
            "grad_ptr": self.grad_out,
            "dz_ptr": self.spare(dz),
            "dy_ptr": self.spare(out.dy),
            "taps_ptr": self.spare(out.taps),
            "sums_ptr": self.spare(out.sums),
            "scalars_ptr": self.spare(out.scalars),
            "NEED_DY": dy is not None,
            "NEED_PLACE": place,
            "NEED_TAPS": taps,
            "NEED_BLEND": blend,
            "NEED_SUMS": sums,
            "K": width,
            "PADDED": self.prepared.depthwise.shape[1],
            "HALO": halo,
            **self.sizes(),
        }
        grid = (batch * pairs, chunks)
        launch(window_backward, grid, config, arguments, outputs=own * block_c, looped=True)
        return out


@dataclass(frozen=True)
class WideChain(Chain):
    """More channels than the registers of one program hold."""

    def norm(self, z: Split, *, du: bool, bias: bool, norm: bool, heard: bool) -> Normed:
        batch, pairs, channels, window = self.grad_out.shape
        config = self.configuration("wide_norm_backward")
        block_t = config.constants["BLOCK_T"]
        tiles = batch * pairs * triton.cdiv(window, block_t)
        u = multiply_wide(z, self.prepared, self.target, self.precision)
        written, frames = self.operand(), self.scratch(batch, pairs, window)
        dbias, dnorm = self.scratch(tiles, channels), self.scratch(tiles, channels)
        arguments = {
            "u_ptr": u,
            "strength_ptr": self.strength,
            "norm_weight_ptr": self.prepared.norm,
            "grad_ptr": self.grad_out,
            "du_ptr": written.hi,
            "du_lo_ptr": written.lo,
            "heard_ptr": frames,
            "dbias_ptr": dbias,
            "dnorm_ptr": dnorm,
            "EPS": self.eps,
            "PRECISION": self.precision,
            **self.sizes(),
        }
        launch(wide_norm_backward, (tiles,), config, arguments, outputs=block_t * channels)
        return Normed(written, frames, dbias.sum(0, keepdim=True), dnorm.sum(0, keepdim=True))

    def product(self, z: Split, du: Split, *, dz: bool, weight: bool) -> tuple[Tensor | None, Tensor | None]:
        return (
            multiply_wide(du, self.prepared, self.target, self.precision, transposed=True) if dz else None,
            weight_product_wide(du, z, self.compute, self.target, self.precision) if weight else None,
        )


def products_together(target: Target, precision: str) -> bool:
    """Whether one launch computes dz and dÂ: elsewhere than on sm_90, and in float64, its registers do not suffice."""
    return target.arch != 80 and precision != "fp64"


def make_chain(grad_out: Tensor, source: Source, strength: Tensor, weights: Weights, eps: float) -> Chain:
    """Choose the precision, prepare the weights."""
    target = target_of(grad_out.device)
    precision = precision_of(grad_out.dtype, target)
    kind: type[Chain] = WideChain if grad_out.shape[2] > FUSED_CHANNELS else Chain
    prepared = prepare(weights, target, precision)
    return kind(grad_out.contiguous(), source, strength.contiguous(), prepared, eps, target, precision)
