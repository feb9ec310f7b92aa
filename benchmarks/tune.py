"""Times every shipped and every candidate configuration of the Triton kernels on this GPU, in at most four minutes.

    python benchmarks/tune.py --json tune.json          # needs a GPU; prints the rows that it would choose
    python benchmarks/tune.py --dry                     # needs none: compiles everything, predicts times
    python benchmarks/tune.py --compile --first 0       # only compiles the shipped configurations, for what comes next
    python benchmarks/tune.py --list                    # names what would be timed, and does nothing
    python benchmarks/tune.py --kernels norm_backward --precisions tf32 bf16

Kernels are compiled in parallel processes first. Then each is launched by itself, on the nominal call's tensors (B =
32, P = 3, C = 128, T = 1200, W = 800) as the kernels before it left them, with the last-level cache written over in
between; its time is the median that PyTorch's profiler reports for it. What it writes has to agree with what the
shipped configuration writes. A configuration is chosen where it agrees, does not spill and is the fastest by over 2 %.

`kernels/triton/configurations.py` holds the table, `benchmarks/candidates.py` the candidates.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.append(str(Path(__file__).resolve().parents[1]))  # tools
from candidates import CANDIDATES, PRECISIONS
from harness import machine

if TYPE_CHECKING:
    from adaptive_window.kernels.triton.configurations import Configuration
    from adaptive_window.kernels.triton.launch import Launch

DTYPES = {"tf32": torch.float32, "bf16x3": torch.float32, "bf16": torch.bfloat16}
OPS = ("windowed_tonality forward", "windowed_tonality backward")
RANGES = {"start_ptr": (0.0, 390.0), "ratio_ptr": (1.0, 1.5), "strength_ptr": (0.0, 1.0)}  # of random inputs
AGREE = 1e-3  # of the norm: bfloat16 results round otherwise here and there, sums run in another order
GAIN = 0.98  # of the shipped time: below that a change is worth its commit
ROUNDS = 9
TWO_KERNELS = ("norm_backward", "product_backward")  # what runs where `joint_backward` does not


@dataclass(frozen=True)
class Job:
    """One configuration of one kernel; `number` counts the kernel's candidates, −1 is the shipped one."""

    kernel: str
    precision: str
    number: int


@dataclass
class Row:
    """What became of a job."""

    kernel: str
    precision: str
    shipped: bool
    constants: dict[str, int]
    num_warps: int
    per_processor: int
    registers: int | None = None
    spill_bytes: int | None = None
    predicted_us: float | None = None
    microseconds: float | None = None
    error: float | None = None
    note: str = ""

    @property
    def sound(self) -> bool:
        return not self.note and not self.spill_bytes

    def text(self) -> str:
        """As a row of the table."""
        constants = ", ".join(f"{name}={value}" for name, value in self.constants.items())
        several = f", per_processor={self.per_processor}" if self.per_processor > 1 else ""
        return f'Row(_c({self.num_warps}, {constants}{several}), arch=90, precision="{self.precision}")'


@contextmanager
def table_with(kernel: str, configuration: Configuration | None) -> Iterator[None]:
    """The configurations' table, with one row alone for `kernel`, and with what makes that kernel run at all."""
    from adaptive_window.kernels.triton import configurations

    before = dict(configurations.TABLE)
    if kernel in TWO_KERNELS:
        configurations.TABLE["joint_backward"] = (configurations.Row(configurations.APART),)
    if configuration is not None:
        configurations.TABLE[kernel] = (configurations.Row(configuration),)
    try:
        yield
    finally:
        configurations.TABLE.update(before)


def launches(job: Job, arch: int, processors: int) -> list[Launch]:
    """All launches of the call, forward and backward, planned on tensors without memory."""
    from adaptive_window.kernels.triton.configurations import Target
    from adaptive_window.kernels.triton.launch import record_launches, use_target
    from tools.specimens import SHAPES, _calls

    calls = _calls(SHAPES["nominal"], DTYPES[job.precision])
    configuration = None if job.number < 0 else CANDIDATES[job.kernel][job.number]
    target = Target(arch, processors, job.precision)
    found: list[Launch] = []
    with table_with(job.kernel, configuration), use_target(target):
        for op in OPS:
            with record_launches() as recorded:
                calls[op]()
            found += recorded
    return found


