"""How long a kernel takes on an H100, from what the compiler made of it: a prediction, where there is no GPU to ask.

    python -m tools.device_time                          # every launch of windowed_tonality; microseconds and sums
    python -m tools.device_time windowed_tonality bf16   # rows of that op and precision; --json for a list of objects

A kernel is compiled for sm_90, and one processor of the H100 is run on its instructions (`processor`), with the bank
conflicts and the cache lines that its addresses tell (`ptx`). Microseconds of the nominal call (B = 32, P = 3, C = 128,
T = 1200, W = 800): "alone" with nothing of it in the caches, "in a row" with what the stages before have left there
(`cache`, of the backward pass). `python -m tools.calibration` prints how far off the former is.

Programs that do different things: of finish_gradients those are run that take longest, the ones that sum a column of
dA (`longest`); they read everything once, so that nothing of it is near. Earlier forms of it, in Triton 3.6, are
predicted too short: 12.3 us for 15.5 measured (8 warps, 64 rows at a time, dâ before dÂ), 21.4 for 22.3 (4 warps, 32
rows, both at once). Too long comes out prepare_weights: there each program does all that any of them does.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from . import cache
from .compiled import Compiled, bytes_of, compile_launch
from .h100 import CLOCK, PROCESSORS
from .processor import Cycles, Instruction, decode, program, run
from .ptx import Access, accesses, largest_loop
from .specimens import Specimen, specimens

if TYPE_CHECKING:
    from adaptive_window.kernels.triton.launch import Launch

MODULE = "tools.device_time"
ROOT = Path(__file__).resolve().parents[1]
WORKERS = 2
LAUNCH_US = 2.0  # a kernel that does nothing
REGISTERS, SHARED, WARPS, PROGRAMS = 65536, 228 * 1024, 64, 32  # of one processor
WAVES = 4  # programs simulated, of those that fit at once: the rest are like them
NEAR = 2**20  # bytes; tensors below this stay in the caches
ONCE = ("finish_gradients",)  # no two programs read the same for long enough that this would help
# Loads at places that depend on data (frames of a clip): wavefronts of a warp, as Nsight Compute counts them, by words
GATHER = {1.0: 3.2, 0.5: 2.4}


@dataclass(frozen=True)
class Estimate:
    microseconds: float
    resident: int  # programs on a processor
    read_bytes: int
    written_bytes: int
    bounds: dict[str, float]  # microseconds that each unit is busy, were it never to wait


def _cost(one: Instruction, access: Access, near: bool) -> Instruction:
    """A load with what its addresses tell."""
    if access.wavefronts is None:
        touched = 4.0 if near else 160.0 * access.words  # 32 frames, a quarter more apart than they are
        return replace(one, cost=GATHER.get(access.words, one.cost), bytes=touched, near=near)
    whole = access.wavefronts > 1 or access.words > 1
    return replace(one, cost=access.wavefronts, bytes=128.0 * access.words if whole else 8.0, near=near)


def _section(
    compiled: Compiled, indices: Sequence[int], found: Sequence[Access], sizes: dict[str, int]
) -> list[Instruction]:
    """Instructions of a part of the listing, with the costs of the same part of the PTX.

    Loads are matched in order, width by width. Shared accesses share the bank conflicts evenly.
    """
    names, operands = compiled.listing.names, compiled.listing.operands
    decoded = [decode(names[i], operands[i]) for i in indices]
    plain = [one.kind == "shared" and not names[i].startswith("SHFL") for one, i in zip(decoded, indices, strict=True)]
    counted = sum(a.wavefronts for a in found if a.space == "shared" and a.wavefronts is not None)
    held = sum(one.cost for one, mine in zip(decoded, plain, strict=True) if mine)
    conflicts = counted / held if counted and held else 1.0
    loads: dict[int, list[Access]] = defaultdict(list)
    for access in found:
        if access.space == "load":
            loads[max(1, int(access.words))].append(access)
    taken: dict[int, int] = defaultdict(int)
    result = []
    neighbours: dict[int, bool] = {}
    for one, mine, place in zip(decoded, plain, indices, strict=True):
        if mine:
            one = replace(one, cost=one.cost * conflicts)
        elif one.kind == "load" and loads[int(one.cost)]:
            width = int(one.cost)
            access = loads[width][taken[width] % len(loads[width])]
            taken[width] += 1
            near = sizes.get(access.argument or "", 0) < NEAR
            if access.wavefronts is None and not near:  # every second frame gathered is the neighbour of one before
                near = neighbours[place] = neighbours.get(place, len(neighbours) % 2 == 1)
            one = _cost(one, access, near)
        result.append(one)
    return result


def _iterations(launch: Launch) -> int:
    """How often the loop of a looped kernel runs in one program."""
    arguments = launch.arguments
    if "tiles" in arguments:
        return math.ceil(arguments["tiles"] / launch.grid[0])
    if launch.name == "resample_position_gradient":
        return math.ceil(arguments["C"] / arguments["BLOCK_C"])
    return math.ceil(arguments["W"] / (arguments["BLOCK_T"] - 2 * arguments.get("HALO", 0)))


def trips(launch: Launch) -> int:
    """How often the outermost loops of a kernel run that is not persistent."""
    arguments = launch.arguments
    if launch.name == "resample_dx":
        return int(arguments["P"])
    if launch.name == "finish_gradients":
        return math.ceil(max(arguments["rows"], arguments["shares"]) / arguments["BLOCK_R"])
    if launch.name in ("norm_blend", "wide_norm_backward", "wide_product"):
        return math.ceil(arguments["C"] / arguments["BLOCK_C"])
    return 1


def longest(launch: Launch) -> Launch:
    """Of a launch whose programs do different things, those that take longest; else all of it."""
    columns = launch.arguments.get("COLUMN_PROGRAMS", 0)
    if not columns:
        return launch
    theirs = ("NEED_POINTWISE_WEIGHT", "NEED_DEPTHWISE_BIAS")
    others = {name: False for name in launch.arguments if name.startswith("NEED_") and name not in theirs}
    return replace(launch, grid=(columns,), arguments={**launch.arguments, **others})


def resident(compiled: Compiled, warps: int) -> int:
    """Programs of a kernel that fit on a processor at once."""
    registers = 8 * math.ceil(max(24, compiled.registers) / 8)
    room = (REGISTERS // (registers * 32 * warps), SHARED // (compiled.shared_bytes + 1024), WARPS // warps, PROGRAMS)
    return max(1, min(room))


def estimate(launch: Launch, compiled: Compiled, cycles: Cycles, moved: tuple[float, float] | None = None) -> Estimate:
    """Of one launch on a whole device.

    moved: megabytes read from memory and written to it; None: all that it touches, once.
    """
    sizes = bytes_of(launch)
    apart = dict.fromkeys(sizes, NEAR) if launch.name in ONCE else sizes
    found = accesses(compiled.ptx, list(compiled.parameters))
    read = {a.argument for a in found if a.space in ("load", "copy")}
    written = {a.argument for a in found if a.space == "store"}
    if moved is None:
        read_bytes, written_bytes = (sum(sizes.get(str(name), 0) for name in names) for names in (read, written))
    else:
        read_bytes, written_bytes = round(1e6 * moved[0]), round(1e6 * moved[1])
    loop = largest_loop(compiled.ptx) if launch.looped else None
    before, within, behind = program(compiled.listing, looped=launch.looped, trips=trips(launch))
    if loop:
        parts = (
            _section(compiled, before, [a for a in found if a.line < loop[0]], apart),
            _section(compiled, within, [a for a in found if loop[0] <= a.line <= loop[1]], apart),
            _section(compiled, behind, [a for a in found if a.line > loop[1]], apart),
        )
    else:
        parts = (_section(compiled, before, found, apart), [], [])
    programs, iterations = math.prod(launch.grid), _iterations(launch) if loop else 1
    together = min(resident(compiled, launch.num_warps), math.ceil(programs / PROCESSORS))

    def touched(*kinds: str) -> float:
        counts = (1, iterations, 1)
        return programs * launch.num_warps * sum(
            count * one.bytes
            for count, part in zip(counts, parts, strict=True)
            for one in part
            if one.kind in kinds and not one.near
        )  # fmt: skip

    loaded, stored = touched("load", "copy"), touched("store")
    shares = (read_bytes / loaded if loaded else 0.0, written_bytes / stored if stored else 0.0)

    each = math.ceil(programs / PROCESSORS)
    simulated = min(each, WAVES * together)

    def cycles_of(passes: int) -> float:
        whole = [*parts[0], *parts[1] * passes, *parts[2]]
        return run(whole, launch.num_warps, together, simulated, cycles, *shares)

    if iterations > 4:
        two, four = cycles_of(2), cycles_of(4)
        spent = two + (four - two) / 2 * (iterations - 2)
    else:
        spent = cycles_of(iterations)
    scale = launch.num_warps * programs / PROCESSORS / CLOCK * 1e6
    once = [one for count, part in zip((1, iterations, 1), parts, strict=True) for one in part * count]
    bounds = {
        "issue": scale * sum(one.kind != "skip" for one in once) / 4,
        "load-store": scale * sum(one.cost for one in once if one.kind in ("shared", "load", "copy", "store")),
        "tensor": scale * sum(one.cost for one in once if one.kind in ("hgmma", "hmma")) / 4,
        "l2": scale * sum(one.bytes for one in once if one.kind in ("load", "copy")) / cycles.l2_bytes,
        "memory": (read_bytes + written_bytes) / PROCESSORS / cycles.memory_bytes / CLOCK * 1e6,
    }
    spent *= each / simulated
    return Estimate(spent / CLOCK * 1e6 + LAUNCH_US, together, read_bytes, written_bytes, bounds)


@dataclass(frozen=True)
class Prediction:
    """One launch of a call."""

    op: str
    kernel: str
    dtype: str
    precision: str
    microseconds: float  # alone
    in_a_row: float  # behind the launches before it
    resident: int  # programs on a processor
    megabytes: float  # read and written
    busiest: str  # the unit that would need the most time, were nothing ever waited for
    busy_us: float  # that time


def _one(index: int, moved: tuple[float, float] | None = None) -> Prediction:
    one = specimens(90)[index]
    launch = longest(one.launch)
    found = estimate(launch, compile_launch(launch, 90), Cycles(), moved)
    busiest = max(found.bounds, key=lambda unit: found.bounds[unit])
    megabytes = (found.read_bytes + found.written_bytes) / 1e6
    return Prediction(
        one.op,
        one.launch.name,
        one.dtype,
        one.precision,
        round(found.microseconds, 1),
        round(found.microseconds, 1),
        found.resident,
        round(megabytes, 1),
        busiest,
        round(found.bounds[busiest], 1),
    )


def predict_all(only: Sequence[str] = ("windowed_tonality",)) -> list[Prediction]:
    """Every launch whose op, kernel, dtype and precision `only` names; what compiles to the same code is run once.

    Compiles in processes of its own. Raises RuntimeError where kernels are interpreted.
    """
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise RuntimeError("TRITON_INTERPRET=1 is set: kernels are interpreted in this process, and cannot be compiled")
    wanted = [(n, one) for n, one in enumerate(specimens(90)) if one.named(only)]
    first = {one.key(): n for n, one in reversed(wanted)}
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool:
        done = dict(zip(first, pool.map(_one, first.values()), strict=True))
        alone = {n: replace(done[one.key()], op=one.op, dtype=one.dtype, precision=one.precision) for n, one in wanted}
        moved = _in_a_row(dict(wanted), alone)
        again = dict(zip(moved, pool.map(_one, moved, moved.values()), strict=True))
    return [replace(one, in_a_row=again[n].microseconds) if n in again else one for n, one in alone.items()]


def _in_a_row(wanted: dict[int, Specimen], alone: dict[int, Prediction]) -> dict[int, tuple[float, float]]:
    """What `estimate` takes, of those launches that find something in the cache."""
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for n, one in wanted.items():
        if one.op == "windowed_tonality backward":
            groups[one.dtype, one.precision].append(n)
    found: dict[int, tuple[float, float]] = {}
    for group in groups.values():
        launches = [wanted[n].launch for n in group]
        row = cache.follow(launches, [alone[n].resident * PROCESSORS for n in group])
        found |= {
            n: (one.read, one.written) for n, one in zip(group, row, strict=True) if cache.walks(wanted[n].launch)
        }
    return found


def table(predictions: Sequence[Prediction]) -> str:
    """For people; a sum behind each op, dtype and precision."""
    lines = [f"{'':28}{'dtype':10}{'precision':10}{'alone':>8}{'in a row':>10}{'programs':>9}{'MB':>7}  busiest"]
    for group in dict.fromkeys((one.op, one.dtype, one.precision) for one in predictions):
        mine = [one for one in predictions if (one.op, one.dtype, one.precision) == group]
        for one in mine:
            lines.append(
                f"{one.kernel:28}{one.dtype:10}{one.precision:10}{one.microseconds:8.1f}{one.in_a_row:10.1f}{one.resident:9}"
                f"{one.megabytes:7.0f}  {one.busiest} {one.busy_us:.1f}"
            )
        sums = sum(one.microseconds for one in mine), sum(one.in_a_row for one in mine)
        lines.append(f"{group[0]:28}{group[1]:10}{group[2]:10}{sums[0]:8.1f}{sums[1]:10.1f}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description="Predicted device time of every kernel.")
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of a table")
    parser.add_argument("only", nargs="*", help="an op, kernel, dtype or precision; all of those given must fit")
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(given)
    if os.environ.get("TRITON_INTERPRET") == "1":  # Triton decides at its import: compile in a process without it
        clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        return subprocess.run([sys.executable, "-m", MODULE, *given], env=clean, cwd=ROOT, check=False).returncode
    only = options.only or ["windowed_tonality"]
    if not any(one.named(only) for one in specimens(90)):
        parser.error(f"no shipped kernel fits {' '.join(only)}")
    predictions = predict_all(only)
    print(json.dumps([asdict(one) for one in predictions], indent=1) if options.json else table(predictions))
    return 0


if __name__ == "__main__":
    sys.exit(main())
