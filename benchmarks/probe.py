"""Every operation once, forward and backward, for tools that watch a device: compute-sanitizer, ncu.

    compute-sanitizer --tool memcheck python benchmarks/probe.py --small
    ncu --profile-from-start off --clock-control none python benchmarks/probe.py

Kernels are compiled in an unwatched first call. A small run includes windows over the clip's edges, ratios below 1, NaN
and infinite places, and channels that fill no block.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from harness import set_tf32
from providers import EPS, Case, make_inputs, make_output_gradient

from adaptive_window.kernels import resample_windows, tonality_blend, windowed_tonality


def run(case: Case, inputs: tuple[torch.Tensor, ...], grad_out: torch.Tensor) -> None:
    x, start, ratio, *rest = inputs
    outputs = (
        windowed_tonality(*inputs, case.window, eps=EPS, backend="triton"),
        resample_windows(x, start, ratio, case.window, backend="triton"),
        tonality_blend(grad_out.detach().requires_grad_(), *rest, eps=EPS, backend="triton"),
    )
    for out in outputs:
        out.backward(grad_out)
    torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a few hard windows instead of the nominal batch of 32")
    dtypes = "tf32, float32 (as three bfloat16 products), bfloat16, float16, float64"
    parser.add_argument("--dtypes", nargs="+", default=["float32"], help=dtypes)
    options = parser.parse_args()
    for wanted in options.dtypes:
        tf32, dtype = wanted == "tf32", "float32" if wanted == "tf32" else wanted
        set_tf32(tf32)
        case = Case(2, 5, 48, 340, 304, dtype=dtype, tf32=tf32, device="cuda") if options.small else Case(
            32, dtype=dtype, tf32=tf32, device="cuda"
        )  # fmt: skip
        inputs, grad_out = make_inputs(case), make_output_gradient(case)
        if options.small:
            with torch.no_grad():
                inputs[1][:, :4] = torch.tensor([-60.5, 330.2, float("nan"), float("inf")])
                inputs[2][:, :4] = torch.tensor([1.3, 0.4, 1.0, 4.0])
        run(case, inputs, grad_out)
        torch.cuda.cudart().cudaProfilerStart()
        run(case, inputs, grad_out)
        torch.cuda.cudart().cudaProfilerStop()
        print(f"{case.title}: done")


if __name__ == "__main__":
    main()