def row_of(job: Job, found: Sequence[Launch]) -> tuple[Row, Launch]:
    from adaptive_window.kernels.triton.configurations import Target, configuration

    launch = next(one for one in found if one.name == job.kernel)
    if job.number < 0:
        shape = (128, 800, 1200) if job.kernel == "resample_dx" else (128, 800)
        precision = "" if job.kernel == "resample_dx" else job.precision
        config = configuration(job.kernel, Target(90, 132), precision, *shape)
    else:
        config = CANDIDATES[job.kernel][job.number]
    constants = {name: launch.arguments[name] for name in config.constants}
    row = Row(job.kernel, job.precision, job.number < 0, constants, launch.num_warps, config.per_processor)
    return row, launch


def compiled(job: Job, arch: int, processors: int, predict: bool) -> Row:
    """In a process of its own: Triton keeps what it compiles on disk, for whoever launches it."""
    from tools.compiled import compile_launch
    from tools.device_time import estimate, longest
    from tools.processor import Cycles

    try:
        row, launch = row_of(job, launches(job, arch, processors))
        made = compile_launch(launch, arch)
    except Exception as error:  # a configuration that cannot be compiled is a result
        config = CANDIDATES[job.kernel][job.number]
        constants = dict(config.constants)
        row = Row(job.kernel, job.precision, False, constants, config.num_warps, config.per_processor)
        row.note = f"{type(error).__name__}: {str(error).strip().splitlines()[-1][:120]}"
        return row
    row.registers, row.spill_bytes = made.registers, made.spill_bytes
    if made.shared_bytes > 227 * 1024:
        row.note = f"needs {made.shared_bytes} bytes of shared memory"
    elif predict:
        timed = longest(launch)
        made = made if timed is launch else compile_launch(timed, arch)
        row.predicted_us = round(estimate(timed, made, Cycles()).microseconds, 1)
    return row


def compile_all(
    jobs: Sequence[Job], arch: int, processors: int, predict: bool, seconds: float | None
) -> dict[Job, Row]:
    """All jobs that are done in time, or at all; the others are compiled when they are launched, or never."""
    began, rows = time.perf_counter(), {}
    pool = ProcessPoolExecutor(max(1, (os.cpu_count() or 2) - 1), mp_context=get_context("spawn"))
    futures = {pool.submit(compiled, job, arch, processors, predict): job for job in jobs}
    try:
        for future in as_completed(futures, timeout=seconds):
            rows[futures[future]] = future.result()
    except TimeoutError:
        print(f"compiling stopped after {seconds} s")
    pool.shutdown(wait=False, cancel_futures=True)
    print(f"compiled {len(rows)} of {len(jobs)} in {time.perf_counter() - began:.0f} s", flush=True)
    return rows


class Tensors:
    """Tensors with memory in the place of those that launches were planned on."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.bases: dict[int, Tensor] = {}
        self.random = torch.Generator(device).manual_seed(1)

    def base(self, name: str, value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage._cdata not in self.bases:
            size = storage.nbytes() // value.element_size()
            made = torch.zeros(size, dtype=value.dtype, device=self.device)
            if made.dtype.is_floating_point:
                made.uniform_(*RANGES.get(name, (-0.1, 0.1)), generator=self.random)
            self.bases[storage._cdata] = made
        return self.bases[storage._cdata]

    def of(self, launch: Launch) -> dict[str, Any]:
        """The launch's arguments."""
        arguments = dict(launch.arguments)
        for name, value in launch.arguments.items():
            if isinstance(value, Tensor):
                base = self.base(name, value)
                if base.dtype != value.dtype:
                    base = base.view(value.dtype)
                arguments[name] = base.as_strided(value.shape, value.stride(), value.storage_offset())
        return arguments


