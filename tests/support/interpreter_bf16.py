"""bfloat16 and TF32 arithmetic as hardware does it, in Triton's interpreter.

    with corrected_arithmetic():
        ...                          # launch kernels, TRITON_INTERPRET=1

The interpreter of Triton 3.6 and 3.8 keeps bfloat16 numbers as the 16 bits that represent them, and computes with those
bits as if they were integers; float32 becomes bfloat16 by rounding halves away from zero; TF32 operands are not rounded
at all. While the context is open:

- every bfloat16 operation converts to float32, computes, and rounds once to nearest, ties to even. For + − × ÷ and the
  square root this is the correctly rounded result (a 24-bit intermediate is wide enough for 8-bit operands: Figueroa,
  "When is double rounding innocuous?", SIGNUM Newsletter 30(3), 1995);
- sums over an axis accumulate in float32 and round once; products of matrices accumulate in the accumulator's type;
- float32 operands of a TF32 product lose 13 bits: `tf32="nearest"` (PTX `cvt.rna.tf32.f32`, ties away from zero),
  `"truncate"` (what tensor cores do with operands that nobody converted), or `"exact"` (not at all).

`tl.cumsum` widens bfloat16 itself. float16 is left to NumPy, which does it right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import triton.language as tl
from numpy.typing import NDArray
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

_BITWISE = (np.bitwise_and, np.bitwise_or, np.bitwise_xor, np.left_shift, np.right_shift)
Rounding = Literal["nearest", "truncate", "exact"]


def widen(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The numbers that bfloat16 `bits` represent; exact."""
    return (np.ascontiguousarray(bits).astype(np.uint32) << np.uint32(16)).view(np.float32).reshape(np.shape(bits))


def narrow(values: NDArray[Any]) -> NDArray[np.uint16]:
    """bfloat16 bits of `values`, to nearest with ties to even; NaN becomes the quiet NaN 0x7fc0."""
    single = np.ascontiguousarray(values, dtype=np.float32)
    bits = single.view(np.uint32)
    even = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = ((bits + np.uint32(0x7FFF) + even) >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(single), np.uint16(0x7FC0), rounded).reshape(np.shape(values))


def to_tf32(values: NDArray[np.float32], rounding: Rounding) -> NDArray[np.float32]:
    """`values` with 10 bits of mantissa."""
    if rounding == "exact":
        return values
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    if rounding == "nearest":
        finite = np.isfinite(values)
        bits = np.where(finite, bits + np.uint32(0x1000), bits)
    return (bits & np.uint32(0xFFFFE000)).view(np.float32)


def _is_bf16(handle: Any) -> bool:
    return bool(handle.dtype.scalar == tl.bfloat16)


def _values(handle: Any) -> Any:
    return widen(handle.data) if _is_bf16(handle) else handle.data


def _handle(values: Any) -> TensorHandle:
    return TensorHandle(narrow(values), tl.bfloat16)


