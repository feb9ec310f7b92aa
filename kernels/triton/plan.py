"""A call planned once: which memory it takes, which kernels start in which order, with which arguments.

A plan is made by running the stages on meta tensors in the place of the call's own, and looking where each argument of
each step lies: in an input, in a result, or in scratch memory. To run it is then to allocate the results and one piece
of scratch, and to start compiled kernels with addresses; nothing is decided any more.

Interpreted, kernels take tensors, and scratch is one tensor each, so that the sanitizer sees their bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from .launch import Host, Launch, Step, planning, recorded

ALIGNMENT = 256  # bytes, of scratch: as PyTorch's allocator aligns
Build = Callable[..., Sequence[Tensor | None]]


@dataclass(frozen=True)
class _Place:
    """Where an argument lies: so many bytes into a base, which is an input, a result or a piece of scratch."""

    base: int
    offset: int  # bytes
    like: Tensor  # the meta tensor: shape, strides, dtype
    whole: bool  # it is the base itself


@dataclass(frozen=True)
class _Pointer:
    """Stands for a tensor argument where Triton compiles: its type, and what divides its address."""

    dtype: torch.dtype
    address: int

    def data_ptr(self) -> int:
        return self.address


class Plan:
    """See the module's docstring.

    Args:
        build: the stages; takes as many tensors as `inputs`, gives the results.
        inputs: contiguous or not, as calls will bring them; only sizes, strides and dtypes are read.
    """

    def __init__(self, build: Build, inputs: Sequence[Tensor]) -> None:
        twins = [torch.empty_strided(v.shape, v.stride(), dtype=v.dtype, device="meta") for v in inputs]
        with planning() as steps:
            results = build(*twins)
        self.steps: list[Step] = steps
        self.launches = [step for step in steps if isinstance(step, Launch)]
        self.device = inputs[0].device
        self._inputs = len(twins)
        self.results = [None if v is None else (v.shape, v.dtype) for v in results]
        self._like = [self._twin_of(v, inputs) for v in results]
        made = [v for v in results if v is not None]
        self._bases: list[Tensor] = [*twins, *made]  # then scratch, in the order of its use
        self._first_scratch = len(self._bases)
        self._number = {self._storage(v): n for n, v in enumerate(self._bases)}
        self._places: dict[int, _Place] = {}  # by id of the meta tensor, which `steps` holds
        for step in steps:
            for value in step.tensors if isinstance(step, Host) else step.arguments.values():
                if isinstance(value, Tensor):
                    self._places[id(value)] = self._place(value)
        self._offsets, self.scratch_bytes = self._lay_out()

    @staticmethod
    def _storage(value: Tensor) -> int:
        return value.untyped_storage()._cdata

    @staticmethod
    def _twin_of(result: Tensor | None, inputs: Sequence[Tensor]) -> int | None:
        """An input that `torch.empty_like` takes for this result: twice as fast as naming sizes."""
        for n, given in enumerate(inputs):
            if (
                result is not None
                and given.is_contiguous()
                and (given.shape, given.dtype) == (result.shape, result.dtype)
            ):
                return n
        return None

    def _place(self, value: Tensor) -> _Place:
        storage = self._storage(value)
        if storage not in self._number:
            self._number[storage] = len(self._bases)
            size = value.untyped_storage().nbytes() // value.element_size()
            self._bases.append(value if value.numel() == size else value.as_strided((size,), (1,), 0))
        number = self._number[storage]
        base = self._bases[number]
        whole = (value.shape, value.stride(), value.dtype) == (base.shape, base.stride(), base.dtype)
        offset = int(value.storage_offset()) * value.element_size()
        return _Place(number, offset, value, bool(whole) and offset == 0)

    def _lay_out(self) -> tuple[list[int], int]:
        """Where each piece of scratch begins, and how many bytes all take."""
        offsets, end = [], 0
        for base in self._bases[self._first_scratch :]:
            offsets.append(end)
            end += -(-base.untyped_storage().nbytes() // ALIGNMENT) * ALIGNMENT
        return offsets, end

    def allocate(self, inputs: Sequence[Tensor]) -> list[Tensor | None]:
        """The results, without values."""
        made: list[Tensor | None] = []
        for result, like in zip(self.results, self._like):  # noqa: B905 - equally long
            if result is None:
                made.append(None)
            elif like is not None:
                made.append(torch.empty_like(inputs[like]))
            else:
                made.append(torch.empty(result[0], dtype=result[1], device=self.device))
        return made

    # ------------------------------------------------------------ with tensors

    def _scratch(self, memory: Tensor | None = None) -> list[Tensor]:
        """Each piece of scratch: in `memory`, or in memory of its own."""
        bases = self._bases[self._first_scratch :]
        if memory is None:
            return [torch.empty(base.shape, dtype=base.dtype, device=self.device) for base in bases]
        parts = [(memory[at:], base) for at, base in zip(self._offsets, bases, strict=True)]
        return [part[: base.numel() * base.element_size()].view(base.dtype).view(base.shape) for part, base in parts]

    def _tensor(self, place: _Place, bases: Sequence[Tensor]) -> Tensor:
        base, like = bases[place.base], place.like
        if place.whole:
            return base
        if base.dtype != like.dtype:
            base = base.view(like.dtype)
        first = base.storage_offset() + place.offset // like.element_size()
        return base.as_strided(like.shape, like.stride(), first)

    def interpret(self, inputs: Sequence[Tensor]) -> list[Tensor | None]:
        """Run on tensors, one kernel call after the other."""
        made = self.allocate(inputs)
        bases = [*inputs, *(v for v in made if v is not None), *self._scratch()]
        recorded(self.launches)
        for step in self.steps:
            self._run(step, bases)
        return made

    def _run(self, step: Step, bases: Sequence[Tensor]) -> None:
        def found(value: Any) -> Any:
            return self._tensor(self._places[id(value)], bases) if isinstance(value, Tensor) else value

        if isinstance(step, Host):
            step.function(*map(found, step.tensors))
        else:
            arguments = {name: found(value) for name, value in step.arguments.items()}
            step.kernel[step.grid](**arguments, num_warps=step.num_warps, num_stages=step.num_stages)


Start = Callable[..., object]  # takes a kernel's arguments in their order, and `stream`


def compiled(step: Launch, arguments: Sequence[Any]) -> Start:
    """What starts the kernel: compiled for these arguments, of which pointers stand for tensors, on this device."""
    named = dict(zip(step.kernel.arg_names, arguments, strict=True))
    kernel = step.kernel.run(grid=step.grid, warmup=True, num_warps=step.num_warps, num_stages=step.num_stages, **named)
    start: Start = kernel[(*step.grid, *(1,) * (3 - len(step.grid)))]
    return start


def stream_of(device: torch.device) -> int:
    """PyTorch's current stream."""
    from triton.runtime.driver import driver

    stream: int = driver.active.get_current_stream(device.index)
    return stream


