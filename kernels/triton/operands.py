"""Operands of the pointwise products: how they are split, stored and multiplied, on the host and in kernels.

Precision of the product
------------------------
`"ieee"` and `"fp64"`: as is. `"tf32"`: tensor cores, 10 bits of mantissa (backward, `joint` takes `"bf16x3"` in its
place). `"bf16"`: operands rounded to bfloat16. `"bf16x3"`: each operand as the sum of two bfloat16 numbers, hi + lo,
and three of the four products. Each operand then has 17 bits, and the product left out is of the size of the last one:
a relative error of up to 3·2⁻¹⁸ = 1.1e-5 (twice that where two products follow one another, backward), some twenty
times that of true float32. The fourth product alone would not mend it. All accumulate in float32 (`"fp64"` in float64).

Three TF32 products (22 bits) would be as exact as float32; as of now they do not fit: 40.5 instructions per output
forward in Triton 3.6, and backward either spills or exceeds the shared memory of sm_90.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class Split(NamedTuple):
    """An operand of the pointwise products: hi + lo for "bf16x3", else hi alone (and lo is hi).

    Or dz, as it is, or in 24 bits as `pack` leaves it.
    """

    hi: Tensor
    lo: Tensor

    @classmethod
    def empty(cls, shape: torch.Size, like: Tensor, precision: str) -> "Split":
        """Room for an operand, in the dtype of `like`."""
        hi = torch.empty(shape, dtype=like.dtype, device=like.device)
        return cls(hi, torch.empty_like(hi) if precision == "bf16x3" else hi)

    @classmethod
    def whole(cls, tensor: Tensor) -> "Split":
        return cls(tensor, tensor)


@triton.jit
def split(a, PRECISION: tl.constexpr):
    """(hi, lo): what `multiply` takes for one operand; lo is meant only for "bf16x3"."""
    if PRECISION == "bf16x3":
        hi = a.to(tl.bfloat16)
        return hi, (a - hi.to(tl.float32)).to(tl.bfloat16)
    elif PRECISION == "bf16":
        hi = a.to(tl.bfloat16)
        return hi, hi
    else:
        return a, a


@triton.jit
def pack(a):
    """float32 in 24 bits: (the upper 16, the 8 after them), 16 of them mantissa, rounded; a NaN remains one."""
    bits = a.to(tl.int32, bitcast=True)
    bits += tl.where(a == a, 0x80, 0)
    return (bits >> 16).to(tl.int16), (bits >> 8).to(tl.int8)


@triton.jit
def unpack(upper, lower):
    """What `pack` has packed."""
    bits = (upper.to(tl.int32) << 16) | ((lower.to(tl.int32) & 0xFF) << 8)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def multiply(a_hi, a_lo, b_hi, b_lo, acc, PRECISION: tl.constexpr):
    """acc + a @ b, operands as `split` gives them."""
    if PRECISION == "bf16x3":
        acc = tl.dot(a_hi, b_lo, acc)
        acc = tl.dot(a_lo, b_hi, acc)
        return tl.dot(a_hi, b_hi, acc)
    elif PRECISION == "bf16":
        return tl.dot(a_hi, b_hi, acc)
    elif PRECISION == "fp64":
        return tl.dot(a_hi, b_hi, acc, out_dtype=tl.float64)
    else:
        return tl.dot(a_hi, b_hi, acc, input_precision=PRECISION)


@triton.jit
def load_split(hi_ptr, lo_ptr, offsets, mask, PRECISION: tl.constexpr):
    """An operand that was stored as `split` gives it."""
    hi = tl.load(hi_ptr + offsets, mask=mask, other=0.0)
    lo = tl.load(lo_ptr + offsets, mask=mask, other=0.0) if PRECISION == "bf16x3" else hi
    return hi, lo
