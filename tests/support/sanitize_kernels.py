"""Random cases of the shipped kernels under the sanitizer: `python -m sanitize_kernels --cases 10000 --seed 0`."""

from __future__ import annotations

import argparse
import os
import sys
import time

if __name__ == "__main__" and os.environ.get("TRITON_INTERPRET") != "1":
    sys.exit("sanitize_kernels: set TRITON_INTERPRET=1; it watches the interpreter")

import torch
from random_cases import Case, check
from sanitizer import Sanitizer


def sanitize(seeds: range) -> Sanitizer:
    """Runs each seed's case; raises what the sanitizer or the comparison finds, with the case."""
    with Sanitizer() as sanitizer:
        for seed in seeds:
            case = Case.draw(seed)
            try:
                check(case)
            except Exception as error:
                error.add_note(f"seed {seed}: {case}")
                raise
    return sanitizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="the first case's seed; the others count on from it")
    options = parser.parse_args()
    torch.use_deterministic_algorithms(True, warn_only=True)  # torch.empty gives NaN, as in the test suite
    began = time.monotonic()
    launches: dict[str, int] = {}
    accesses = 0
    block = 100
    for first in range(0, options.cases, block):
        seeds = range(options.seed + first, options.seed + min(first + block, options.cases))
        sanitizer = sanitize(seeds)
        accesses += sanitizer.accesses
        for kernel, count in sanitizer.launches.items():
            launches[kernel] = launches.get(kernel, 0) + count
        print(f"\r{seeds.stop - options.seed} cases, {time.monotonic() - began:.0f} s", end="", file=sys.stderr)
    print(file=sys.stderr)
    print(f"{options.cases} cases from seed {options.seed}: {accesses} memory operations, no report")
    for kernel in sorted(launches):
        print(f"  {kernel:32s} {launches[kernel]:7d} launches")


if __name__ == "__main__":
    main()