def _replacements(tf32: Rounding) -> dict[str, Callable[..., Any]]:
    """Methods of `InterpreterBuilder` by name; each leaves what is not bfloat16 to the original."""
    original = {name: value for name, value in vars(InterpreterBuilder).items() if callable(value)}

    def binary_op(self: Any, left: Any, right: Any, operation: Any) -> Any:
        if not _is_bf16(left) or operation in _BITWISE:
            return original["binary_op"](self, left, right, operation)
        out = operation(_values(left), _values(right))
        return TensorHandle(out, tl.int1) if out.dtype == bool else _handle(out)

    def unary_op(self: Any, argument: Any, operation: Any) -> Any:
        if not _is_bf16(argument):
            return original["unary_op"](self, argument, operation)
        return _handle(operation(_values(argument)))

    def ternary_op(self: Any, first: Any, second: Any, third: Any, operation: Any) -> Any:
        if operation is np.where or not _is_bf16(third):  # a choice between bits is a choice between numbers
            return original["ternary_op"](self, first, second, third, operation)
        return _handle(operation(_values(first), _values(second), _values(third)))

    def create_rsqrt(self: Any, argument: Any) -> Any:
        if not _is_bf16(argument):
            return original["create_rsqrt"](self, argument)
        return _handle(1 / np.sqrt(_values(argument)))

    def create_fma(self: Any, x: Any, y: Any, z: Any) -> Any:
        if not _is_bf16(z):
            return original["create_fma"](self, x, y, z)
        return _handle(_values(x) * _values(y) + _values(z))

    def create_dot(self: Any, a: Any, b: Any, acc: Any, precision: Any, imprecise: Any) -> Any:
        if a.dtype.scalar.primitive_bitwidth == 8:
            return original["create_dot"](self, a, b, acc, precision, imprecise)
        left, right, total = _values(a), _values(b), _values(acc)
        if a.dtype.scalar == tl.float32 and str(precision).rpartition(".")[2] == "TF32":
            left, right = to_tf32(left, tf32), to_tf32(right, tf32)
        out = np.matmul(left, right, dtype=total.dtype) + total
        return _handle(out) if _is_bf16(acc) else TensorHandle(out, acc.dtype.scalar)

    def cast_impl(self: Any, source: Any, target: Any) -> Any:
        if _is_bf16(source) and target.scalar != tl.bfloat16:
            return TensorHandle(_values(source).astype(interpreter._get_np_dtype(target)), target.scalar)
        if target.scalar == tl.bfloat16 and not _is_bf16(source):
            return _handle(source.data.astype(np.float32))
        return original["cast_impl"](self, source, target)

    def create_fp_to_fp(self: Any, source: Any, target: Any, rounding: Any) -> Any:
        types = (source.dtype.scalar, target.scalar)
        if tl.bfloat16 in types and all(kind.primitive_bitwidth > 8 for kind in types):
            return cast_impl(self, source, target)
        return original["create_fp_to_fp"](self, source, target, rounding)

    def get_bf16(self: Any, value: float) -> Any:
        return _handle(np.array([value], np.float32))

    local = locals()
    return {name: local[name] for name in (*(n for n in original if n in local), "get_bf16")}


def _reduction(original: Callable[..., Any]) -> Callable[..., Any]:
    def total(self: Any, argument: Any) -> Any:
        if argument.dtype != tl.bfloat16:
            return original(self, argument)
        values = np.sum(widen(argument.handle.data), axis=self.axis, keepdims=self.keep_dims)
        return self.to_tensor(narrow(values), tl.bfloat16)

    return total


def _extremum(original: Callable[..., Any]) -> Callable[..., Any]:
    def extremum(self: Any, argument: Any, val_reduce_op: Any, idx_reduce_op: Any = None) -> Any:
        one = argument[0] if isinstance(argument, tuple) else argument
        if one.dtype != tl.bfloat16:
            return original(self, argument, val_reduce_op, idx_reduce_op)
        single = tl.core.tensor(TensorHandle(widen(one.handle.data), tl.float32), one.type.with_element_ty(tl.float32))
        found = original(self, single, val_reduce_op, idx_reduce_op)

        def back(result: Any) -> Any:
            is_value = result.dtype == tl.float32
            return self.to_tensor(narrow(result.handle.data), tl.bfloat16) if is_value else result

        return tuple(map(back, found)) if isinstance(found, tuple) else back(found)

    return extremum


@contextmanager
def corrected_arithmetic(tf32: Rounding = "nearest") -> Iterator[None]:
    """See the module's docstring."""
    changes: list[tuple[Any, str, Any]] = [(InterpreterBuilder, n, f) for n, f in _replacements(tf32).items()]
    reduce = interpreter.ReduceOps
    changes += [(reduce, "sum", _reduction(reduce.sum)), (reduce, "min_max", _extremum(reduce.min_max))]
    missing = object()
    before = [(owner, name, getattr(owner, name, missing)) for owner, name, _ in changes]
    for owner, name, value in changes:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in reversed(before):
            if value is missing:
                delattr(owner, name)
            else:
                setattr(owner, name, value)
