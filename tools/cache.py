"""What the last-level cache of an H100 saves when the stages of the backward pass follow one another: a model.

    python -m tools.cache            # how far off the model is; megabytes from and to memory, stage by stage

Programs take turns, as many at once as fit, each one step of its loop at a time, and touch blocks of 16 channels by 32
frames. The cache holds the blocks touched last; those read for the last time go first; what was written goes to memory
when it is pushed out. Its capacity is the one number that is fitted: to how much of its output a kernel had not written
to memory when it ended, as Nsight Compute counted (`MEASURED`), which the model then gives back within the error that
is printed. Windows lie as in the nominal call, at frame 100 with ratio 1.25.
"""

from __future__ import annotations

import functools
import math
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from .h100 import PROCESSORS
from .specimens import specimens

if TYPE_CHECKING:
    from adaptive_window.kernels.triton.launch import Launch

CHANNELS, FRAMES = 16, 32  # of a block
START, RATIO = 100, 1.25
CAPACITY = 34e6  # bytes: what `fit` finds
TOGETHER = {"recompute_windows": 9, "joint_backward": 1, "window_backward": 1, "resample_dx": 4}  # on one processor


class Seen(NamedTuple):
    """What one kernel of the nominal call wrote to memory while it ran, caches flushed before."""

    kernel: str
    precision: str
    megabytes: float


# dram__bytes_write.sum in benchmarks/results/h100-2026-11-27-evening/ncu.csv. No load was marked as the last one then,
# and two kernels took channels 0 to 15 of all windows first, which decides little for a kernel by itself.
MEASURED = (
    Seen("recompute_windows", "tf32", 17.67),
    Seen("window_backward", "tf32", 29.15),
    Seen("resample_dx", "tf32", 6.69),
    Seen("recompute_windows", "bf16", 1.89),
    Seen("window_backward", "bf16", 7.72),
    Seen("resample_dx", "bf16", 0.05),
)


class Touch(NamedTuple):
    block: tuple[int, ...]  # the tensor, and where in it
    bytes: float
    store: bool = False
    last: bool = False


Step = list[Touch]


@dataclass
class Cache:
    """Blocks, the one touched longest ago first."""

    capacity: float
    kept: OrderedDict[tuple[int, ...], list[Any]] = field(default_factory=OrderedDict)  # block -> [bytes, dirty]
    leaving: OrderedDict[tuple[int, ...], list[Any]] = field(default_factory=OrderedDict)  # those that go first
    held: float = 0.0
    read: float = 0.0  # from memory
    written: float = 0.0  # to memory

    def touch(self, one: Touch) -> None:
        entry = self.kept.pop(one.block, None) or self.leaving.pop(one.block, None)
        if entry is None:
            entry = [one.bytes, False]
            self.held += one.bytes
            self.read += 0.0 if one.store else one.bytes
        entry[1] = entry[1] or one.store
        (self.leaving if one.last else self.kept)[one.block] = entry
        while self.held > self.capacity:
            size, dirty = (self.leaving or self.kept).popitem(last=False)[1]
            self.held -= size
            self.written += size if dirty else 0.0


def turns(programs: Sequence[Callable[[], Iterator[Step]]], together: int) -> Iterator[Step]:
    """The steps of all programs, of which so many run at once, in the order in which they come about."""
    waiting = iter(programs)
    running = deque(program() for program in islice(waiting, together))
    while running:
        one = running.popleft()
        step = next(one, None)
        if step is None:  # it has ended, and the next program takes its place
            running.extend(following() for following in islice(waiting, 1))
        else:
            yield step
            running.append(one)


