"""First stage of both directions: the six weights in the compute dtype, padded, the pointwise one centred.

Centring
--------
LayerNorm takes the mean over channels out of u = A·(conv + d) + b, with A the pointwise weight, d and b the biases.
That mean is itself linear in conv, so it can be taken out of A and b beforehand:

    A' = A − mean over its rows (outputs),   b' = (A·d + b) − mean of it,   u' = A'·conv + b' = u − mean_c u

u' has mean zero exactly (in real arithmetic), so a frame's variance is mean_c u'², and LayerNorm's backward has one
reduction less. The gradients fold back: dA = G − mean over rows of G with G = dA' + db'·dᵀ, since Σ_frames du' = db'
reaches A through d as well; dd = A'ᵀ·db'; db = db' − mean db' (`transform` states it in full).
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from ..reference import compute_dtype
from ..weights import Weights
from .configurations import Target, configuration
from .launch import FUSED_CHANNELS, TRITON_TYPE, host, launch
from .operands import Split, split


@triton.jit
def prepare_weights(
    depthwise_weight_ptr,  # [C, 1, K]
    depthwise_bias_ptr,  # d [C]
    pointwise_weight_ptr,  # A [C, C]
    pointwise_bias_ptr,  # b [C]
    norm_weight_ptr,  # [C]
    norm_bias_ptr,
    depthwise_ptr,  # out: [K, PADDED]
    hi_ptr,  # out: A' [PADDED, PADDED] (output, input), in the dtype the product takes
    lo_ptr,  # out: A' − hi, only for "bf16x3"
    half_hi_ptr,  # out: A' as for "bf16x3", only for "tf32": its backward pass may multiply like that
    half_lo_ptr,
    vectors_ptr,  # out: [3, PADDED]: b', norm_weight, norm_bias
    C: tl.constexpr,
    K: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Widen to COMPUTE, pad with zeros, centre, fold and split, in one launch of PADDED // BLOCK + 1 programs.

    Each takes BLOCK input channels of A; the last one the per-channel numbers.
    """
    n = tl.program_id(0)
    row = tl.arange(0, PADDED)
    real = row < C
    if n < PADDED // BLOCK:
        column = n * BLOCK + tl.arange(0, BLOCK)
        mask = real[:, None] & (column < C)[None, :]
        a = tl.load(pointwise_weight_ptr + row[:, None] * C + column[None, :], mask=mask, other=0.0).to(COMPUTE)
        a = tl.where(mask, a - (tl.sum(a, 0) / C)[None, :], 0.0)
        hi, lo = split(a, PRECISION)
        offsets = row[:, None] * PADDED + column[None, :]
        tl.store(hi_ptr + offsets, hi)
        if PRECISION == "bf16x3":
            tl.store(lo_ptr + offsets, lo)
        if PRECISION == "tf32":
            half_hi, half_lo = split(a, "bf16x3")
            tl.store(half_hi_ptr + offsets, half_hi)
            tl.store(half_lo_ptr + offsets, half_lo)
    else:
        square = row[:, None] * C + row[None, :]  # Triton wants one type per name across branches: not `a` again
        whole = tl.load(pointwise_weight_ptr + square, mask=real[:, None] & real[None, :], other=0.0).to(COMPUTE)
        d = tl.load(depthwise_bias_ptr + row, mask=real, other=0.0).to(COMPUTE)
        b = tl.load(pointwise_bias_ptr + row, mask=real, other=0.0).to(COMPUTE) + tl.sum(whole * d[None, :], 1)
        tl.store(vectors_ptr + row, tl.where(real, b - tl.sum(b, 0) / C, 0.0))
        gamma = tl.load(norm_weight_ptr + row, mask=real, other=0.0).to(COMPUTE)
        beta = tl.load(norm_bias_ptr + row, mask=real, other=0.0).to(COMPUTE)
        tl.store(vectors_ptr + PADDED + row, gamma)
        tl.store(vectors_ptr + 2 * PADDED + row, beta)
        for k in tl.static_range(K):
            tap = tl.load(depthwise_weight_ptr + row * K + k, mask=real, other=0.0).to(COMPUTE)
            tl.store(depthwise_ptr + k * PADDED + row, tap)


