"""Timing, counting and memory: how a call is measured on a CPU and on a CUDA device."""

from __future__ import annotations

import datetime
import functools
import platform
import re
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

MOST = 200  # repetitions, whatever the time allowed


@dataclass(frozen=True)
class Timing:
    """The median, the middle half's ends, the least, and of how many repetitions; seconds, or ratios."""

    median: float
    low: float
    high: float
    best: float
    repetitions: int
    samples: tuple[float, ...] = field(repr=False)  # in the order of the rounds

    @classmethod
    def of(cls, samples: Sequence[float]) -> Timing:
        ordered = sorted(samples)
        low, high = ordered[len(ordered) // 4], ordered[-1 - len(ordered) // 4]
        return cls(statistics.median(ordered), low, high, ordered[0], len(ordered), tuple(samples))

    def over(self, other: Timing) -> Timing:
        """Ratios to another call timed in the same rounds, each round's for itself: what slows a round slows both."""
        return Timing.of([a / b for a, b in zip(self.samples, other.samples, strict=True)])

    def describe(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in ("median", "low", "high", "best", "repetitions")}


class _Flush:
    """Writes through the last-level cache, so that no repetition finds its inputs there."""

    def __init__(self) -> None:
        size = 2 * torch.cuda.get_device_properties(0).L2_cache_size
        self.buffer = torch.empty(max(size, 2**26), dtype=torch.int8, device="cuda")

    def __call__(self) -> None:
        self.buffer.zero_()


def _cuda_seconds(call: Callable[[], object], flush: _Flush) -> float:
    flush()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def _cpu_seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def time_calls(
    calls: dict[str, Callable[[], object]],
    device: str,
    seconds: float,
    prepare: dict[str, Callable[[], object]] | None = None,
    fewest: int = 5,
) -> dict[str, Timing]:
    """Times all calls in turn, round after round, for about `seconds` in total: a busy moment hits every one alike.

    `prepare[name]` runs before each repetition of a call, untimed. Two rounds warm up (one, where a round takes a tenth
    of the time allowed), and at least `fewest` are timed.
    """
    flush = _Flush() if device == "cuda" else None
    prepare = prepare or {}

    def once(name: str) -> float:
        if name in prepare:
            prepare[name]()
        return _cuda_seconds(calls[name], flush) if flush is not None else _cpu_seconds(calls[name])

    for _ in range(min(2, fewest)):
        began = time.perf_counter()
        for name in calls:
            once(name)
        if time.perf_counter() - began > seconds / 10 > 0:
            break
    samples: dict[str, list[float]] = {name: [] for name in calls}
    began = time.perf_counter()
    for done in range(MOST):
        if done >= fewest and time.perf_counter() - began > seconds:
            break
        for name in calls:
            samples[name].append(once(name))
    return {name: Timing.of(values) for name, values in samples.items()}


@functools.cache
def capture_stream() -> torch.cuda.Stream:
    """Where graphs are captured, and warmed up before: autograd warns where a leaf has met another stream."""
    return torch.cuda.Stream()


def capture(call: Callable[[], object]) -> Callable[[], object]:
    """The call as a CUDA graph's replay; raises RuntimeError where it cannot be captured (it waits for the device).

    Leaves that the call differentiates are to be its own (`Runs.apart`): those used on another stream before have an
    AccumulateGrad node there.
    """
    stream = capture_stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    kept = []  # outputs live in the graph's memory
    try:
        with torch.cuda.graph(graph, stream=stream):
            kept.append(call())
    except Exception as error:
        torch.cuda.synchronize()
        raise RuntimeError(f"no CUDA graph: {str(error).splitlines()[0]}") from error
    return graph.replay


def _recorded(call: Callable[[], object], **options: bool) -> list[Any]:
    """What PyTorch's profiler records of a call on a CPU: its operations, and memory where asked for.

    A dispatch mode would see the operations as well, but `torch.compile` refuses to run beneath one.
    """
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], acc_events=True, **options) as profiler:
        call()
    return list(profiler.profiler.kineto_results.events())


def host_syncs(call: Callable[[], object], device: str) -> int:
    """How often the host asks for a value: on CUDA all synchronizing operations, on a CPU scalars fetched."""
    if device != "cuda":
        return sum(event.name() == "aten::_local_scalar_dense" for event in _recorded(call))
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return sum("called a synchronizing" in str(w.message) for w in caught)


def launches(call: Callable[[], object]) -> int | None:
    """Kernels, copies and fills that a call puts on the device; None where the profiler sees none.

    Named regions, which the profiler shows on the device as well, are none of these.
    """
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], acc_events=True) as profiler:
        call()
        torch.cuda.synchronize()
    events = [e for e in profiler.events() if e.device_type == DeviceType.CUDA and not e.is_user_annotation]
    return len(events) or None


def host_launches(call: Callable[[], object]) -> int | None:
    """Kernels, copies, fills and graph replays that the host asks the driver for; None where the profiler sees none."""
    from torch.profiler import ProfilerActivity, profile

    asks = ("LaunchKernel", "GraphLaunch", "Memcpy", "Memset")
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], acc_events=True) as profiler:
        call()
        torch.cuda.synchronize()
    names = [event.name() for event in profiler.profiler.kineto_results.events()]
    return sum(name.startswith("cu") and any(ask in name for ask in asks) for name in names) or None


def peak_bytes(call: Callable[[], object], device: str) -> int:
    """The most memory that tensors made by the call take at any time, its inputs not counted.

    On a CPU the sum of PyTorch's allocations as its profiler records them: a library's own scratch is not among them.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    events = [e for e in _recorded(call, profile_memory=True) if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def set_tf32(on: bool) -> None:
    """float32 products of convolutions and matrices on CUDA: TF32 or exact.

    By the older switches: they set the newer `fp32_precision` too, while whoever reads the older ones after the newer
    were set gets an error.
    """
    torch.backends.cudnn.allow_tf32 = on
    torch.backends.cuda.matmul.allow_tf32 = on


def slug(device: str) -> str:
    """A device's name for file names."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def machine(device: str) -> dict[str, object]:
    """What a figure is worthless without."""
    cpu = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as lines:
            cpu = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = None
    threads = torch.get_num_threads()
    return {
        "device": torch.cuda.get_device_name()
        if device == "cuda"
        else f"{cpu}, {threads} thread{'s' if threads > 1 else ''}",
        "kind": device,
        "cpu": cpu,
        "threads": threads,
        "torch": torch.__version__,
        "cuda": torch.version.cuda if device == "cuda" else None,
        "triton": triton_version,
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
    }
