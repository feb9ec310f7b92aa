"""Loops over run-time ranges and prefetches, compiled and interpreted; and what they read for the last time."""

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
