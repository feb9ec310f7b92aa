"""Reading of compiled device code: SASS listings (`nvdisasm -c`), resource usage (`cuobjdump`), and layouts in TTGIR.

Text in, numbers out; imports nothing of Triton. Formats: CUDA Binary Utilities
(https://docs.nvidia.com/cuda/cuda-binary-utilities/) and the TritonGPU dialect
(https://triton-lang.org/main/dialects/TritonGPUDialect.html).
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

_LABEL = re.compile(r"^\s*\.(L_x_\d+):")
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?:@!?U?P[0-9T]+\s+)?([A-Z][A-Z0-9_]*(?:\.[A-Za-z0-9_]+)*)")
_TARGET = re.compile(r"`\(\.(L_x_\d+)\)")
TENSOR_CORE = ("HGMMA", "HMMA", "DMMA", "IMMA", "QGMMA")


@dataclass(frozen=True)
class Loop:
    """Instructions first … last, the last being a branch back to the first."""

    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first + 1

    def holds(self, other: Loop) -> bool:
        return self != other and self.first <= other.first and other.last <= self.last


@dataclass(frozen=True)
class Listing:
    """One kernel's instructions, up to its last EXIT, and its loops in order of their beginning."""

    names: tuple[str, ...]  # with modifiers: "LDG.E.64"
    loops: tuple[Loop, ...]
    operands: tuple[str, ...] = ()  # of each, as written
    guarded: tuple[Loop, ...] = ()  # what branches forward leap over; no loops, but the same kind of range

    def rare(self, loop: Loop) -> Loop:
        """`loop` with what is done for its sake: the least that a branch leaps over together with it."""
        around = [one for one in self.guarded if one.first <= loop.first and loop.last <= one.last]
        return min(around or [loop], key=len)

    @classmethod
    def parse(cls, text: str) -> Listing:
        names: list[str] = []
        operands: list[str] = []
        targets: list[str | None] = []
        labels: dict[str, int] = {}
        for line in text.splitlines():
            label = _LABEL.match(line)
            if label:
                labels[label[1]] = len(names)
                continue
            found = _INSTRUCTION.search(line)
            if found:
                target = _TARGET.search(line)
                names.append(found[1])
                operands.append(line[found.end() :].split(";")[0].strip())
                targets.append(target[1] if target and found[1].startswith("BRA") else None)
        if "EXIT" not in names:
            raise ValueError("no EXIT in this listing: it is not a kernel's")
        end = len(names) - names[::-1].index("EXIT")
        back = {i: labels[t] for i, t in enumerate(targets[:end]) if t is not None and labels.get(t, end) < i}
        loops = sorted((Loop(first, last) for last, first in back.items()), key=lambda loop: (loop.first, -loop.last))
        ahead = {i: labels[t] for i, t in enumerate(targets[:end]) if t is not None and i + 1 < labels.get(t, 0) <= end}
        guarded = tuple(Loop(first + 1, last - 1) for first, last in ahead.items())
        return cls(tuple(names[:end]), tuple(loops), tuple(operands[:end]), guarded)

    def count(self, *, one_iteration: bool, trips: float = 1.0) -> float:
        """Instructions that one thread issues.

        Args:
            one_iteration: one pass of the longest loop alone (a persistent kernel's tile); loops inside it do not run.
            trips: otherwise, of all of the kernel: how often its outermost loops run; loops inside those do not run.
        """
        scope, runs = Loop(0, len(self.names) - 1), trips
        if one_iteration:
            if not self.loops:
                raise ValueError("there is no loop to count an iteration of")
            scope, runs = max(self.loops, key=len), 0.0
        inner = [loop for loop in self.loops if scope.holds(loop) or (loop == scope and not one_iteration)]
        depth = [0] * len(self.names)
        for loop in inner:
            for i in range(loop.first, loop.last + 1):
                depth[i] += 1
        weight = {0: 1.0, 1: runs}
        return sum(weight.get(depth[i], 0.0) for i in range(scope.first, scope.last + 1))

    def of_kind(self, *kinds: str) -> Counter[str]:
        """How often each of `kinds` ("LDG", "HMMA", …) stands in the listing."""
        return Counter(kind for kind in (name.split(".")[0] for name in self.names) if kind in kinds)


def resources(text: str) -> tuple[int, int]:
    """(registers, spilled bytes) per thread, from `cuobjdump --dump-resource-usage`."""
    found = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
    return found["REG"], found["STACK"] + found["LOCAL"]


_FUNCTION = re.compile(r"tt\.func public @\w+\((.*?)\) attributes", re.S)
_ASSIGNED = re.compile(r"^\s*(%[\w#]+)(?::\d+)? = (\S+) (.*)$")
_LAYOUT = re.compile(r"^(#\w+) = #ttg\.blocked<\{sizePerThread = \[([\d, ]+)\].*order = \[([\d, ]+)\]")


@dataclass(frozen=True)
class Load:
    """A two-dimensional load: the kernel argument it reads, and its layout."""

    argument: str
    order: tuple[int, ...]  # fastest axis first
    per_thread: tuple[int, ...]  # elements of each axis that one thread holds next to each other


def loads(ttgir: str) -> list[Load]:
    """Every 2-D `tt.load` in TTGIR whose pointer comes from a kernel argument through pointer arithmetic."""
    layouts: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    sources: dict[str, str] = {}
    found = []
    function = _FUNCTION.search(ttgir)
    if function:
        sources = {name: name for name in re.findall(r"(%\w+): !tt\.ptr", function[1])}
    for line in ttgir.splitlines():
        layout = _LAYOUT.match(line)
        if layout:
            held, order = (tuple(map(int, layout[n].split(","))) for n in (2, 3))
            layouts[layout[1]] = (order, held)
            continue
        assigned = _ASSIGNED.match(line)
        if not assigned:
            continue
        result, operation, rest = assigned.groups()
        operands = re.findall(r"%\w+", rest.split(" : ")[0])
        source = next((sources[o] for o in operands if o in sources), None)
        if source is None:
            continue
        if operation == "tt.load":
            kind = re.search(r"tensor<\d+x\d+x!tt\.ptr<\w+>, (#\w+)>", rest)
            if kind and kind[1] in layouts:
                found.append(Load(source.lstrip("%"), *layouts[kind[1]]))
        elif "!tt.ptr" in rest:
            sources[result] = source
    return found
