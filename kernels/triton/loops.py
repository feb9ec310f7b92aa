"""Loops over run-time ranges, prefetches and sums two at a time, compiled and interpreted; and how loads are marked."""

from collections.abc import Iterator
from typing import Any

import triton
import triton.language as tl

from ..backends import INTERPRETED


def _interpreted_range(start: Any, stop: Any, step: Any = 1, num_stages: int = 1) -> Iterator[Any]:
    """`tl.range` for Triton's interpreter, whose own turns tensors into ints, which numpy ≥ 2.4 refuses.

    Yields scalar tensors, as compiled code sees them, where any of the arguments is one.
    """
    n = start + 0 * stop
    while n < stop:
        yield n
        n = n + step


# For kernels: `for n in runtime_range(start, stop, step, num_stages=1)`. One stage, around dots and gathers: software
# pipelining turns gathered loads into 4-byte asynchronous copies.
runtime_range = _interpreted_range if INTERPRETED else tl.range

# Eviction policy of loads that nobody repeats, see `transform`; those that are pipelined lose it in the compiler.
LAST_READ = tl.constexpr("evict_first")


@triton.jit
def _prefetch(ptr):
    tl.inline_asm_elementwise("prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [ptr], tl.int32, False, 1)


def _interpreted_prefetch(ptr: Any) -> None:
    """Reads instead, so that the sanitizer sees where from."""
    tl.load(ptr)


# For kernels: `prefetch(ptr)` asks for cache lines to be brought to the second-level cache; nothing waits for them.
prefetch = _interpreted_prefetch if INTERPRETED else _prefetch


@triton.jit
def _add(a, b, more_a, more_b):
    return a + more_a, b + more_b


@triton.jit
def _sum_both(a, b, axis: tl.constexpr):
    return tl.reduce((a, b), axis, _add)


def _interpreted_sum_both(a: Any, b: Any, axis: Any) -> tuple[Any, Any]:
    """Apart: the interpreter adds element by element where it is told how."""
    return tl.sum(a, axis), tl.sum(b, axis)


# For kernels: `sum_both(a, b, axis)`, two sums whose warps wait for each other once.
sum_both = _interpreted_sum_both if INTERPRETED else _sum_both
