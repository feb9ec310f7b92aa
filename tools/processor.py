"""One streaming multiprocessor, run on a compiled kernel's instructions: how many cycles they take, and without a GPU.

Instructions of every resident warp are issued in order, each as soon as its operands are there; they share four issue
ports, the load-store unit (one wavefront a cycle, shuffles included), the tensor cores, the link to L2 and this
processor's share of the memory bandwidth. Barriers hold a program's warps together. What a warp waits for is thus what
it waits for on the device: that, not instructions, decides the time of kernels with eight warps on a processor.

Left out: control flow (branches fall through, loops run as often as they are told), caches (each byte of the arguments
comes from memory once, evenly spread over the loads), the instruction cache, and differences between warps.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from .sass import Listing, Loop

SCHEDULERS = 4
_REGISTER = re.compile(r"(?<![\w.`(])(!?-?\|?~?)(U?R|U?P)(\d+)(\.64)?")
_WIDTH = {"64": 2, "128": 4}


@dataclass(frozen=True)
class Cycles:
    """What things take, in cycles of the processor's clock; bytes are per cycle and processor.

    `memory` and `memory_bytes` are fitted to measurements (`calibration`); the rest are the datasheet's, or as
    microbenchmarks of this architecture have them.
    """

    memory: float = 445.0  # from a load to its operand, all of the way to DRAM or L2 and back
    near: float = 200.0  # of what a cache holds
    alu: float = 5.0
    shared: float = 26.0  # of a load from shared memory or a shuffle, behind what queues before it
    special: float = 14.0  # reciprocal roots, conversions, float64
    barrier: float = 24.0
    tensor: float = 36.0  # of a product, behind those before it
    memory_bytes: float = 10.4  # 2.4 TB/s shared by 132 processors at 1.755 GHz
    l2_bytes: float = 40.0
    queue: float = 48.0  # wavefronts that may wait before issue stops


@dataclass
class Instruction:
    """One of a listing, decoded: where it goes, and what it reads and writes."""

    kind: str  # alu, special, shared, load, copy, store, commit, wait, hgmma, hmma, hwait, bar, skip
    reads: tuple[int, ...] = ()
    writes: tuple[int, ...] = ()
    cost: float = 0.0  # wavefronts, or cycles of a tensor core
    bytes: float = 0.0  # of a warp
    pending: int = 0  # of a wait: groups that may be on their way
    near: bool = False  # a load that finds its bytes in a cache


def _number(kind: str, index: int) -> int:
    return index + {"R": 0, "UR": 256, "P": 384, "UP": 400}[kind]


def _registers(text: str, width: int) -> tuple[int, ...]:
    found: list[int] = []
    for _, kind, index, wide in _REGISTER.findall(text):
        count = 2 if wide else width
        found += [_number(kind, int(index) + n) for n in range(count if kind in ("R", "UR") else 1)]
    return tuple(found)


def _tensor_cycles(name: str) -> float:
    """Of one product: sm_90's tensor cores do 2048 TF32 operations a cycle and processor, twice that with 16 bits."""
    shape = re.search(r"\.(\d+)x(\d+)x(\d+)", name)
    if shape:
        return int(shape[2]) / 2.0  # 64 x n x 32 bytes, by four warps on their tensor cores
    return 16.0 if "DMMA" in name else 8.0


