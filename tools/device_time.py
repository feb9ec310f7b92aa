"""How long a kernel takes on an H100, from what the compiler made of it: a prediction, where there is no GPU to ask.

    python -m tools.device_time                          # every launch of windowed_tonality; microseconds and sums
    python -m tools.device_time windowed_tonality bf16   # rows of that op and precision; --json for a list of objects
    python -m tools.device_time --error                  # how well it does on the kernels that were measured

A kernel is compiled for sm_90, and one processor of the H100 is run on its instructions (`processor`), with the bank
conflicts and the cache lines that its addresses tell (`ptx`). Microseconds of the nominal call (B = 32, P = 3, C = 128,
T = 1200, W = 800), nothing of it in the caches. `--error` prints the error that `calibration` has measured.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .compiled import Compiled, bytes_of
from .processor import Cycles, Instruction, decode, program, run
from .ptx import Access, accesses, largest_loop

if TYPE_CHECKING:
    from adaptive_window.kernels.triton.launch import Launch

PROCESSORS = 132
CLOCK = 1.755e9
LAUNCH_US = 2.0  # a kernel that does nothing
REGISTERS, SHARED, WARPS, PROGRAMS = 65536, 228 * 1024, 64, 32  # of one processor
NEAR = 2**20  # bytes; tensors below this stay in the caches
# Loads at places that depend on data (frames of a clip): wavefronts of a warp, as Nsight Compute counts them, by words
GATHER = {1.0: 3.2, 0.5: 2.4}


@dataclass(frozen=True)
class Estimate:
    microseconds: float
    resident: int  # programs on a processor
    waves: float  # how often a processor is filled
    read_bytes: int
    written_bytes: int
    bounds: dict[str, float]  # microseconds that each unit is busy, were it never to wait


def _cost(one: Instruction, access: Access, near: bool) -> Instruction:
    """A load with what its addresses tell."""
    if access.wavefronts is None:  # half of what is gathered are the neighbours of the other half
        touched = 4.0 if near else 80.0 * access.words
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
    for one, mine in zip(decoded, plain, strict=True):
        if mine:
            one = replace(one, cost=one.cost * conflicts)
        elif one.kind == "load" and loads[int(one.cost)]:
            width = int(one.cost)
            access = loads[width][taken[width] % len(loads[width])]
            taken[width] += 1
            one = _cost(one, access, sizes.get(access.argument or "", 0) < NEAR)
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
    if launch.name in ("norm_blend", "wide_norm_backward", "wide_product"):
        return math.ceil(arguments["C"] / arguments["BLOCK_C"])
    return 1


def resident(compiled: Compiled, warps: int) -> int:
    """Programs of a kernel that fit on a processor at once."""
    registers = 8 * math.ceil(max(24, compiled.registers) / 8)
    room = (REGISTERS // (registers * 32 * warps), SHARED // (compiled.shared_bytes + 1024), WARPS // warps, PROGRAMS)
    return max(1, min(room))


def estimate(launch: Launch, compiled: Compiled, cycles: Cycles) -> Estimate:
    """Of one launch on a whole device."""
    sizes = bytes_of(launch)
    found = accesses(compiled.ptx, list(compiled.parameters))
    read = {a.argument for a in found if a.space in ("load", "copy")}
    written = {a.argument for a in found if a.space == "store"}
    read_bytes, written_bytes = (sum(sizes.get(str(name), 0) for name in names) for names in (read, written))
    loop = largest_loop(compiled.ptx) if launch.looped else None
    before, within, behind = program(compiled.listing, looped=launch.looped, trips=trips(launch))
    if loop:
        parts = (
            _section(compiled, before, [a for a in found if a.line < loop[0]], sizes),
            _section(compiled, within, [a for a in found if loop[0] <= a.line <= loop[1]], sizes),
            _section(compiled, behind, [a for a in found if a.line > loop[1]], sizes),
        )
    else:
        parts = (_section(compiled, before, found, sizes), [], [])
    programs, iterations = math.prod(launch.grid), _iterations(launch) if loop else 1
    together = min(resident(compiled, launch.num_warps), math.ceil(programs / PROCESSORS))

    def moved(*kinds: str) -> float:
        counts = (1, iterations, 1)
        return programs * launch.num_warps * sum(
            count * one.bytes
            for count, part in zip(counts, parts, strict=True)
            for one in part
            if one.kind in kinds and not one.near
        )  # fmt: skip

    loaded, stored = moved("load", "copy"), moved("store")
    shares = (read_bytes / loaded if loaded else 0.0, written_bytes / stored if stored else 0.0)

    def cycles_of(passes: int) -> float:
        return run([*parts[0], *parts[1] * passes, *parts[2]], launch.num_warps, together, cycles, *shares)

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
    waves = programs / (PROCESSORS * together)
    waves = math.ceil(waves) if waves <= 2 else waves + 0.4  # the last wave is not full, nor are all as slow as one
    return Estimate(spent * waves / CLOCK * 1e6 + LAUNCH_US, together, waves, read_bytes, written_bytes, bounds)
