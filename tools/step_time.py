"""How long a compiled training step takes on an H100, and what it holds: a prediction, where there is no GPU to ask.

    python -m tools.step_time [--precision bf16|tf32] [--batch 32] [--keep little|all] [--json F]

TorchInductor makes the step's code for a GPU that is not there (`absent_gpu`): agent, losses and backward pass, as
`benchmarks/agent_step.py --variants` has them. Its own kernels then take what their bytes take, at the rate that
kernels of their kind reached in the measurement in `benchmarks/results/h100-2026-11-27-evening/agent-step.json`, or
what their instructions take to issue, whichever is longer. Products, convolutions, attention and our own operators are
called by name: what they take is what the measurement has, less what TorchInductor's kernels took in it by the same
model. Printed too is how far off the model is on the kernels that were measured; the rates are fitted to these.

For the torch that was measured, 2.11; with others the code differs. It takes a minute and a half, and a C compiler.
"""

from __future__ import annotations

import argparse
import json
import re
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from . import absent_gpu
from .h100 import CLOCK, PROCESSORS

if TYPE_CHECKING:
    from .compiled_step import Step
    from .generated import Kernel

ROOT = Path(__file__).resolve().parents[1]
MEASURED = ROOT / "benchmarks" / "results" / "h100-2026-11-27-evening" / "agent-step.json"
GIB = 2**30
CODE = MEASURED.with_name("compiled-kernels.json")  # `Work` of what was measured, as this made it from commit 048b28e
WINDOW = 800
BYTES_PER_US = {  # fitted to what was measured, but for the last two, which no GPU has run
    "elementwise": 2.97e6,
    "sums over rows": 2.97e6,
    "sums over columns": 2.27e6,
    "both sums, rows divided": 1.37e6,
    "both sums": 2.97e6,
    "sums over blocks": 2.97e6,  # of rows, by the kernel that writes what it sums
}
ISSUED_PER_US = PROCESSORS * 4 * 32 * CLOCK * 1e-6  # instructions of threads: four warps' a cycle
WORTH_COUNTING = 2**24  # elements of a kernel whose instructions may decide
SHORTEST_US, ALONE_US = 1.5, 1.0  # of a kernel that does next to nothing; between a small kernel and the next
SMALL_US = 20.0
DROPPED_MS = 0.17  # host's, before the first kernel: gradients are dropped from a list since, not module by module
IDLE_US = 1.0  # of the device between two launches
DEAREST = 16  # that are printed
NAMED = 100  # characters of a name that the measurement has


class Work(NamedTuple):
    """One of TorchInductor's kernels."""

    name: str
    launches: int
    kind: str
    bytes: int
    instructions: int  # of all threads, where they may decide; 0 elsewhere

    @classmethod
    def of(cls, kernel: Kernel) -> Work:
        counted = kernel.kind == "elementwise" and kernel.elements >= WORTH_COUNTING
        each = kernel.instructions(absent_gpu.ARCH) if counted else 0
        return cls(kernel.name, kernel.launches, kernel.kind, kernel.bytes, round(each * kernel.elements))

    @property
    def microseconds(self) -> float:
        """Of one launch."""
        taken = max(self.bytes / BYTES_PER_US[self.kind], self.instructions / ISSUED_PER_US)
        return taken if taken >= SMALL_US else max(taken, SHORTEST_US) + ALONE_US


def works(step: Step) -> list[Work]:
    from .generated import kernels

    return [work for code in step for work in (*map(Work.of, kernels(code)), *added(code))]


def added(code: str) -> list[Work]:
    """PyTorch's own sums of what TorchInductor's kernels for both sums leave, `[programs, columns]` in float32."""
    found = Counter(re.findall(r"= workspace_\d+\[.*\]\.view\((\d+), (\d+)\)\.sum\(dim=0\)", code))
    return [
        Work(f"{rows} x {columns}.sum(0)", count, "sums over columns", 4 * int(rows) * int(columns), 0)
        for (rows, columns), count in found.items()
    ]


def milliseconds(of: list[Work]) -> float:
    return sum(work.launches * work.microseconds for work in of) / 1e3


def _family(name: str) -> str:
    """A kernel's name without its number, as long as the profiler's."""
    return re.sub(r"_\d+$", "", name[:NAMED])


class Fit(NamedTuple):
    """A kernel that was measured, all of its launches in a step."""

    name: str
    launches: int
    measured_us: float
    predicted_us: float