def decode(name: str, operands: str) -> Instruction:
    """One instruction of a listing; `operands` is what stands behind its name."""
    base = name.split(".")[0]
    width = next((_WIDTH[part] for part in name.split(".")[1:] if part in _WIDTH), 1)
    parts = operands.split(",")
    first, rest = parts[0], ",".join(parts[1:])
    if base in ("LDG", "LD"):
        return Instruction(
            "load", _registers(rest, 1), _registers(first, width), cost=float(width), bytes=128.0 * width
        )
    if base == "LDGSTS":
        lanes = width if width > 1 else 1
        return Instruction("copy", _registers(operands, 1), (), cost=2.0 * lanes, bytes=128.0 * lanes)
    if base in ("STG", "ST"):
        return Instruction("store", _registers(first, 1) + _registers(rest, width), (), float(width), 128.0 * width)
    if base in ("LDS", "LDSM", "LDL"):
        matrices = 4 if name.endswith(".4") else 2 if name.endswith(".2") else 1
        count = matrices if base == "LDSM" else width
        return Instruction("shared", _registers(rest, 1), _registers(first, count), cost=float(count))
    if base in ("STS", "STSM", "STL"):
        matrices = 4 if name.endswith(".4") else 2 if name.endswith(".2") else 1
        count = matrices if base == "STSM" else width
        return Instruction("shared", _registers(first, 1) + _registers(rest, count), (), cost=float(count))
    if base == "SHFL":
        return Instruction(
            "shared", _registers(rest.split(",", 1)[-1], 1), _registers(rest.split(",", 1)[0], 1), cost=1.0
        )
    if base == "LDGDEPBAR":
        return Instruction("commit")
    if base == "DEPBAR":
        pending = re.search(r"0x([0-9a-f]+)", operands)
        return Instruction("wait", pending=int(pending[1], 16) if pending else 0)
    if base == "HGMMA":
        accumulator = re.match(r"\s*R(\d+)", operands)
        n = int((re.search(r"\.\d+x(\d+)x", name) or [0, "64"])[1])
        own = tuple(range(int(accumulator[1]), int(accumulator[1]) + n // 2)) if accumulator else ()
        return Instruction("hgmma", _registers(rest, 1), own, cost=_tensor_cycles(name))
    if base in ("HMMA", "DMMA", "IMMA"):
        return Instruction("hmma", _registers(rest, 2), _registers(first, 4), cost=_tensor_cycles(name))
    if base == "WARPGROUP" and "DEPBAR" in name:
        return Instruction("hwait")
    if base == "BAR":
        return Instruction("bar")
    if base in ("NOP", "BRA", "EXIT", "WARPGROUP", "BSSY", "BSYNC", "MEMBAR", "ERRBAR", "FENCE", "CCTL", "WARPSYNC"):
        return Instruction("skip")
    kind = (
        "special" if base in ("MUFU", "F2F", "F2I", "I2F", "FRND", "DADD", "DMUL", "DFMA", "DSETP", "R2UR") else "alu"
    )
    wide = 2 if base.startswith("D") or "WIDE" in name or ".64" in name else width
    if "SETP" in base or base in ("PLOP3", "UPLOP3"):
        targets = _registers(",".join(parts[:2]), 1)
        return Instruction(kind, _registers(",".join(parts[2:]), wide), targets)
    return Instruction(kind, _registers(rest, wide if base.startswith("D") else 1), _registers(first, wide))


def program(listing: Listing, *, looped: bool, trips: int) -> tuple[list[int], list[int], list[int]]:
    """Indices of the instructions before the loop that takes the time, in one pass of it, and behind it.

    looped: a persistent kernel's longest loop; loops inside it do not run (they are for rare cases). Otherwise there is
    no such loop, and the outermost ones run `trips` times.
    """
    names = listing.names
    whole = Loop(0, len(names) - 1)
    if looped and listing.loops:
        main = max(listing.loops, key=len)
        rare = [listing.rare(loop) for loop in listing.loops if loop != main]
        keep = [not any(loop.first <= i <= loop.last for loop in rare) for i in range(len(names))]
        before = [i for i in range(main.first) if keep[i]]
        within = [i for i in range(main.first, main.last + 1) if keep[i]]
        behind = [i for i in range(main.last + 1, whole.last + 1) if keep[i]]
        return before, within, behind
    outer = [loop for loop in listing.loops if not any(other.holds(loop) for other in listing.loops)]
    order: list[int] = []
    i = 0
    while i < len(names):
        loop = next((loop for loop in outer if loop.first == i), None)
        if loop is None:
            order.append(i)
            i += 1
            continue
        inner = [listing.rare(other) for other in listing.loops if loop.holds(other)]
        once = [n for n in range(loop.first, loop.last + 1) if not any(o.first <= n <= o.last for o in inner)]
        order += once * trips
        i = loop.last + 1
    return order, [], []


@dataclass
class _Warp:
    program: int
    scheduler: int
    ready: dict[int, float] = field(default_factory=dict)
    position: int = 0
    groups: list[float] = field(default_factory=list)  # when each committed group of asynchronous copies is there
    copying: float = 0.0
    tensor: float = 0.0
    time: float = 0.0


def run(
    instructions: Sequence[Instruction],
    warps: int,
    together: int,
    programs: int,
    cycles: Cycles,
    read_share: float,
    write_share: float,
) -> float:
    """Cycles until `programs` programs of `warps` warps, so many together, have finished all instructions.

    read_share, write_share: bytes of memory per byte loaded and stored: the rest comes from caches.
    """
    everyone = [_Warp(n // warps, n % SCHEDULERS) for n in range(warps * programs)]
    port = [0.0] * SCHEDULERS
    tensor = [0.0] * SCHEDULERS
    lsu = memory = l2 = 0.0
    arrived: dict[tuple[int, int], list[int]] = {}
    running, begun = [warps] * programs, min(together, programs)
    heap = [(0.0, n) for n in range(warps * begun)]
    end, count = 0.0, len(instructions)
    while heap:
        time, n = heapq.heappop(heap)
        warp = everyone[n]
        one = instructions[warp.position]
        kind, ready = one.kind, warp.ready
        begin = max(time, port[warp.scheduler])
        for register in one.reads:
            begin = max(begin, ready.get(register, 0.0))
        if kind != "hgmma":  # its accumulator is its own
            for register in one.writes:
                begin = max(begin, ready.get(register, 0.0))
        if kind in ("shared", "load", "copy", "store"):
            begin = max(begin, lsu - cycles.queue)
        elif kind == "wait":
            begin = max([begin, *warp.groups[: len(warp.groups) - one.pending]])
        elif kind == "hwait":
            begin = max(begin, warp.tensor)
        if begin > time:  # others may issue before that
            heapq.heappush(heap, (begin, n))
            continue
        if kind != "skip":
            port[warp.scheduler] = begin + 1.0
        done = begin + cycles.alu
        if kind == "special":
            done = begin + cycles.special
        elif kind == "shared":
            lsu = max(lsu, begin) + one.cost
            done = lsu + cycles.shared
        elif kind in ("load", "copy"):
            lsu = max(lsu, begin) + one.cost
            l2 = max(l2, lsu) + one.bytes / cycles.l2_bytes
            if not one.near:
                memory = max(memory, lsu) + one.bytes * read_share / cycles.memory_bytes
            done = max(l2, memory) + (cycles.near if one.near else cycles.memory)
            warp.copying = max(warp.copying, done)
        elif kind == "store":
            lsu = max(lsu, begin) + one.cost
            memory = max(memory, lsu) + one.bytes * write_share / cycles.memory_bytes
            end = max(end, memory)
        elif kind == "commit":
            warp.groups.append(warp.copying)
        elif kind in ("hgmma", "hmma"):
            tensor[warp.scheduler] = max(tensor[warp.scheduler], begin) + one.cost
            done = tensor[warp.scheduler] + cycles.tensor
            warp.tensor = done
        for register in one.writes:
            ready[register] = done
        warp.position += 1
        after = begin + (0.0 if kind == "skip" else 1.0)
        end = max(end, after)
        if warp.position == count:
            running[warp.program] -= 1
            if running[warp.program] == 0 and begun < programs:  # the next program takes its place
                for other in range(warps * begun, warps * (begun + 1)):
                    heapq.heappush(heap, (after, other))
                begun += 1
        elif kind == "bar":
            waiting = arrived.setdefault((warp.program, warp.position), [])
            waiting.append(n)
            if len(waiting) == warps:
                for other in waiting:
                    heapq.heappush(heap, (begin + cycles.barrier, other))
        else:
            heapq.heappush(heap, (after, n))
    return end