class Walk:
    """The programs of one launch, and what each of their steps touches."""

    def __init__(self, launch: Launch) -> None:
        self.launch, self.arguments = launch, launch.arguments
        self.C, self.W = self.arguments["C"], self.arguments["W"]
        self.chunks = math.ceil(self.C / CHANNELS)

    def programs(self) -> list[Callable[[], Iterator[Step]]]:
        make = getattr(self, self.launch.name)
        return [functools.partial(make, n) for n in range(self.launch.grid[0])]

    def _rows(self, name: str, owner: int, chunks: range, frames: range, **how: bool) -> Step:
        """Blocks of a tensor [..., C, frames], of the owner-th of its leading axes."""
        tensor: torch.Tensor = self.arguments[name]
        end = tensor.shape[-1]
        size = CHANNELS * FRAMES * tensor.element_size()
        first, behind = max(frames.start, 0) // FRAMES, math.ceil(min(frames.stop, end) / FRAMES)
        return [Touch((id(tensor), owner, c, t), size, **how) for c in chunks for t in range(first, behind)]

    def _clip(self, name: str, pair: int, chunks: range, frames: range) -> Step:
        places = range(int(START + RATIO * frames.start), int(START + RATIO * frames.stop) + 1)
        return self._rows(name, pair // self.arguments["P"], chunks, places)

    def _chunks(self, block_c: int, chunk: int) -> range:
        behind = min(self.C, (chunk + 1) * block_c)
        return range(chunk * block_c // CHANNELS, math.ceil(behind / CHANNELS))

    def recompute_windows(self, n: int) -> Iterator[Step]:
        own = self.arguments["BLOCK_T"] - 2 * self.arguments["HALO"]
        tiles, blocks = math.ceil(self.W / own), math.ceil(self.C / self.arguments["BLOCK_C"])
        pair, tile, chunk = n // blocks // tiles, n // blocks % tiles, n % blocks
        chunks, frames = self._chunks(self.arguments["BLOCK_C"], chunk), range(tile * own, (tile + 1) * own)
        touched = self._clip("source_ptr", pair, chunks, frames)
        touched += self._rows("z_ptr", pair, chunks, frames, store=True)
        if self.arguments["PRECISION"] == "bf16x3":
            touched += self._rows("z_lo_ptr", pair, chunks, frames, store=True)
        yield touched

    def _tiles(self, n: int, loads: Sequence[str], store: str, *, descending: bool) -> Iterator[Step]:
        """A persistent program's."""
        block_t, tiles = self.arguments["BLOCK_T"], self.arguments["tiles"]
        each, everything = math.ceil(self.W / block_t), range(self.chunks)
        halves = self.arguments["PRECISION"] == "bf16x3"
        for tile in range(n, tiles, self.launch.grid[0]):
            place = tiles - 1 - tile if descending else tile
            pair, frames = place // each, range(place % each * block_t, (place % each + 1) * block_t)
            touched: Step = []
            for name in loads:
                touched += self._rows(f"{name}_ptr", pair, everything, frames)
                if halves and f"{name}_lo_ptr" in self.arguments:
                    touched += self._rows(f"{name}_lo_ptr", pair, everything, frames)
            touched += self._rows(f"{store}_ptr", pair, everything, frames, store=True)
            if self.arguments.get("PACK") or (halves and store == "du"):
                touched += self._rows(f"{store}_lo_ptr", pair, everything, frames, store=True)
            yield touched

    def joint_backward(self, n: int) -> Iterator[Step]:
        yield from self._tiles(n, ("z", "grad"), "dz", descending=True)

    def norm_backward(self, n: int) -> Iterator[Step]:
        yield from self._tiles(n, ("z", "grad"), "du", descending=True)

    def product_backward(self, n: int) -> Iterator[Step]:
        yield from self._tiles(n, ("z", "du"), "dz", descending=False)

    def window_backward(self, n: int) -> Iterator[Step]:
        block_c = self.arguments["BLOCK_C"]
        blocks, own = math.ceil(self.C / block_c), self.arguments["BLOCK_T"] - 2 * self.arguments["HALO"]
        pair, chunks = n // blocks, self._chunks(block_c, n % blocks)
        for t in range(0, self.W, own):
            frames = range(t, t + own)
            yield [
                *self._clip("source_ptr", pair, chunks, frames),
                *self._rows("grad_ptr", pair, chunks, frames, last=True),
                *self._rows("dz_ptr", pair, chunks, frames, last=True),
                *(self._rows("dz_lo_ptr", pair, chunks, frames, last=True) if self.arguments["PACKED"] else []),
                *self._rows("dy_ptr", pair, chunks, frames, store=True),
            ]

    def resample_dx(self, n: int) -> Iterator[Step]:
        a = self.arguments
        n = self.launch.grid[0] - 1 - n
        tiles, blocks = math.ceil(a["T"] / a["BLOCK_X"]), math.ceil(self.C / a["BLOCK_C"])
        b, chunks = n // (tiles * blocks), self._chunks(a["BLOCK_C"], n // tiles % blocks)
        first = n % tiles * a["BLOCK_X"]
        frames = range(int((first - 1 - START) / RATIO), math.ceil((first + a["BLOCK_X"] - START) / RATIO) + 1)
        for p in range(a["P"]):
            yield self._rows("grad_ptr", b * a["P"] + p, chunks, frames, last=True)
        yield self._rows("dx_ptr", b, chunks, range(first, first + a["BLOCK_X"]), store=True)


class Moved(NamedTuple):
    """Megabytes of one launch."""

    kernel: str
    read: float  # from memory
    written: float  # to memory


def walks(launch: Launch) -> bool:
    return hasattr(Walk, launch.name)


def follow(
    launches: Sequence[Launch], together: Sequence[int], capacity: float = CAPACITY, *, marked: bool = True
) -> list[Moved]:
    """One launch after the other, from an empty cache; together: how many programs of each run at once.

    marked: what is read for the last time goes first.
    """
    cache, found = Cache(capacity), []
    for launch, running in zip(launches, together, strict=True):
        cache.read = cache.written = 0.0
        if walks(launch):
            for step in turns(Walk(launch).programs(), running):
                for one in step:
                    cache.touch(one if marked else one._replace(last=False))
        found.append(Moved(launch.name, cache.read / 1e6, cache.written / 1e6))
    return found


def at_once(launch: Launch) -> int:
    """How many of its programs run at once on an H100, as `TOGETHER` has it."""
    return TOGETHER.get(launch.name, 1) * PROCESSORS


@functools.cache
def backward(precision: str) -> list[Launch]:
    """The launches of the nominal backward pass, in their order."""
    dtype = "bfloat16" if precision == "bf16" else "float32"
    found = [one for one in specimens(90) if one.op == "windowed_tonality backward" and one.dtype == dtype]
    return [one.launch for one in found if one.precision == precision]


def modelled(capacity: float) -> list[float]:
    """Megabytes that the kernels of `MEASURED` write to memory, each by itself."""
    found = []
    for seen in MEASURED:
        (launch,) = (one for one in backward(seen.precision) if one.name == seen.kernel)
        (moved,) = follow([launch], [at_once(launch)], capacity, marked=False)
        found.append(moved.written)
    return found


def fit(megabytes: Sequence[int] = range(26, 44, 2)) -> float:
    """The capacity, in bytes, at which they write as much as they were seen to, in least squares."""

    def gap(capacity: int) -> float:
        pairs = zip(MEASURED, modelled(capacity * 1e6), strict=True)
        return sum((seen.megabytes - written) ** 2 for seen, written in pairs)

    return min(megabytes, key=gap) * 1e6


def main() -> int:
    print(f"a cache of {fit() / 1e6:.0f} MB; written to memory while a kernel runs, MB, measured and modelled:")
    for seen, written in zip(MEASURED, modelled(CAPACITY), strict=True):
        print(f"    {seen.kernel:20}{seen.precision:8}{seen.megabytes:7.1f}{written:7.1f}")
    for precision in ("tf32", "bf16x3", "bf16"):
        launches = backward(precision)
        row = follow(launches, [at_once(one) for one in launches])
        alone = [follow([one], [at_once(one)])[0] for one in launches]
        print(f"{precision}: MB read from memory, alone and in a row; written in a row")
        for by_itself, moved in zip(alone, row, strict=True):
            if by_itself.read:
                print(f"    {moved.kernel:20}{by_itself.read:7.1f}{moved.read:7.1f}{moved.written:7.1f}")
        print(f"    {'':20}{sum(m.read for m in alone):7.1f}{sum(m.read for m in row):7.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