class Prepared(NamedTuple):
    """The weights in the compute dtype, padded to a whole number of channel blocks, the pointwise one centred."""

    depthwise: Tensor  # [K, PADDED]
    pointwise: Split  # [PADDED, PADDED] (out, in)
    bias: Tensor  # [PADDED], centred, the depthwise bias folded in
    norm: Tensor  # [PADDED]
    norm_bias: Tensor  # [PADDED]
    operand: Split  # the pointwise one as `joint` takes it: for "tf32" like that of "bf16x3"


def room(weights: Weights, precision: str) -> tuple[torch.dtype, int]:
    """The compute dtype, and how many of its elements `lay_out` takes."""
    channels, _, taps = weights.depthwise_weight.shape
    compute = compute_dtype(weights.norm_weight.dtype)
    padded = triton.cdiv(channels, 64) * 64
    halves = 2 if precision in ("bf16x3", "bf16") and compute == torch.float32 else 1
    operands = 2 if precision == "bf16x3" or (precision == "tf32" and channels <= FUSED_CHANNELS) else 1
    return compute, (taps + 3) * padded + operands * padded**2 // halves


def lay_out(memory: Tensor, weights: Weights, precision: str) -> Prepared:
    """Everything in one piece of memory, each part aligned."""
    channels, _, taps = weights.depthwise_weight.shape
    padded = triton.cdiv(channels, 64) * 64
    vectors, rest = memory[: 3 * padded].view(3, padded), memory[3 * padded :]
    depthwise, rest = rest[: taps * padded].view(taps, padded), rest[taps * padded :]
    if precision.startswith("bf16"):
        rest = rest.view(torch.bfloat16)
    hi = rest[: padded**2].view(padded, padded)
    lo = rest[padded**2 :].view(padded, padded) if precision == "bf16x3" else hi
    operand = Split(hi, lo)
    if precision == "tf32" and channels <= FUSED_CHANNELS:
        operand = Split(*rest[padded**2 :].view(torch.bfloat16).view(2, padded, padded))
    return Prepared(depthwise, Split(hi, lo), vectors[0], vectors[1], vectors[2], operand)


def prepare(weights: Weights, target: Target, precision: str, memory: Tensor) -> Prepared:
    """One launch; for more than 128 channels a few PyTorch calls, which are then small beside the rest."""
    channels, _, taps = weights.depthwise_weight.shape
    prepared = lay_out(memory, weights, precision)
    depthwise, (hi, lo) = prepared.depthwise, prepared.pointwise
    padded = depthwise.shape[1]
    vectors = memory[: 3 * padded].view(3, padded)
    if channels > FUSED_CHANNELS:
        host(_prepare_wide, *weights, depthwise, hi, lo, vectors)
        return prepared
    config = configuration("prepare_weights", target, precision, channels)
    arguments: dict[str, Any] = {
        **{f"{name}_ptr": weight for name, weight in zip(Weights._fields, weights, strict=True)},
        "depthwise_ptr": depthwise,
        "hi_ptr": hi,
        "lo_ptr": lo,
        "half_hi_ptr": prepared.operand.hi,
        "half_lo_ptr": prepared.operand.lo,
        "vectors_ptr": vectors,
        "C": channels,
        "K": taps,
        "PADDED": padded,
        "PRECISION": precision,
        "COMPUTE": TRITON_TYPE[memory.dtype],
    }
    programs = padded // config.constants["BLOCK"] + 1
    launch(prepare_weights, (programs,), config, arguments, outputs=padded * config.constants["BLOCK"])
    return prepared


def _prepare_wide(*tensors: Tensor) -> None:
    """The six weights into what `Prepared` names: depthwise, hi, lo, and the three vectors."""
    *weights, taps, hi, lo, vectors = tensors
    depthwise, depthwise_bias, pointwise, pointwise_bias, norm, norm_bias = (w.to(taps.dtype) for w in weights)
    grow = (0, taps.shape[1] - norm.shape[0])
    weight = pointwise[..., 0]
    bias = pointwise_bias + (weight * depthwise_bias).sum(1)
    weight = F.pad(weight - weight.mean(0), grow + grow)
    hi.copy_(weight)
    if lo.data_ptr() != hi.data_ptr():
        lo.copy_(weight - hi)
    taps.copy_(F.pad(depthwise[:, 0].T, grow))
    for vector, values in zip(vectors, (bias - bias.mean(), norm, norm_bias), strict=True):
        vector.copy_(F.pad(values, grow))
