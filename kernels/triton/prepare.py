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
def load_columns(weight_ptr, row, column, C: tl.constexpr, COMPUTE: tl.constexpr):
    """(A [outputs, inputs] at rows `row` and columns `column`, which of these there are)."""
    mask = (row < C)[:, None] & (column < C)[None, :]
    return tl.load(weight_ptr + row[:, None] * C + column[None, :], mask=mask, other=0.0).to(COMPUTE), mask


@triton.jit
def centred(a, mask, C: tl.constexpr):
    """A' of whole columns."""
    return tl.where(mask, a - (tl.sum(a, 0) / C)[None, :], 0.0)


@triton.jit
def store_operands(
    a, row, column, keep, hi_ptr, lo_ptr, half_hi_ptr, half_lo_ptr, PADDED: tl.constexpr, PRECISION: tl.constexpr
):
    """A' as products take it, where `keep` [outputs, 1]."""
    offsets = row[:, None] * PADDED + column[None, :]
    hi, lo = split(a, PRECISION)
    tl.store(hi_ptr + offsets, hi, mask=keep)
    if PRECISION == "bf16x3":
        tl.store(lo_ptr + offsets, lo, mask=keep)
    if PRECISION == "tf32":
        half_hi, half_lo = split(a, "bf16x3")
        tl.store(half_hi_ptr + offsets, half_hi, mask=keep)
        tl.store(half_lo_ptr + offsets, half_lo, mask=keep)