def start(launch: Launch, arguments: dict[str, Any]) -> None:
    launch.kernel[launch.grid](**arguments, num_warps=launch.num_warps, num_stages=launch.num_stages)


SHARES = ("dpointwise_ptr", "dbias_ptr", "dnorm_ptr")  # [programs, ...]: which tiles a program has is up to it
SPLIT = ("z", "du")  # "bf16x3" keeps them as a sum of two


def comparable(arguments: dict[str, Any]) -> dict[str, Tensor]:
    """What a kernel wrote as values that do not depend on its configuration."""
    values = {name: v.double() for name, v in arguments.items() if isinstance(v, Tensor) and v.is_floating_point()}
    for name in SHARES:
        if name in values:
            values[name] = values[name].sum(0)
    for name in SPLIT:
        hi, lo = values.get(f"{name}_ptr"), values.pop(f"{name}_lo_ptr", None)
        if hi is not None and lo is not None and arguments.get("PRECISION") == "bf16x3":
            values[f"{name}_ptr"] = hi + lo
    upper, lower = arguments.get("dz_ptr"), arguments.get("dz_lo_ptr")
    if upper is not None and upper.dtype == torch.int16 and lower is not None:  # float32 in 24 bits
        values["dz_ptr"] = (upper.int() << 16 | (lower.int() & 0xFF) << 8).view(torch.float32).double()
    return values


def difference(got: dict[str, Any], wanted: dict[str, Any]) -> float:
    """The largest relative distance of a tensor among the arguments; partial sums are compared added up."""
    worst, mine = 0.0, comparable(got)
    for name, value in comparable(wanted).items():
        other, one = value, mine[name]
        if one.shape != other.shape:  # of chunks or tiles
            axis = next(n for n in range(one.dim()) if one.shape[n] != other.shape[n])
            one, other = one.sum(axis), other.sum(axis)
        scale = float(other.norm())
        distance = float((one - other).norm()) / scale if scale else float((one - other).norm())
        worst = max(worst, distance if math.isfinite(distance) else math.inf)
    return worst


