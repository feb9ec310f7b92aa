"""Which way of writing the reference is fastest here: layouts of the tonality blend, side by side, with their errors.

    python benchmarks/formulations.py --batch 8

All cut windows as `kernels/reference.py` does (rows of a table, channels last) and give the same values; they differ in
how the depthwise and pointwise convolutions see those rows. `a loop` is the structure that the package replaces,
`f ours fused` the compiled kernels, which no way of writing PyTorch comes near.
`products alone` is what none can be faster than: the pointwise convolution's three matrix products and nothing else.
Medians of forward and backward; processor time as well, which other work on the machine disturbs less. `dw error` is
that of the depthwise weight's gradient alone.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from parity import error, truth
from providers import BASELINE, EPS, OURS, Case, build, make_inputs, make_output_gradient
from torch import Tensor

from adaptive_window.kernels import reference

T = TypeVar("T")
DEPTHWISE_WEIGHT = 4  # its place among the inputs: the gradient that a formulation sums over all frames
Depthwise = Callable[[Tensor, Tensor, Tensor], Tensor]  # rows [N, W, C], weight [C, 1, K], bias [C]


def channels_first(y: Tensor, dw: Tensor, db: Tensor) -> Tensor:
    z = F.conv1d(y.transpose(1, 2).contiguous(), dw, db, padding=dw.shape[-1] // 2, groups=dw.shape[0])
    return z.transpose(1, 2).contiguous()


def time_across(y: Tensor, dw: Tensor, db: Tensor) -> Tensor:
    """An image of one row and W columns, channels last in memory."""
    image = y[:, None].permute(0, 3, 1, 2)
    z = F.conv2d(image, dw[:, :, None], db, padding=(0, dw.shape[-1] // 2), groups=dw.shape[0])
    return z.permute(0, 2, 3, 1)[:, 0]


def time_down(y: Tensor, dw: Tensor, db: Tensor) -> Tensor:
    """An image of W rows and one column, channels last in memory."""
    image = y[:, :, None].permute(0, 3, 1, 2)
    z = F.conv2d(image, dw[..., None], db, padding=(dw.shape[-1] // 2, 0), groups=dw.shape[0])
    return z.permute(0, 2, 3, 1)[:, :, 0]


def shifts(y: Tensor, dw: Tensor, db: Tensor) -> Tensor:
    taps, window = dw.shape[-1], y.shape[1]
    padded = F.pad(y, (0, 0, taps // 2, taps // 2))
    z = db.expand_as(y)
    for k in range(taps):
        z = torch.addcmul(z, padded[:, k : k + window], dw[:, 0, k])
    return z


def unfold(y: Tensor, dw: Tensor, db: Tensor) -> Tensor:
    taps = dw.shape[-1]
    padded = F.pad(y, (0, 0, taps // 2, taps // 2))
    return (padded.unfold(1, taps, 1) * dw[:, 0]).sum(-1) + db


def _pointwise_linear(z: Tensor, pw: Tensor, pb: Tensor) -> Tensor:
    return F.linear(z, pw[:, :, 0], pb)


def products_alone(case: Case) -> Callable[[], object]:
    rows, weight = torch.randn(case.batch * case.pairs * case.window, case.channels), torch.randn(2 * (case.channels,))
    rows, weight = (value.to(getattr(torch, case.dtype)) for value in (rows, weight))
    return lambda: (rows @ weight, rows @ weight.T, rows.T @ rows)


def formulation(depthwise: Depthwise, case: Case) -> Callable[..., Tensor]:
    def call(x: Tensor, start: Tensor, ratio: Tensor, strength: Tensor, *weights: Tensor) -> Tensor:
        dw, db, pw, pb, gamma, beta = weights
        y = reference._resampled_rows(x, start, ratio, case.window)
        z = depthwise(y.flatten(0, 1), dw, db)
        v = F.layer_norm(_pointwise_linear(z, pw, pb), (case.channels,), gamma, beta, EPS).view(y.shape)
        return reference._turned(torch.lerp(y, v, strength[:, :, None, None]))

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64"))
    options = parser.parse_args()
    case = Case(options.batch, dtype=options.dtype)
    inputs, grad_out = make_inputs(case), make_output_gradient(case)
    true = truth(inputs, grad_out, case.window)
    calls = {name: build(name, case) for name in (BASELINE, "c reference", OURS)}
    calls |= {f.__name__: formulation(f, case) for f in (channels_first, time_across, time_down, shifts, unfold)}
    products, bound = products_alone(case), "products alone"
    wall: dict[str, list[float]] = {name: [] for name in (*calls, bound)}
    cpu: dict[str, list[float]] = {name: [] for name in (*calls, bound)}
    errors = {bound: (0.0, 0.0)}

    def timed(name: str, run: Callable[[], T]) -> T:
        began, began_cpu = time.perf_counter(), time.process_time()
        result = run()
        wall[name].append(time.perf_counter() - began)
        cpu[name].append(time.process_time() - began_cpu)
        return result

    def both(call: Callable[..., Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        out = call(*inputs)
        return out, torch.autograd.grad(out, inputs, grad_out, allow_unused=True)

    for _ in range(options.rounds + 1):
        timed(bound, products)
        for name, call in calls.items():
            out, grads = timed(name, lambda call=call: both(call))
            pairs = ((out.detach(), true[0]), *zip(grads, true[1], strict=True))
            worst = max(error(got, wanted) for got, wanted in pairs if got is not None)
            errors[name] = worst, error(grads[DEPTHWISE_WEIGHT], true[1][DEPTHWISE_WEIGHT])
    print(f"{case.title}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'':18}{'wall ms':>9}{'x loop':>8}{'cpu ms':>9}{'x loop':>8}{'error':>10}{'dw error':>10}")
    for name in wall:
        a, b = (statistics.median(v[name][1:]) for v in (wall, cpu))  # the first round warms up
        loop, loop_cpu = (statistics.median(v[BASELINE][1:]) for v in (wall, cpu))
        print(
            f"{name:18}{1e3 * a:9.1f}{loop / a:8.2f}{1e3 * b:9.1f}{loop_cpu / b:8.2f}"
            + "".join(f"{e:10.1e}" for e in errors[name])
        )


if __name__ == "__main__":
    main()
