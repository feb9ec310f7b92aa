"""Launches of the backward kernels, one method each: sizes, scratch, configuration. `launch_backward` orders them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from ..reference import compute_dtype
from .pointwise_backward import norm_backward, product_backward, wide_norm_backward
from .tonality import prepare_weights
from .windowed_tonality_backward import recompute_windows, window_backward

TRITON_TYPE = {torch.float32: tl.float32, torch.float64: tl.float64}


class Source(NamedTuple):
    """What the windows are made of: x [B, C, T] with start and ratio, or y [B, P, C, W] itself."""

    tensor: Tensor
    start: Tensor  # [B, P], contiguous
    ratio: Tensor
    resample: bool


class Split(NamedTuple):
    """An operand of the pointwise products: hi + lo for "bf16x3", else hi alone (and lo is hi)."""

    hi: Tensor
    lo: Tensor


class Prepared(NamedTuple):
    """The weights in the compute dtype, padded to a whole number of channel blocks, the pointwise one centred."""

    depthwise: Tensor  # [K, PADDED]
    pointwise: Split  # [PADDED, PADDED] (out, in)
    bias: Tensor  # [PADDED], centred, the depthwise bias folded in
    norm: Tensor  # [PADDED]
    norm_bias: Tensor  # [PADDED]


class Normed(NamedTuple):
    """What `norm_backward` leaves; tensors that were not asked for hold nothing."""

    du: Split
    heard: Tensor  # [B, P, W]
    dbias: Tensor  # [programs, C]
    dnorm: Tensor  # [programs, C]


class Windowed(NamedTuple):
    """What `window_backward` leaves; tensors that were not asked for hold nothing."""

    dy: Tensor  # [B, P, C, W]
    taps: Tensor  # [B, P, K, C]
    sums: Tensor  # [B, P, C]
    scalars: Tensor  # [B, P, chunks, 3]


def overlap(taps: int) -> tuple[int, int]:
    """(BLOCK_T, HALO): frames of a tile, and those on either side that only feed the convolution (whole 16 bytes)."""
    halo = triton.cdiv(taps // 2, 4) * 4
    return max(128, triton.next_power_of_2(4 * halo)), halo


def persistent_programs(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 3


@dataclass(frozen=True)
class Chain:
    """One backward call: the tensors that every step reads, and the sizes they share."""

    grad_out: Tensor  # [B, P, C, W], contiguous
    source: Source
    strength: Tensor  # [B, P], contiguous
    prepared: Prepared
    eps: float
    precision: str  # of the pointwise products
    operand: torch.dtype  # in which their operands are stored

    @property
    def compute(self) -> torch.dtype:
        return self.prepared.bias.dtype

    def scratch(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(shape, dtype=dtype or self.compute, device=self.grad_out.device)

    def operand_scratch(self) -> Split:
        hi = self.scratch(*self.grad_out.shape, dtype=self.operand)
        return Split(hi, torch.empty_like(hi) if self.precision == "bf16x3" else hi)

    def sizes(self) -> dict[str, Any]:
        """Compile-time values that all kernels have."""
        _, _, channels, window = self.grad_out.shape
        padded = self.prepared.bias.shape[0]
        return {"W": window, "C": channels, "PADDED": padded, "COMPUTE": TRITON_TYPE[self.compute]}

    def reading(self) -> dict[str, Any]:
        """Arguments of the kernels that read the source."""
        stride = self.source.tensor.stride()
        single = self.source.tensor.shape[-1] == 1  # both neighbours of a single frame are itself
        return {
            "source_ptr": self.source.tensor,
            "start_ptr": self.source.start,
            "ratio_ptr": self.source.ratio,
            "depthwise_ptr": self.prepared.depthwise,
            "T": self.source.tensor.shape[-1],
            "P": self.grad_out.shape[1],
            "stride_b": stride[0],
            "stride_p": stride[1],
            "STRIDE_C": stride[-2],
            "STRIDE_T": 0 if single else stride[-1],
            "RESAMPLE": self.source.resample,
            "K": self.prepared.depthwise.shape[0],
            **self.sizes(),
        }

    def recompute(self) -> Split:
        """z."""
        batch, pairs, channels, window = self.grad_out.shape
        z = self.operand_scratch()
        block_t, halo = overlap(self.prepared.depthwise.shape[0])
        tiles = batch * pairs * triton.cdiv(window, block_t - 2 * halo)
        recompute_windows[(tiles, triton.cdiv(channels, 16))](
            z_ptr=z.hi,
            z_lo_ptr=z.lo,
            **self.reading(),
            BLOCK_T=block_t,
            BLOCK_C=16,
            HALO=halo,
            PRECISION=self.precision,
            num_warps=2,
        )
        return z

    def norm(self, z: Split, *, du: bool, bias: bool, norm: bool, heard: bool) -> Normed:
        """du, and partial sums."""
        batch, pairs, channels, window = self.grad_out.shape
        tiles = batch * pairs * triton.cdiv(window, 64)
        programs = min(tiles, persistent_programs(self.grad_out.device))
        out = Normed(
            self.operand_scratch() if du else z,
            self.scratch(batch, pairs, window if heard else 0),
            self.scratch(programs, channels if bias else 0),
            self.scratch(programs, channels if norm else 0),
        )
        norm_backward[(programs,)](
            z_ptr=z.hi,
            z_lo_ptr=z.lo,
            strength_ptr=self.strength,
            pointwise_hi_ptr=self.prepared.pointwise.hi,
            pointwise_lo_ptr=self.prepared.pointwise.lo,
            pointwise_bias_ptr=self.prepared.bias,
            norm_weight_ptr=self.prepared.norm,
            grad_ptr=self.grad_out,
            du_ptr=out.du.hi,
            du_lo_ptr=out.du.lo,
            heard_ptr=out.heard,
            dbias_ptr=out.dbias,
            dnorm_ptr=out.dnorm,
            tiles=tiles,
            EPS=self.eps,
            NEED_DU=du,
            NEED_BIAS=bias,
            NEED_NORM=norm,
            NEED_HEARD=heard,
            BLOCK_T=64,
            FOLD=4,
            PRECISION=self.precision,
            **self.sizes(),
            num_warps=8,
        )
        return out

    def product(self, z: Split, du: Split, *, dz: bool, weight: bool) -> tuple[Tensor, Tensor]:
        """dz [B, P, C, W] and the partial gradients of the centred weight [programs, C, C]."""
        batch, pairs, channels, window = self.grad_out.shape
        tiles = batch * pairs * triton.cdiv(window, 64)
        programs = min(tiles, persistent_programs(self.grad_out.device))
        out = self.scratch(*self.grad_out.shape) if dz else self.scratch(0)
        partial = self.scratch(programs if weight else 0, channels, channels)
        product_backward[(programs,)](
            z_ptr=z.hi,
            z_lo_ptr=z.lo,
            du_ptr=du.hi,
            du_lo_ptr=du.lo,
            pointwise_hi_ptr=self.prepared.pointwise.hi,
            pointwise_lo_ptr=self.prepared.pointwise.lo,
            dz_ptr=out,
            dpointwise_ptr=partial,
            tiles=tiles,
            NEED_DZ=dz,
            NEED_WEIGHT=weight,
            BLOCK_T=64,
            PRECISION=self.precision,
            **self.sizes(),
            num_warps=8,
        )
        return out, partial

    def window(self, dz: Tensor | None, *, dy: torch.dtype | None, place: bool, taps: bool, sums: bool) -> Windowed:
        """dy in the dtype given, and partial sums."""
        batch, pairs, channels, _ = self.grad_out.shape
        block_t, halo = overlap(self.prepared.depthwise.shape[0])
        chunks = triton.cdiv(channels, 16)
        out = Windowed(
            self.scratch(*self.grad_out.shape, dtype=dy) if dy else self.scratch(0),
            self.scratch(batch, pairs, self.prepared.depthwise.shape[0] if taps else 0, channels),
            self.scratch(batch, pairs, channels if sums else 0),
            self.scratch(batch, pairs, chunks, 3),
        )
        window_backward[(batch * pairs, chunks)](
            strength_ptr=self.strength,
            grad_ptr=self.grad_out,
            dz_ptr=self.grad_out if dz is None else dz,
            dy_ptr=out.dy,
            taps_ptr=out.taps,
            sums_ptr=out.sums,
            scalars_ptr=out.scalars,
            **self.reading(),
            NEED_DY=dy is not None,
            NEED_PLACE=place,
            NEED_TAPS=taps,
            NEED_SUMS=sums,
            BLOCK_T=block_t,
            BLOCK_C=16,
            HALO=halo,
            FOLD=4,
            COLUMNS=4,
            num_warps=4,
        )
        return out


@dataclass(frozen=True)
class WideChain(Chain):
    """More channels than the registers of one program hold: the products are PyTorch's, the rest is the same."""

    def norm(self, z: Split, *, du: bool, bias: bool, norm: bool, heard: bool) -> Normed:
        batch, pairs, channels, window = self.grad_out.shape
        block_t = 32
        tiles = batch * pairs * triton.cdiv(window, block_t)
        weight, shift = self.prepared.pointwise.hi[:channels, :channels], self.prepared.bias[:channels, None]
        u = torch.matmul(weight, z.hi).add_(shift)
        slope = torch.empty_like(u)
        out = Normed(
            Split(slope, slope),
            self.scratch(batch, pairs, window),
            self.scratch(tiles, channels),
            self.scratch(tiles, channels),
        )
        wide_norm_backward[(tiles,)](
            u_ptr=u,
            strength_ptr=self.strength,
            norm_weight_ptr=self.prepared.norm,
            grad_ptr=self.grad_out,
            du_ptr=slope,
            heard_ptr=out.heard,
            dbias_ptr=out.dbias,
            dnorm_ptr=out.dnorm,
            EPS=self.eps,
            BLOCK_T=block_t,
            BLOCK_C=64,
            W=window,
            C=channels,
            COMPUTE=TRITON_TYPE[self.compute],
            num_warps=4,
        )
        return out

    def product(self, z: Split, du: Split, *, dz: bool, weight: bool) -> tuple[Tensor, Tensor]:
        channels = self.grad_out.shape[2]
        out = torch.matmul(self.prepared.pointwise.hi[:channels, :channels].T, du.hi) if dz else self.scratch(0)
        # one product per window, then their sum: a single product over all frames would copy both operands first
        partial = torch.matmul(du.hi, z.hi.transpose(2, 3)).flatten(0, 1) if weight else self.scratch(0)
        return out, partial