class Bound:
    """A plan whose kernels are compiled, for inputs whose addresses are aligned as they are here."""

    def __init__(self, plan: Plan, addresses: Sequence[int]) -> None:
        self.plan = plan
        self._moves: list[tuple[int, int]] = []  # a base and an offset: the pointers of all steps, each once
        self._constants: list[Any] = []
        numbers: dict[tuple[int, int], int] = {}
        chosen = []
        for step in plan.launches:
            for name in step.kernel.arg_names:
                value = step.arguments[name]
                if isinstance(value, Tensor):
                    place = plan._places[id(value)]
                    numbers.setdefault((place.base, place.offset), len(numbers))
        self._moves = list(numbers)
        for step in plan.launches:
            indices, arguments = [], []
            for name in step.kernel.arg_names:
                value = step.arguments[name]
                if isinstance(value, Tensor):
                    place = plan._places[id(value)]
                    indices.append(numbers[place.base, place.offset])
                    residue = addresses[place.base] % 16 if place.base < len(addresses) else 0
                    arguments.append(_Pointer(value.dtype, (residue + place.offset) % 16))
                else:
                    indices.append(len(self._moves) + len(self._constants))
                    self._constants.append(value)
                    arguments.append(value)
            chosen.append((compiled(step, arguments), itemgetter(*indices)))
        started = iter(chosen)
        self._steps: list[Any] = [next(started) if isinstance(step, Launch) else step for step in plan.steps]

    def __call__(self, inputs: Sequence[Tensor], addresses: Sequence[int]) -> list[Tensor | None]:
        plan = self.plan
        made = plan.allocate(inputs)
        bases = [*addresses, *[v.data_ptr() for v in made if v is not None]]
        memory = None
        if plan.scratch_bytes:
            memory = torch.empty(plan.scratch_bytes, dtype=torch.uint8, device=plan.device)
            first = memory.data_ptr()
            bases += [first + offset for offset in plan._offsets]
        pool = [bases[base] + offset for base, offset in self._moves]
        pool += self._constants
        stream = stream_of(plan.device)
        tensors: list[Tensor] | None = None
        for step in self._steps:
            if step.__class__ is tuple:
                start, pick = step
                start(*pick(pool), stream=stream)
            else:
                if tensors is None:
                    tensors = [*inputs, *(v for v in made if v is not None), *plan._scratch(memory)]
                plan._run(step, tensors)
        return made
