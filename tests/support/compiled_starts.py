"""What is started on a GPU: `python -m compiled_starts` (without TRITON_INTERPRET) compiles a call and starts it.

Triton compiles for sm_90, and makes what starts each kernel, as on an H100; only its driver is replaced, by one that
notes what it is given. Printed as JSON: per kernel its grid, stream, pointers and which of them it takes as aligned,
for aligned inputs and for an x that lies 4 bytes further.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import compiler
from triton.runtime.driver import driver

from adaptive_window.kernels.triton import transform
from adaptive_window.kernels.triton.configurations import Target
from adaptive_window.kernels.triton.plan import Bound, Plan
from adaptive_window.kernels.triton.source import Source
from adaptive_window.kernels.weights import Weights

STREAM = 7
started: list[dict[str, Any]] = []


class Launcher:
    def __init__(self, source: Any, _: Any) -> None:
        self.source = source

    def __call__(self, x: int, y: int, z: int, stream: int, *rest: Any) -> None:
        arguments = rest[5:]  # after the function, its metadata and the hooks
        aligned = [k[0] for k, v in self.source.attrs.items() if ["tt.divisibility", 16] in v]
        types = list(self.source.signature.values())
        assert len(arguments) == len(types)
        pointers = {n: a for n, a in enumerate(arguments) if types[n].startswith("*")}
        name = self.source.fn.__name__
        started.append({"name": name, "grid": [x, y, z], "stream": stream, "pointers": pointers, "aligned": aligned})


class Utils:
    @staticmethod
    def load_binary(*_: Any) -> tuple[int, ...]:
        return 1, 2, 32, 0, 1024

    @staticmethod
    def unload_module(*_: Any) -> None: ...


class Driver:
    utils, launcher_cls = Utils(), Launcher

    def get_current_target(self) -> Any:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return STREAM


def main() -> None:
    b, p, c, frames, window, taps = 1, 3, 16, 64, 32, 3
    shapes = ((b, c, frames), *[(b, p)] * 3, (c, 1, taps), (c,), (c, c, 1), *[(c,)] * 3)
    inputs = [torch.empty(shape, device="meta") for shape in shapes]
    driver.set_active(Driver())
    compiler.max_shared_mem = lambda device: 227 * 1024

    def build(*twins: torch.Tensor) -> Any:
        source = Source.of_clips(*twins[:3])
        return transform.forward(
            source, twins[3], Weights(*twins[4:]), window, 1e-5, Target(90, 132, "tf32"), keep=True
        )

    for shift in (0, 4):
        addresses = [4096 * n + (shift if n == 1 else 0) for n in range(1, len(inputs) + 1)]
        plan = Plan(build, inputs)
        plan.device = torch.device("meta")
        bound = Bound(plan, addresses)
        plan.allocate = lambda _: [torch.zeros(1), torch.zeros(1)]  # type: ignore[method-assign]  # with addresses
        bound(inputs, addresses)
    json.dump({"triton": triton.__version__, "started": started}, sys.stdout)


if __name__ == "__main__":
    main()