def profiled(call: Callable[[], None], kernel: str, flush: Callable[[], None]) -> float:
    """Median microseconds of a kernel."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        for _ in range(ROUNDS):
            flush()
            call()
        torch.cuda.synchronize()
    mine = [e for e in profiler.events() if e.device_type == DeviceType.CUDA and e.name == kernel]
    return statistics.median(e.time_range.elapsed_us() for e in mine)


def measure(jobs: Sequence[Job], rows: dict[Job, Row], processors: int, arch: int, until: float) -> None:
    """Fill in times and errors, kernel by kernel, until the time is up."""
    buffer = torch.empty(2**28, dtype=torch.int8, device="cuda")
    for precision in dict.fromkeys(job.precision for job in jobs):
        for kernel in dict.fromkeys(job.kernel for job in jobs if job.precision == precision):
            mine = [job for job in jobs if (job.kernel, job.precision) == (kernel, precision)]
            wanted: dict[str, Any] = {}
            for job in sorted(mine, key=lambda job: job.number):  # the shipped one first
                if job not in rows or rows[job].note or time.perf_counter() > until:
                    continue
                row, tensors = rows[job], Tensors("cuda")
                try:
                    for launch in launches(job, arch, processors):
                        arguments = tensors.of(launch)
                        start(launch, arguments)
                        if launch.name == kernel:
                            break
                    torch.cuda.synchronize()
                    got = {n: v.clone() if isinstance(v, Tensor) else v for n, v in arguments.items()}
                    wanted = wanted or got
                    row.error = difference(got, wanted)
                    if not row.error <= AGREE:
                        row.note = f"differs from the shipped one by {row.error:.1e}"
                    row.microseconds = profiled(lambda: start(launch, arguments), kernel, buffer.zero_)  # noqa: B023
                except Exception as error:  # recorded in the row
                    row.note = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120]}"
                del tensors


def chosen(rows: Sequence[Row], key: str) -> list[tuple[Row, Row]]:
    """(shipped, better) where a sound candidate beats the shipped configuration by more than noise."""
    found = []
    for group in dict.fromkeys((row.kernel, row.precision) for row in rows):
        members = [row for row in rows if (row.kernel, row.precision) == group and getattr(row, key) is not None]
        shipped = next((row for row in members if row.shipped), None)
        sound = [row for row in members if row.sound]
        if shipped is None or not sound:
            continue
        best = min(sound, key=lambda row: getattr(row, key))
        if getattr(best, key) < GAIN * getattr(shipped, key):
            found.append((shipped, best))
    return found


def table(rows: Sequence[Row], key: str) -> str:
    """All rows, the fastest of each kernel first."""
    lines = []
    for group in dict.fromkeys((row.kernel, row.precision) for row in rows):
        lines.append(f"\n{group[0]}, {group[1]}")
        members = [row for row in rows if (row.kernel, row.precision) == group]
        for row in sorted(members, key=lambda row: getattr(row, key) or math.inf):
            time_us = getattr(row, key)
            what = " ".join(f"{name}={value}" for name, value in row.constants.items())
            marks = ("shipped" if row.shipped else "", f"spills {row.spill_bytes}" if row.spill_bytes else "", row.note)
            lines.append(
                f"  {'-' if time_us is None else f'{time_us:.1f}':>7} us  {what} warps={row.num_warps} "
                f"programs={row.per_processor}  {', '.join(mark for mark in marks if mark)}".rstrip()
            )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--kernels", nargs="+", choices=tuple(CANDIDATES), default=list(CANDIDATES), metavar="KERNEL")
    add("--precisions", nargs="+", choices=PRECISIONS, default=["tf32", "bf16", "bf16x3"])
    add("--seconds", type=float, default=230.0, help="for everything")
    add("--json", type=Path, help="write the results here")
    add("--dry", action="store_true", help="compile everything and predict its time; needs no GPU")
    add("--compile", action="store_true", help="compile for this GPU, and no more")
    add("--list", action="store_true", help="only name what would be timed")
    add("--first", type=int, help="so many candidates of each kernel, not all")
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    jobs = [
        Job(kernel, precision, number)
        for precision in options.precisions
        for kernel in options.kernels
        for number in range(-1, len(CANDIDATES[kernel][: options.first]))
    ]
    if options.list:
        for job in jobs:
            row, launch = row_of(job, launches(job, 90, 132))
            print(f"{row.kernel} {row.precision} {row.constants} warps={row.num_warps} grid={launch.grid}")
        return 0
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 is set: kernels are interpreted in this process, and cannot be compiled")
    if not options.dry and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --dry compiles everything without one")
    arch, processors, limit = 90, 132, options.seconds
    if not options.dry:
        properties = torch.cuda.get_device_properties(0)
        arch, processors = 90 if properties.major >= 9 else 80, properties.multi_processor_count
        limit = options.seconds * 0.6
    rows = compile_all(jobs, arch, processors, options.dry, None if options.dry else limit)
    if options.compile:
        return 0
    if not options.dry:
        measure(jobs, rows, processors, arch, began + options.seconds)
    done, key = [rows[job] for job in jobs if job in rows], "predicted_us" if options.dry else "microseconds"
    print(table(done, key))
    print("\npredicted, not measured:" if options.dry else "\nrows to take:")
    better = chosen(done, key)
    for shipped, best in better:
        gain = getattr(shipped, key), getattr(best, key)
        print(f"  {best.kernel}: {best.text()}  # {gain[0]:.1f} -> {gain[1]:.1f} us")
    if not better:
        print("  none: the shipped configurations are the fastest")
    if options.json:
        described = {"schema": "tune-1", "machine": machine("cpu" if options.dry else "cuda"), "dry": options.dry}
        described["rows"] = [asdict(row) for row in done]
        described["chosen"] = [asdict(best) for _, best in better]
        options.json.write_text(json.dumps(described, indent=1) + "\n")
    print(f"{time.perf_counter() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