@triton.jit
def load_vectors(
    depthwise_weight_ptr,
    pointwise_bias_ptr,
    norm_weight_ptr,
    norm_bias_ptr,
    row,
    C: tl.constexpr,
    K: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """What there is one number of for each channel: b, norm_weight, norm_bias, and the taps."""
    real = row < C
    vectors = (
        tl.load(pointwise_bias_ptr + row, mask=real, other=0.0).to(COMPUTE),
        tl.load(norm_weight_ptr + row, mask=real, other=0.0).to(COMPUTE),
        tl.load(norm_bias_ptr + row, mask=real, other=0.0).to(COMPUTE),
    )
    for k in tl.static_range(K):
        vectors = vectors + (tl.load(depthwise_weight_ptr + row * K + k, mask=real, other=0.0).to(COMPUTE),)
    return vectors


@triton.jit
def store_vectors(vectors, shift, row, vectors_ptr, C: tl.constexpr, K: tl.constexpr, PADDED: tl.constexpr):
    """What `load_vectors` has loaded, with b' in the place of b; shift is A·d."""
    b = vectors[0] + shift
    tl.store(vectors_ptr + row, tl.where(row < C, b - tl.sum(b, 0) / C, 0.0))
    for n in tl.static_range(1, 3 + K):
        tl.store(vectors_ptr + n * PADDED + row, vectors[n])


@triton.jit
def prepare_weights(
    depthwise_weight_ptr,  # [C, 1, K]
    depthwise_bias_ptr,  # d [C]
    pointwise_weight_ptr,  # A [C, C]
    pointwise_bias_ptr,  # b [C]
    norm_weight_ptr,  # [C]
    norm_bias_ptr,
    vectors_ptr,  # out: [3 + K, PADDED]: b', norm_weight, norm_bias, and the taps
    hi_ptr,  # out: A' [PADDED, PADDED] (output, input), in the dtype the product takes
    lo_ptr,  # out: A' − hi, only for "bf16x3"
    half_hi_ptr,  # out: A' as for "bf16x3", only for "tf32": its backward pass may multiply like that
    half_lo_ptr,
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
    if n < PADDED // BLOCK:
        column = n * BLOCK + tl.arange(0, BLOCK)
        a, mask = load_columns(pointwise_weight_ptr, row, column, C, COMPUTE)
        a = centred(a, mask, C)
        store_operands(a, row, column, (row >= 0)[:, None], hi_ptr, lo_ptr, half_hi_ptr, half_lo_ptr, PADDED, PRECISION)
    else:
        # Triton wants one type per name across branches: not `a` and `mask` again
        whole, _ = load_columns(pointwise_weight_ptr, row, row, C, COMPUTE)
        d = tl.load(depthwise_bias_ptr + row, mask=row < C, other=0.0).to(COMPUTE)
        vectors = load_vectors(
            depthwise_weight_ptr, pointwise_bias_ptr, norm_weight_ptr, norm_bias_ptr, row, C, K, COMPUTE
        )
        store_vectors(vectors, tl.sum(whole * d[None, :], 1), row, vectors_ptr, C, K, PADDED)


@triton.jit
def prepare_within(
    depthwise_weight_ptr,
    depthwise_bias_ptr,
    pointwise_weight_ptr,
    pointwise_bias_ptr,
    norm_weight_ptr,
    norm_bias_ptr,
    vectors_ptr,  # out: [3 + K, PADDED]
    hi_ptr,  # out, where `keep`; this and the next three as in `prepare_weights`
    lo_ptr,
    half_hi_ptr,
    half_lo_ptr,
    keep,
    C: tl.constexpr,
    K: tl.constexpr,
    PADDED: tl.constexpr,
    KEEP: tl.constexpr,
    PRECISION: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """What `prepare_weights` does, by one program of another kernel: ((hi, lo),)·4 [PADDED, PADDED // 4] of A', column
    by column; the per-channel numbers in memory, which the program's threads may read at once.
    """
    BLOCK: tl.constexpr = PADDED // 4
    row = tl.arange(0, PADDED)
    vectors = load_vectors(depthwise_weight_ptr, pointwise_bias_ptr, norm_weight_ptr, norm_bias_ptr, row, C, K, COMPUTE)
    given = ()
    for n in tl.static_range(4):  # all loads before the first sum
        column = n * BLOCK + tl.arange(0, BLOCK)
        a, mask = load_columns(pointwise_weight_ptr, row, column, C, COMPUTE)
        d = tl.load(depthwise_bias_ptr + column, mask=column < C, other=0.0).to(COMPUTE)
        given = given + ((a, mask, d),)
    kept = (row * 0 + keep.to(tl.int32) > 0)[:, None]  # Triton 3.9's interpreter takes no single truth for a mask
    shift = tl.zeros((PADDED, BLOCK), COMPUTE)
    operands = ()
    for n in tl.static_range(4):
        a, mask, d = given[n]
        shift += a * d[None, :]
        a = centred(a, mask, C)
        if KEEP:
            column = n * BLOCK + tl.arange(0, BLOCK)
            store_operands(a, row, column, kept, hi_ptr, lo_ptr, half_hi_ptr, half_lo_ptr, PADDED, PRECISION)
        operands = operands + (split(a, PRECISION),)
    store_vectors(vectors, tl.sum(shift, 1), row, vectors_ptr, C, K, PADDED)
    tl.debug_barrier()
    return operands


class Prepared(NamedTuple):
    """The weights in the compute dtype, padded to a whole number of channel blocks, the pointwise one centred."""

    vectors: Tensor  # [3 + K, PADDED]: the next three, and the taps
    bias: Tensor  # [PADDED], centred, the depthwise bias folded in
    norm: Tensor  # [PADDED]
    norm_bias: Tensor  # [PADDED]
    depthwise: Tensor  # [K, PADDED]
    pointwise: Split  # [PADDED, PADDED] (out, in)
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
    vectors, rest = memory[: (3 + taps) * padded].view(3 + taps, padded), memory[(3 + taps) * padded :]
    if precision.startswith("bf16"):
        rest = rest.view(torch.bfloat16)
    hi = rest[: padded**2].view(padded, padded)
    lo = rest[padded**2 :].view(padded, padded) if precision == "bf16x3" else hi
    operand = Split(hi, lo)
    if precision == "tf32" and channels <= FUSED_CHANNELS:
        operand = Split(*rest[padded**2 :].view(torch.bfloat16).view(2, padded, padded))
    return Prepared(vectors, vectors[0], vectors[1], vectors[2], vectors[3:], Split(hi, lo), operand)


def weight_arguments(weights: Weights, prepared: Prepared) -> dict[str, Tensor]:
    """The weights as they are given, and where they go as they are prepared."""
    return {
        **{f"{name}_ptr": weight for name, weight in zip(Weights._fields, weights, strict=True)},
        "vectors_ptr": prepared.vectors,
        "hi_ptr": prepared.pointwise.hi,
        "lo_ptr": prepared.pointwise.lo,
        "half_hi_ptr": prepared.operand.hi,
        "half_lo_ptr": prepared.operand.lo,
    }


def prepare(weights: Weights, target: Target, precision: str, prepared: Prepared) -> None:
    """One launch; for more than 128 channels a few PyTorch calls, which are then small beside the rest."""
    channels, _, taps = weights.depthwise_weight.shape
    padded = prepared.vectors.shape[1]
    if channels > FUSED_CHANNELS:
        host(_prepare_wide, *weights, prepared.depthwise, *prepared.pointwise, prepared.vectors[:3])
        return
    config = configuration("prepare_weights", target, precision, channels)
    arguments: dict[str, Any] = {
        **weight_arguments(weights, prepared),
        "C": channels,
        "K": taps,
        "PADDED": padded,
        "PRECISION": precision,
        "COMPUTE": TRITON_TYPE[prepared.vectors.dtype],
    }
    programs = padded // config.constants["BLOCK"] + 1
    launch(prepare_weights, (programs,), config, arguments, outputs=padded * config.constants["BLOCK"])


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
