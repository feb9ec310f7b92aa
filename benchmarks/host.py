"""Host time of an eager call, without a GPU: everything but Triton's own launch and the device.

    python benchmarks/host.py                # a table
    python benchmarks/host.py --json F       # and a file

`windowed_tonality` on one small clip, planned as for an H100, with every kernel's start replaced by a function that
does nothing. Times are in units of one `x.add_(1)` on 8 elements, timed in turn with them in the same process, so that
they hardly depend on the machine; each is the least of many short repeats, which other work on the machine does not
lengthen. Launches are those of kernels and of PyTorch together.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"  # as on a GPU; nothing is compiled

import torch
from torch import Tensor

BARS = {"forward_adds": 12, "both_adds": 50, "launches": 8}
REPEATS, CALLS = 400, 5


def arguments() -> list[Tensor]:
    """B = 1, P = 3, C = 128, T = 64; with gradients."""
    shapes = ((1, 128, 64), *[(1, 3)] * 3, (128, 1, 7), (128,), (128, 128, 1), *[(128,)] * 3)
    return [torch.zeros(shape, requires_grad=True) for shape in shapes]


@contextmanager
def stubbed() -> Iterator[list[int]]:
    """Kernels on CPU tensors as if on an H100, which do nothing; how many have been started."""
    from adaptive_window.kernels import backends, ops
    from adaptive_window.kernels.triton import backend, plan
    from adaptive_window.kernels.triton.configurations import Target
    from adaptive_window.kernels.triton.launch import use_target

    count = [0]
    run = plan.Plan._run

    def start(*_: Any, stream: int) -> None:
        count[0] += 1

    def host(*given: Any) -> None:
        count[0] += 1
        run(*given)

    replaced = (
        (backends, "INTERPRETED", True),
        (plan, "compiled", lambda *_: start),
        (plan, "stream_of", lambda _: 0),
        (plan.Plan, "_run", host),  # a step of PyTorch's
    )
    before = [getattr(owner, name) for owner, name, _ in replaced]
    for owner, name, value in replaced:
        setattr(owner, name, value)
    backend.COMPILED.add("cpu")
    ops.forget()
    try:
        with use_target(Target(90, 132)):
            yield count
    finally:
        for (owner, name, _), value in zip(replaced, before, strict=True):
            setattr(owner, name, value)
        backend.COMPILED.discard("cpu")
        ops.forget()


def least(functions: dict[str, Callable[[], object]], repeats: int = REPEATS) -> dict[str, float]:
    """Seconds of one call of each, timed in turn."""
    best = dict.fromkeys(functions, float("inf"))
    for _ in range(repeats):
        for name, function in functions.items():
            began = time.perf_counter()
            for _ in range(CALLS):
                function()
            best[name] = min(best[name], (time.perf_counter() - began) / CALLS)
    return best


def measure(repeats: int = REPEATS) -> dict[str, float]:
    """What `--json` writes."""
    from adaptive_window.kernels import windowed_tonality

    leaves, grad, x = arguments(), torch.ones(1, 3, 128, 32), torch.zeros(8)

    def forward() -> Tensor:
        return windowed_tonality(*leaves, 32, backend="triton")

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(forward(), leaves, grad)

    def quiet() -> Tensor:
        with torch.no_grad():
            return forward()

    with stubbed() as count:
        launches = {}
        for name, function in (("forward", forward), ("both", both)):
            function()
            count[0] = 0
            function()
            launches[name] = count[0]
        times = least({"add": lambda: x.add_(1), "forward": forward, "both": both, "quiet": quiet}, repeats)
    return {
        "forward_adds": round(times["forward"] / times["add"], 2),
        "both_adds": round(times["both"] / times["add"], 2),
        "no_grad_adds": round(times["quiet"] / times["add"], 2),
        "launches_forward": launches["forward"],
        "launches_both": launches["both"],
        "add_us": round(times["add"] * 1e6, 3),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="F", help="write the figures there as well")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="of which the least counts")
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures = measure(options.repeats)
    print(f"in units of one add_, {figures['add_us']:.2f} us here:")
    print(f"  forward             {figures['forward_adds']:6.1f}   (bar {BARS['forward_adds']})")
    print(f"  forward, no grad    {figures['no_grad_adds']:6.1f}")
    print(f"  forward + backward  {figures['both_adds']:6.1f}   (bar {BARS['both_adds']})")
    print(
        f"launches              {figures['launches_forward']} and {figures['launches_both']}   (bar {BARS['launches']})"
    )
    if options.json:
        with open(options.json, "w") as file:
            json.dump(figures | {"torch": torch.__version__, "python": sys.version.split()[0]}, file, indent=2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
