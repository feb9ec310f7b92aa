"""Do the kernels compile? `python -m front_end` (without TRITON_INTERPRET) translates them into Triton IR for a GPU.

The interpreter runs what the compiler refuses: names that change their type between branches, methods of integers that
became constants because they are 1, variables of branches that were compiled away. That shows in the first stage of
compilation, which takes a fiftieth of the whole; code generation is `tools.inspect_kernels`'s business.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import mangle_type
from window_cases import EPS, NAMES

from adaptive_window.kernels.triton import resample, transform
from adaptive_window.kernels.triton.configurations import Target
from adaptive_window.kernels.triton.launch import Launch, record_launches, use_target
from adaptive_window.kernels.triton.source import Source
from adaptive_window.kernels.weights import Weights

SIZES = {  # B, P, C, T, W, K
    "nominal": (32, 3, 128, 1200, 800, 7),
    "ones": (1, 1, 1, 1, 1, 1),
    "odd": (2, 1, 24, 50, 41, 31),
    "wide": (1, 2, 160, 33, 40, 3),
}
SUBSETS = [tuple(name == n for name in NAMES) for n in NAMES] + [(True,) * 10]
KINDS = {"tf32": torch.float32, "bf16x3": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}


def calls(size: str, precision: str) -> Iterator[Launch]:
    """Every launch of every function, forward and backward; in TF32 also for every gradient alone."""
    b, p, c, frames, w, k = SIZES[size]

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=KINDS[precision], device="meta")

    x, y, places = empty(b, c, frames), empty(b, p, c, w), empty(b, p)
    weights = Weights(empty(c, 1, k), empty(c), empty(c, c, 1), empty(c), empty(c), empty(c))
    with use_target(Target(90, 132, precision)), record_launches() as launches:
        resample.resample(x, places, places, w)
        resample.gradients(y, x, places, places, (True,) * 3)
        for restore in (False, True):
            for source in (Source.of_clips(x, places, places), Source.of_windows(y)):
                transform.forward(source, places, weights, w, EPS, restore=restore)
            for needs in SUBSETS if precision == "tf32" else SUBSETS[-1:]:
                clips, windows = Source.of_clips(x, places, places), Source.of_windows(y)
                transform.backward(y, clips, places, weights, EPS, needs, restore=restore)
                transform.backward(y, windows, places, weights, EPS, (needs[0], *needs[3:]), restore=restore)
    yield from launches


def signature(launch: Launch) -> tuple[dict[str, str], dict[tuple[int], Any]]:
    """Types of the arguments, and those that are constants: declared so, or 1."""
    types, constants = {}, {}
    for n, (name, parameter) in enumerate(zip(launch.kernel.arg_names, launch.kernel.params, strict=True)):
        value = launch.arguments[name]
        if parameter.is_constexpr or (isinstance(value, int) and value == 1):
            types[name], constants[(n,)] = "constexpr", value
        else:
            types[name] = mangle_type(value)
    return types, constants


def translate(launch: Launch) -> None:
    types, constants = signature(launch)
    target = GPUTarget("cuda", 90, 32)
    backend = make_backend(target)
    options = backend.parse_options({"num_warps": launch.num_warps})
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    source = ASTSource(launch.kernel, types, constants)
    source.make_ir(target, options, backend.get_codegen_implementation(options), backend.get_module_map(), context)


def main() -> None:
    done, failures = set(), []
    for size, precision in [*((size, "tf32") for size in SIZES), *(("nominal", kind) for kind in KINDS)]:
        for launch in calls(size, precision):
            key = (launch.name, str(signature(launch)))
            if key in done:
                continue
            done.add(key)
            try:
                translate(launch)
            except Exception as error:
                while error.__cause__ is not None:
                    error = error.__cause__  # type: ignore[assignment]  # a BaseException, of which only the text is read
                failures.append(f"{launch.name}, {size}, {precision}: {error}")
    json.dump({"translated": len(done), "failures": failures}, sys.stdout)


if __name__ == "__main__":
    main()
