"""What the compiler makes of every shipped kernel, found out without a GPU.

    python -m tools.inspect_kernels --arch 90                 # or 80; a table
    python -m tools.inspect_kernels --arch 90 --json          # a JSON list, one object per row
    python -m tools.inspect_kernels windowed_tonality bf16    # rows of that op and that precision
    python -m tools.inspect_kernels --shape odd               # other sizes and layouts; or all of them

Each kernel is compiled as it is launched for the nominal clips (B = 32, P = 3, C = 128, T = 1200, W = 800), or those of
another of `specimens.SHAPES`, down to a cubin, which Triton's own copies of NVIDIA's cuobjdump and nvdisasm then take
apart. Per kernel:

    registers, spill_bytes      per thread
    shared_bytes                per program
    instructions_per_output     issued per element that the kernel writes: in one pass of a persistent loop, or in the
                                whole kernel; without loops for rare cases (windows over an edge, ratio < 1)
    per_window_element          the same, spread over the elements of the op's windows [B, P, C, W]: these add up
    load_order                  fastest axis first, of the loads of signals: [0, 1] where lanes lie along a tile's first
                                axis; null where nothing two-dimensional is loaded, "mixed" where loads differ
    tensor_core_instructions    HGMMA, HMMA and DMMA in the listing
    bytes_per_window_element    all arguments, each touched once, per element of the windows
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .compiled import compile_launch
from .sass import TENSOR_CORE, loads
from .specimens import SHAPES, Specimen, specimens

if TYPE_CHECKING:
    from adaptive_window.kernels.triton.launch import Launch

MODULE = "tools.inspect_kernels"
ROOT = Path(__file__).resolve().parents[1]
ARCHITECTURES = (90, 80)
WORKERS = 2


@dataclass(frozen=True)
class Report:
    """One row; see the module's docstring."""

    arch: int
    shape: str
    op: str
    kernel: str
    dtype: str
    precision: str
    config: dict[str, int]
    registers: int
    spill_bytes: int
    shared_bytes: int
    instructions_per_output: float
    per_window_element: float
    load_order: list[int] | str | None
    tensor_core_instructions: int
    bytes_per_window_element: float


def _load_order(ttgir: str, launch: Launch, shape: str) -> list[int] | str | None:
    tensors = {name: value for name, value in launch.arguments.items() if isinstance(value, torch.Tensor)}
    signals = {name for name, value in tensors.items() if value.dim() >= 3 and value.shape[-1] >= SHAPES[shape].W}
    orders = {load.order for load in loads(ttgir) if load.argument in signals}
    if len(orders) > 1:
        return "mixed"
    return list(orders.pop()) if orders else None


def _bytes(launch: Launch) -> int:
    tensors = {id(value): value for value in launch.arguments.values() if isinstance(value, torch.Tensor)}
    return sum(value.numel() * value.element_size() for value in tensors.values())


def _outputs(specimen: Specimen) -> int:
    """Elements that one launch writes: of the clips, of the prepared weight, or of the windows."""
    for name in ("dx_ptr", "vectors_ptr"):
        if name in specimen.launch.arguments:
            return int(specimen.launch.arguments[name].numel())
    return specimen.window_elements


def _trips(launch: Launch) -> float:
    """How often the outermost loops of a kernel run that is not persistent."""
    arguments = launch.arguments
    if launch.name == "resample_dx":
        return float(arguments["P"])
    if launch.name in ("norm_blend", "wide_norm_backward", "wide_product"):
        return float(arguments["C"] / arguments["BLOCK_C"])
    return 1.0