FUSED_CHANNELS = 128


def make_chain(grad_out: Tensor, source: Source, strength: Tensor, weights: tuple[Tensor, ...], eps: float) -> Chain:
    """Choose the precision, prepare the weights."""
    channels = grad_out.shape[2]
    compute = compute_dtype(grad_out.dtype)
    taps = weights[0].shape[-1]
    if channels > FUSED_CHANNELS:
        return WideChain(
            grad_out.contiguous(), source, strength.contiguous(), _prepare_wide(weights, compute), eps, "ieee", compute
        )
    precision = {torch.float64: "fp64", torch.float32: "tf32", torch.bfloat16: "bf16", torch.float16: "tf32"}[
        grad_out.dtype
    ]
    operand = torch.bfloat16 if precision.startswith("bf16") else compute
    padded = 64 if channels <= 64 else 128
    device = grad_out.device
    depthwise = torch.empty(taps, padded, dtype=compute, device=device)
    hi = torch.empty(padded, padded, dtype=operand, device=device)
    lo = torch.empty_like(hi) if precision == "bf16x3" else hi
    vectors = torch.empty(3, padded, dtype=compute, device=device)
    prepare_weights[(padded // 16 + 1,)](
        *(w.contiguous() for w in weights),
        depthwise,
        hi,
        lo,
        vectors,
        C=channels,
        K=taps,
        PADDED=padded,
        BLOCK=16,
        PRECISION=precision,
        COMPUTE=TRITON_TYPE[compute],
    )
    prepared = Prepared(depthwise, Split(hi, lo), *vectors)
    return Chain(grad_out.contiguous(), source, strength.contiguous(), prepared, eps, precision, operand)


def _prepare_wide(weights: tuple[Tensor, ...], compute: torch.dtype) -> Prepared:
    depthwise, depthwise_bias, pointwise, pointwise_bias, norm, norm_bias = (w.to(compute) for w in weights)
    channels = norm.shape[0]
    padded = triton.cdiv(channels, 16) * 16
    weight = pointwise[..., 0]
    bias = pointwise_bias + (weight * depthwise_bias).sum(1)
    weight = weight - weight.mean(0)
    grow = (0, padded - channels)
    weight = F.pad(weight, grow + grow)
    return Prepared(
        F.pad(depthwise[:, 0].T, grow).contiguous(),
        Split(weight, weight),
        F.pad(bias - bias.mean(), grow),
        F.pad(norm, grow),
        F.pad(norm_bias, grow),
    )