class Measured(NamedTuple):
    """The compiled step as an H100 took it."""

    ms: float  # waited for
    busy_ms: float
    peak_gib: float
    original_peak_gib: float
    works: list[Work]  # of its code, by which the model says what TorchInductor's kernels took of it
    fits: list[Fit]

    @classmethod
    def read(cls, precision: str, batch: int) -> Measured:
        """Raises ValueError for a precision and batch that were not measured, or whose code is not at hand."""
        codes = json.loads(CODE.read_text())
        asked = f"{precision} {batch}"
        if asked not in codes:
            raise ValueError(f"precision and batch: {asked}; measured were {'; '.join(codes)}")
        rows = [row for row in json.loads(MEASURED.read_text())["rows"] if "but" not in row]
        found = {row["variant"]: row for row in rows if f"{row['precision']} {row['batch']}" == asked}
        row = found["compiled"]
        code = [Work(*work) for work in codes[asked]]
        mixed = sum(work.launches for work in code if work.kind == "both sums, rows divided")
        # what `added` would find, which the list has not: two sums behind each, of 1,200 programs
        code.append(Work("1200 x 512.sum(0)", 2 * mixed, "sums over columns", 4 * 1200 * 512, 0))
        fits = []
        for name, launches, us in row["dearest"]:
            # numbers differ where kernels were made in another order; of names that are cut to the same, the dearest
            same = [work for work in code if work.name == name]
            alike = [work for work in code if _family(work.name) == _family(name) and work.launches == launches]
            if same or alike:
                fits.append(Fit(name, launches, us, launches * max(work.microseconds for work in same or alike)))
        return cls(row["ms"], row["busy_ms"], row["peak_gib"], found["original"]["peak_gib"], code, fits)


def _row(name: str, launches: int | str, *rest: str) -> str:
    return f"  {name[:72]:72} {launches:>3}  {'  '.join(rest)}"


def report(now: list[Work], peak_gib: float, was: Measured) -> dict[str, Any]:
    """Prints it, and returns it."""
    print("TorchInductor's kernels, us as measured and by the model:")
    sums = Fit("sum", 0, sum(fit.measured_us for fit in was.fits), sum(fit.predicted_us for fit in was.fits))
    for fit in (*was.fits, sums):
        off = 100 * (fit.predicted_us / fit.measured_us - 1)
        print(
            _row(fit.name, fit.launches or "", f"{fit.measured_us:6.0f}", f"{fit.predicted_us:6.0f}", f"{off:+3.0f} %")
        )
    print("now, the dearest:")
    for work in sorted(now, key=lambda work: -work.launches * work.microseconds)[:DEAREST]:
        print(_row(work.name, work.launches, f"{work.launches * work.microseconds:6.0f}", work.kind))
    before, after = milliseconds(was.works), milliseconds(now)
    launches = [sum(work.launches for work in some) for some in (was.works, now)]
    busy = was.busy_ms - before + after
    idle = was.ms - was.busy_ms - DROPPED_MS - (launches[0] - launches[1]) * IDLE_US / 1e3
    found = {
        "triton_ms": after,
        "triton_launches": launches[1],
        "busy_ms": busy,
        "ms": busy + idle,
        "peak_gib": peak_gib,
        "peak_of_original": peak_gib / was.original_peak_gib,
        "measured": {"ms": was.ms, "busy_ms": was.busy_ms, "peak_gib": was.peak_gib, "triton_ms": before,
                     "triton_launches": launches[0]},
        "kernels": [work._asdict() | {"us": work.microseconds} for work in now],
    }  # fmt: skip
    print(f"TorchInductor's kernels: {before:.1f} ms in {launches[0]} launches as measured, by the model; "
          f"{after:.1f} in {launches[1]} now")  # fmt: skip
    print(
        f"the step: measured {was.ms:.1f} ms, {was.busy_ms:.1f} of them busy; predicted {busy + idle:.1f}, {busy:.1f}"
    )
    print(f"peak: measured {was.peak_gib:.2f} GiB; predicted {peak_gib:.2f}, "
          f"{found['peak_of_original']:.2f} of the original's {was.original_peak_gib:.2f}")  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=("bf16", "tf32"), default="bf16")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--keep", choices=("little", "all"), default="little")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    try:
        was = Measured.read(options.precision, options.batch)
    except ValueError as error:
        parser.error(str(error))
    warnings.simplefilter("ignore")  # of tensors without memory
    absent_gpu.load()
    absent_gpu.pretend()
    from adaptive_window import AdaptiveWindowCreativeAgent

    from .compiled_step import generate
    from .generated import peak_bytes

    step = generate(options.precision, options.batch, options.keep, AdaptiveWindowCreativeAgent(window_frames=WINDOW))
    found = report(works(step), peak_bytes(*step) / GIB, was)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