def inspect(specimen: Specimen, arch: int) -> Report:
    """Compile one launch and take it apart."""
    launch = specimen.launch
    compiled = compile_launch(launch, arch)
    listing = compiled.listing
    constants = {name: value for name, value in launch.arguments.items() if name.startswith("BLOCK") or name == "HOIST"}
    looped = launch.looped and bool(listing.loops)  # a loop that runs once is none
    issued = listing.count(one_iteration=looped, trips=_trips(launch)) * launch.num_warps * 32
    per_output = issued / launch.outputs
    return Report(
        arch=arch,
        shape=specimen.shape,
        op=specimen.op,
        kernel=launch.name,
        dtype=specimen.dtype,
        precision=specimen.precision,
        config={**constants, "num_warps": launch.num_warps, "num_stages": launch.num_stages},
        registers=compiled.registers,
        spill_bytes=compiled.spill_bytes,
        shared_bytes=compiled.shared_bytes,
        instructions_per_output=round(per_output, 2),
        per_window_element=round(per_output * _outputs(specimen) / specimen.window_elements, 2),
        load_order=_load_order(compiled.ttgir, launch, specimen.shape),
        tensor_core_instructions=sum(listing.of_kind(*TENSOR_CORE).values()),
        bytes_per_window_element=round(_bytes(launch) / specimen.window_elements, 2),
    )


def _one(arch: int, shapes: Sequence[str], index: int) -> Report:
    return inspect(specimens(arch, shapes)[index], arch)


def inspect_all(arch: int, *, only: Sequence[str] = (), shapes: Sequence[str] = ("nominal",)) -> list[Report]:
    """All reports for one architecture and some of SHAPES, or those whose op, kernel, dtype or precision `only` names.

    Compiles in processes of its own. Raises RuntimeError where kernels are interpreted.
    """
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise RuntimeError("TRITON_INTERPRET=1 is set: kernels are interpreted in this process, and cannot be compiled")
    wanted = [(n, specimen) for n, specimen in enumerate(specimens(arch, shapes)) if specimen.named(only)]
    first = {specimen.key(): n for n, specimen in reversed(wanted)}  # many launches compile to the same code
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool:
        reports = pool.map(partial(_one, arch, shapes), first.values())
        done = dict(zip(first, reports, strict=True))
    return [replace(done[s.key()], shape=s.shape, op=s.op, dtype=s.dtype, precision=s.precision) for _, s in wanted]


def table(reports: Sequence[Report]) -> str:
    """For people."""
    names = [
        "shape",
        "op",
        "kernel",
        "dtype",
        "precision",
        "regs",
        "spill",
        "shared",
        "instr/out",
        "instr/el",
        "B/el",
        "order",
        "mma",
    ]
    rows = [names]
    for r in reports:
        counted = f"{r.instructions_per_output:.1f} {r.per_window_element:.1f} {r.bytes_per_window_element:.1f}".split()
        order = "-" if r.load_order is None else str(r.load_order)
        numbers = [str(r.registers), str(r.spill_bytes), str(r.shared_bytes), *counted, order]
        rows.append([r.shape, r.op, r.kernel, r.dtype, r.precision, *numbers, str(r.tensor_core_instructions)])
    widths = [max(len(row[n]) for row in rows) for n in range(len(names))]
    lines = []
    for row in rows:
        cells = (cell.ljust(w) if n < 5 else cell.rjust(w) for n, (cell, w) in enumerate(zip(row, widths, strict=True)))
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description="What the compiler makes of every kernel.")
    parser.add_argument("--arch", type=int, choices=ARCHITECTURES, default=90, help="compute capability × 10")
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of a table")
    parser.add_argument("--shape", choices=[*SHAPES, "all"], default="nominal", help="sizes of the call to compile for")
    parser.add_argument("only", nargs="*", help="an op, kernel, dtype or precision; all of those given must fit")
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(given)
    if os.environ.get("TRITON_INTERPRET") == "1":  # Triton decides at its import: compile in a process without it
        clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        return subprocess.run([sys.executable, "-m", MODULE, *given], env=clean, cwd=ROOT, check=False).returncode
    shapes = list(SHAPES) if options.shape == "all" else [options.shape]
    if not any(specimen.named(options.only) for specimen in specimens(options.arch, shapes)):
        parser.error(f"no shipped kernel fits {' '.join(options.only)}")
    reports = inspect_all(options.arch, only=options.only, shapes=shapes)
    print(json.dumps([asdict(report) for report in reports], indent=2) if options.json else table(reports))
    return 0


if __name__ == "__main__":
    sys.exit(main())
