"""The corrected bfloat16 and TF32 arithmetic of the interpreter, bit by bit against PyTorch's."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
import triton
import triton.language as tl
from interpreter_bf16 import Rounding, corrected_arithmetic
from torch import Tensor

pytestmark = pytest.mark.skipif(os.environ["TRITON_INTERPRET"] != "1", reason="corrects the interpreter")


@triton.jit
def binary(x_ptr, y_ptr, out_ptr, N: tl.constexpr, OP: tl.constexpr):
    i = tl.arange(0, N)
    x, y = tl.load(x_ptr + i), tl.load(y_ptr + i)
    if OP == "add":
        out = x + y
    elif OP == "sub":
        out = x - y
    elif OP == "mul":
        out = x * y
    elif OP == "div":
        out = (x / y).to(x.dtype)
    elif OP == "minimum":
        out = tl.minimum(x, y)
    elif OP == "maximum":
        out = tl.maximum(x, y)
    elif OP == "lt":
        out = x < y
    elif OP == "ge":
        out = x >= y
    elif OP == "where":
        out = tl.where(x < y, x, y * 2.0)
    elif OP == "neg":
        out = -x
    elif OP == "abs":
        out = tl.abs(x)
    elif OP == "clamp":
        out = tl.clamp(x, -1.5, 2.5)
    else:
        out = tl.fma(x, y, x)
    tl.store(out_ptr + i, out)


@triton.jit
def cast(x_ptr, out_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out_ptr + i, tl.load(x_ptr + i).to(out_ptr.dtype.element_ty))


@triton.jit
def reduce(x_ptr, out_ptr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, OP: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :])
    out = tl.sum(x, 1) if OP == "sum" else tl.max(x, 1)
    tl.store(out_ptr + tl.arange(0, ROWS), out.to(out_ptr.dtype.element_ty))


@triton.jit
def matmul(a_ptr, b_ptr, out_ptr, N: tl.constexpr, PRECISION: tl.constexpr):
    i = tl.arange(0, N)
    at = i[:, None] * N + i[None, :]
    out = tl.dot(tl.load(a_ptr + at), tl.load(b_ptr + at), input_precision=PRECISION)
    tl.store(out_ptr + at, out)


def every_bf16() -> Tensor:
    return torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)


def same_bits(got: Tensor, want: Tensor) -> None:
    """Equal bit by bit, NaN wherever NaN."""
    assert got.dtype == want.dtype
    both_nan = got.isnan() & want.isnan() if got.is_floating_point() else torch.zeros_like(got, dtype=torch.bool)
    width = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[got.element_size()]
    assert bool(((got.view(width) == want.view(width)) | both_nan).all())


OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "minimum": torch.minimum,
    "maximum": torch.maximum,
    "lt": torch.lt,
    "ge": torch.ge,
    "where": lambda x, y: torch.where(x < y, x, y * 2),
    "neg": lambda x, _: -x,
    "abs": lambda x, _: x.abs(),
    "clamp": lambda x, _: x.clamp(-1.5, 2.5),
    "fma": lambda x, y: (x.float() * y.float() + x.float()).bfloat16(),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation(name: str) -> None:
    n = 1 << 12
    x = torch.randn(n).mul(torch.randint(-8, 9, (n,)).float().exp2()).bfloat16()
    y = torch.randn(n).bfloat16()
    want = OPERATIONS[name](x, y)
    out = torch.empty(n, dtype=want.dtype)
    with corrected_arithmetic():
        binary[(1,)](x, y, out, N=n, OP=name)
    same_bits(out, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_every_bf16_widens(dtype: torch.dtype) -> None:
    x = every_bf16()
    out = torch.empty(len(x), dtype=dtype)
    with corrected_arithmetic():
        cast[(1,)](x, out, N=len(x))
    same_bits(out, x.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.int32])
def test_rounding_to_nearest_even(dtype: torch.dtype) -> None:
    """Numbers, all sixteen neighbours of every tie, denormals, overflow to infinity, NaN."""
    n = 1 << 15
    x = torch.cat([torch.randn(n // 2) * 300, torch.tensor([0.0, -0.0, 1e-40, 3.4e38, float("inf"), float("nan")])])
    ties = ((torch.randint(0, 2**15 - 129, (n - len(x),), dtype=torch.int64) << 16) | 0x8000) + torch.arange(
        n - len(x)
    ) % 16
    x = torch.cat([x, (ties - 8).int().view(torch.float32)])
    x = x.nan_to_num(0.0, 1e9, -1e9).clamp(-1e9, 1e9).to(dtype) if dtype == torch.int32 else x.to(dtype)
    out = torch.empty(n, dtype=torch.bfloat16)
    with corrected_arithmetic():
        cast[(1,)](x, out, N=n)
    same_bits(out, x.to(torch.bfloat16))


def test_without_correction_the_interpreter_is_wrong() -> None:
    """What this module is for; once it fails, Triton has mended its interpreter."""
    x, y = torch.randn(64).bfloat16(), torch.randn(64).bfloat16()
    out = torch.empty(64, dtype=torch.bfloat16)
    binary[(1,)](x, y, out, N=64, OP="add")
    assert not torch.equal(out, x + y)


@pytest.mark.parametrize("columns", [8, 256])
def test_sums_accumulate_in_float32(columns: int) -> None:
    x = torch.randn(16, columns).bfloat16()
    out = torch.empty(16, dtype=torch.bfloat16)
    with corrected_arithmetic():
        reduce[(1,)](x, out, ROWS=16, COLUMNS=columns, OP="sum")
    exact = x.double().sum(1)
    spacing = exact.abs().log2().floor().exp2() / 128  # of bfloat16 at the result
    float32_error = x.double().abs().sum(1) * columns * 2.0**-24
    assert bool(((out.double() - exact).abs() <= spacing / 2 + float32_error).all())


def test_maximum_is_by_value() -> None:
    x = torch.randn(16, 8).bfloat16()
    out = torch.empty(16, dtype=torch.bfloat16)
    with corrected_arithmetic():
        reduce[(1,)](x, out, ROWS=16, COLUMNS=8, OP="max")
    assert torch.equal(out, x.amax(1))


def test_product_of_bf16_matrices() -> None:
    a, b = torch.randn(32, 32).bfloat16(), torch.randn(32, 32).bfloat16()
    out = torch.empty(32, 32)
    with corrected_arithmetic():
        matmul[(1,)](a, b, out, N=32, PRECISION="ieee")
    bound = (a.double().abs() @ b.double().abs()) * 32 * 2.0**-24  # products are exact, sums in float32
    assert bool(((out.double() - a.double() @ b.double()).abs() <= bound).all())


@pytest.mark.parametrize(("rounding", "units"), [("nearest", 0.5), ("truncate", 1.0), ("exact", 2.0**-13)])
def test_tf32_operands(rounding: Rounding, units: float) -> None:
    """With the identity on the right, the product shows the left operand as the tensor core sees it."""
    a, identity, out = torch.randn(32, 32), torch.eye(32), torch.empty(32, 32)
    with corrected_arithmetic(tf32=rounding):
        matmul[(1,)](a, identity, out, N=32, PRECISION="tf32")
    unit = a.abs().log2().floor().exp2() * 2.0**-10
    error = (out - a).abs() / unit
    assert error.max() <= units
    assert rounding == "exact" or error.max() > 0.8 * units
    if rounding != "exact":
        assert bool((out.view(torch.int32) & 0x1FFF == 0).all())
    with corrected_arithmetic(tf32=rounding):
        matmul[(1,)](a, identity, out, N=32, PRECISION="ieee")
    assert torch.equal(out, a)


def test_everything_comes_back() -> None:
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    before = dict(vars(builder)), interpreter.ReduceOps.sum
    with pytest.raises(ZeroDivisionError), corrected_arithmetic():
        raise ZeroDivisionError
    assert (dict(vars(builder)), interpreter.ReduceOps.sum) == before
