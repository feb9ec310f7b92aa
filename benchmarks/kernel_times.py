"""Device time of each kernel of the fused op, forward and backward, as PyTorch's profiler reports it."""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import Any

import torch
from harness import set_tf32
from providers import EPS, Case, make_inputs, make_output_gradient

from adaptive_window.kernels import windowed_tonality

MODES = {
    "tf32": ("float32", True),
    "bf16x3": ("float32", False),
    "bf16": ("bfloat16", False),
}  # the product's precision
ROUNDS = 10


def measure(batch: int = 32) -> list[dict[str, Any]]:
    """One row per precision and kernel: microseconds (median of one launch) and launches per call, both directions.

    The last-level cache is written over before the forward and before the backward pass.
    """
    rows = []
    flush = torch.empty(2**28, dtype=torch.int8, device="cuda")
    for precision, (dtype, tf32) in MODES.items():
        set_tf32(tf32)
        case = Case(batch, dtype=dtype, tf32=tf32, device="cuda")
        inputs, grad_out = make_inputs(case), make_output_gradient(case)
        times = _profiled(case, inputs, grad_out, flush)
        ours = {name: times[name] for name in times if "FillFunctor" not in name}
        for name, (microseconds, count) in sorted(ours.items(), key=lambda item: -item[1][0] * item[1][1]):
            rows.append({"precision": precision, "kernel": name, "microseconds": microseconds, "launches": count})
            print(f"{precision:8}{microseconds:9.1f} us  x{count:g}  {name[:90]}")
    set_tf32(False)
    return rows


def _profiled(
    case: Case, inputs: tuple[torch.Tensor, ...], grad_out: torch.Tensor, flush: torch.Tensor
) -> dict[str, tuple[float, float]]:
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    def call() -> None:
        flush.zero_()
        out = windowed_tonality(*inputs, case.window, eps=EPS, backend="triton")
        flush.zero_()
        torch.autograd.grad(out, inputs, grad_out)

    for _ in range(3):
        call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        for _ in range(ROUNDS):
            call()
        torch.cuda.synchronize()
    times: dict[str, list[float]] = defaultdict(list)
    for event in profiler.events():
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            times[event.name].append(event.time_range.elapsed_us())
    return {name: (statistics.median(found), len(found) / ROUNDS) for name, found in times.items()}
