"""memcheck, racecheck and initcheck for Triton's interpreter: what compute-sanitizer finds on a GPU, without one.

    with Sanitizer() as sanitizer:
        ...                      # launch kernels on CPU tensors, TRITON_INTERPRET=1
    sanitizer.accesses           # memory operations that were checked

Every tensor argument of a launch gets an address range of its own, 2⁴⁴ bytes apart, so that a pointer says which
argument it was derived from, however far it strayed. While the context is open each kernel raises

    OutOfBounds      an access outside its argument's view: exact to the element, holes of a strided view included
    Race             programs of one launch that touch one element, one of them storing; a program that loads or
                     overwrites what it stored itself, with no `tl.debug_barrier()` between (its threads are not in
                     step); one store operation with two values for one element; any atomic, unless allowed
    Uninitialised    a load of an element that came from torch.empty (and its kin) and that nothing has written since
    BadNumber        32-bit integer arithmetic that wraps around, or a conversion to an integer of NaN or of a number
                     out of its range: there the interpreter and a GPU give different results

with kernel, line, argument, element and program in the message. Values and results are otherwise untouched.

Meta tensors have no memory: loads from them give `contents[argument name]` (0 by default), stores are checked and
dropped. So a launch on tensors of 2³¹ elements and more is checked without allocating them; `programs` then bounds how
many programs run: the first, the last and some between.

It replaces parts of `triton.runtime.interpreter` while it is open, and is written for Triton 3.6 and 3.8, where those
parts are the same: `_interpreter` (load, store, atomic_rmw, atomic_cas), `_implicit_cvt`, `GridExecutor.__call__`, and
the builder's integer arithmetic, conversions and barrier. Method after NVIDIA's compute-sanitizer manual
(https://docs.nvidia.com/compute-sanitizer/ComputeSanitizer/index.html).
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from sanitizer_memory import Argument, FreshMemory, RangeOfArguments
from triton.runtime import interpreter

LOAD, STORE, ATOMIC = 0, 1, 2
_NOT_DEVICE_CODE = (
    str(Path(triton.__file__).parent),
    str(Path(__file__).parent / "sanitizer"),
    str(Path(np.__file__).parent),
)


class Report(AssertionError):
    """What the sanitizer found."""


class OutOfBounds(Report): ...


class Race(Report): ...


class Uninitialised(Report): ...


class BadNumber(Report): ...


@dataclass
class _Operation:
    """One load, store or atomic of one program."""

    kind: int
    program: int
    epoch: int  # barriers that the program has passed
    line: int
    elements: NDArray[np.int64]


@dataclass
class _Launch:
    kernel: str
    ranges: RangeOfArguments = field(default_factory=RangeOfArguments)
    log: dict[tuple[int, int], list[_Operation]] = field(default_factory=dict)  # by storage
    grid: tuple[int, int, int] = (1, 1, 1)
    program: int = 0
    epoch: int = 0

    def where(self, line: int) -> str:
        return f"{self.kernel}, line {line}"

    def place(self, program: int) -> tuple[int, int, int]:
        _, y, z = self.grid
        return program // (y * z), program // z % y, program % z


def _kernel_line() -> int:
    """The line of device code that is running: the innermost frame that is neither Triton's, NumPy's nor ours."""
    frame = sys._getframe(2)
    while frame.f_code.co_filename.startswith(_NOT_DEVICE_CODE) and frame.f_back is not None:
        frame = frame.f_back
    return frame.f_lineno


_ABSENT = object()


def _untyped_tuple(self: Any, args: Any, type: Any = None) -> None:
    self.values = list(args)
    if type is not None:
        self.type = type if isinstance(type, tl.core.tuple_type) else tl.core.tuple_type(type)


def _unnamed_block_type(self: Any, element_ty: Any, shape: Any) -> None:
    self.element_ty = element_ty
    self.shape = tl.core.tuple(tl.core._unwrap_shape(shape))
    self.numel = tl.core.validate_block_shape(self.shape)


def _type_of_tuple(self: Any) -> Any:
    if "_type" not in vars(self):
        self.type = tl.core._type_for_tuple_values(self.values)
    return vars(self)["_type"]


def _set_type_of_tuple(self: Any, type: Any) -> None:
    vars(self)["_type"] = type


class Sanitizer:
    """See the module's docstring.

    Args:
        allow_atomics: whether atomics may be used at all (their order, and so a float sum, is not fixed).
        contents: what loads from meta tensors give, by argument name.
        programs: at most this many programs of a launch run; None runs them all.
        watch: is told of every load and store: kernel, program, argument, whether it stores, elements of the storage.
    """

    def __init__(
        self,
        *,
        allow_atomics: bool = False,
        contents: Mapping[str, float] | None = None,
        programs: int | None = None,
        watch: Callable[[str, int, str, bool, NDArray[np.int64]], None] | None = None,
    ) -> None:
        self.allow_atomics = allow_atomics
        self.contents = dict(contents or {})
        self.programs = programs
        self.watch = watch
        self.accesses = 0
        self.launches: dict[str, int] = {}
        self._fresh = FreshMemory()
        self._launch: _Launch | None = None
        self._patched: dict[int, Any] = {}  # by a module's globals: what undoes the patching
        self._undo: list[tuple[Any, str, Any]] = []

    # ------------------------------------------------------------------ hooks

    def __enter__(self) -> Sanitizer:
        builder = interpreter.InterpreterBuilder
        self._memory = interpreter._interpreter  # the C++ functions that really load and store
        self._replace(interpreter, "_interpreter", self)
        self._convert = interpreter._implicit_cvt
        self._replace(interpreter, "_implicit_cvt", self._argument)
        sanitizer = self

        def call(executor: Any, *args: Any, **kwargs: Any) -> None:
            sanitizer._run(executor, args, kwargs)

        self._replace(interpreter.GridExecutor, "__call__", call)
        self._replace(builder, "create_barrier", lambda _: self._barrier())
        for name, operation in (("create_add", np.add), ("create_sub", np.subtract), ("create_mul", np.multiply)):
            self._replace(builder, name, self._checked_integers(getattr(builder, name), operation))
        for name in ("create_fp_to_si", "create_fp_to_ui"):
            self._replace(builder, name, self._checked_conversion(getattr(builder, name)))
        self._undo += self._fresh.watch_allocations()
        # Speed, half of the time: Triton looks through its whole language at every call of a device function, though
        # the launch has replaced all in it; it checks for overflow, for an assertion that is switched off; and it works
        # out the type of every shape and the name of every type, which nobody asks for.
        self._patch_language = interpreter._patch_lang
        self._replace(interpreter, "_patch_lang", self._patch_once)
        quick = replace(interpreter.interpreter_builder.options, sanitize_overflow=False)
        self._replace(interpreter.interpreter_builder, "options", quick)
        self._replace(tl.core.tuple, "__init__", _untyped_tuple)
        self._replace(tl.core.tuple, "type", property(_type_of_tuple, _set_type_of_tuple))
        self._replace(tl.core.block_type, "__init__", _unnamed_block_type)
        self._replace(tl.core.block_type, "name", property(lambda self: f"<{self.shape}, {self.element_ty}>"))
        return self

    def __exit__(self, *_: object) -> None:
        while self._undo:
            owner, name, value = self._undo.pop()
            if value is _ABSENT:
                delattr(owner, name)
            else:
                setattr(owner, name, value)

    def _replace(self, owner: Any, name: str, value: Any) -> None:
        self._undo.append((owner, name, getattr(owner, name, _ABSENT)))
        setattr(owner, name, value)

    def __getattr__(self, name: str) -> Any:  # stands in for `interpreter._interpreter`
        return getattr(self.__dict__["_memory"], name)

    @staticmethod
    def _checked_integers(original: Callable[..., Any], operation: Callable[..., Any]) -> Callable[..., Any]:
        def checked(builder: Any, left: Any, right: Any, *rest: Any) -> Any:
            if left.data.dtype == np.int32 and right.data.dtype == np.int32:
                wide = operation(left.data.astype(np.int64), right.data.astype(np.int64))
                if wide.size and (wide.max() > 2**31 - 1 or wide.min() < -(2**31)):
                    raise BadNumber(f"line {_kernel_line()}: {operation.__name__} of 32-bit integers wraps around")
            return original(builder, left, right, *rest)

        return checked

    @staticmethod
    def _checked_conversion(original: Callable[..., Any]) -> Callable[..., Any]:
        def checked(builder: Any, source: Any, target: Any, *rest: Any) -> Any:
            limits = np.iinfo(interpreter._get_np_dtype(target.scalar))
            values = np.trunc(source.data.astype(np.float64))
            if not bool(((values >= float(limits.min)) & (values < float(limits.max) + 1)).all()):
                raise BadNumber(f"line {_kernel_line()}: a float that is NaN or out of range becomes {target.scalar}")
            return original(builder, source, target, *rest)

        return checked

    # ----------------------------------------------------------------- launch

    def _run(self, executor: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """`GridExecutor.__call__` for CPU and meta tensors, on the programs that were asked for."""
        function = executor.fn
        names = inspect.getfullargspec(function).args
        launch = self._launch = _Launch(function.__name__)
        self._patched = {}
        self._patch_once(function)
        try:
            bound = inspect.getcallargs(function, *args, **{k: v for k, v in kwargs.items() if k in names})
            for name in names:
                if name not in executor.constexprs:
                    self._name = name
                    bound[name] = interpreter._implicit_cvt(bound[name])
            grid = executor.grid(bound) if callable(executor.grid) else executor.grid
            launch.grid = (*grid, *(1,) * (3 - len(grid)))
            interpreter.interpreter_builder.set_grid_dim(*launch.grid)
            for program in self._chosen(int(np.prod(launch.grid))):
                launch.program, launch.epoch = program, 0
                interpreter.interpreter_builder.set_grid_idx(*launch.place(program))
                function(**bound)
        except Report as report:
            raise type(report)(f"{launch.kernel}: {report}") from None
        except interpreter.InterpreterError as error:
            self._raise_report_within(error)
        finally:
            for scope in reversed(self._patched.values()):
                scope.restore()
            self._launch = None
        for operations in launch.log.values():
            self._check_races(launch, operations)
        self.launches[launch.kernel] = self.launches.get(launch.kernel, 0) + 1

    def _patch_once(self, function: Any) -> None:
        """Triton's language for the interpreter, once per launch and module of device code."""
        if id(function.__globals__) not in self._patched:
            self._patched[id(function.__globals__)] = self._patch_language(function)

    def _raise_report_within(self, error: BaseException) -> NoReturn:
        """Device functions that call device functions wrap what is raised in them."""
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, Report):
                assert self._launch is not None
                raise type(cause)(f"{self._launch.kernel}: {cause}") from None
            cause = cause.__cause__
        raise error

    def _chosen(self, count: int) -> Iterator[int]:
        if self.programs is None or count <= self.programs:
            return iter(range(count))
        return iter(np.unique(np.linspace(0, count - 1, self.programs).astype(np.int64)).tolist())

    def _argument(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return self._convert(value)
        assert self._launch is not None
        kind = tl.str_to_ty(triton.runtime.jit.mangle_type(value), None)
        base = self._launch.ranges.add(self._name, value)
        return tl.tensor(interpreter.TensorHandle(np.array([base], dtype=np.uint64), kind), kind)

    def _barrier(self) -> None:
        if self._launch is not None:
            self._launch.epoch += 1

    # ----------------------------------------------------------------- memory

    def _touch(
        self, kind: int, pointers: Any, mask: Any
    ) -> tuple[NDArray[np.uint64], Argument | None, NDArray[np.int64], NDArray[np.bool_]]:
        """Real addresses (0 where masked out), the argument, its elements in the storage, and the mask."""
        launch = self._launch
        assert launch is not None, "a kernel runs outside a launch"
        self.accesses += 1
        pointers = np.asarray(pointers)
        mask = np.broadcast_to(np.asarray(mask, dtype=bool), pointers.shape)
        real = np.zeros_like(pointers)
        wanted = pointers[mask]
        if wanted.size == 0:
            return real, None, np.zeros(0, np.int64), mask
        line = _kernel_line()
        argument, offsets, problem = launch.ranges.resolve(wanted)
        if problem is not None:
            verb = ("load", "store", "atomic")[kind]
            raise OutOfBounds(f"line {line}: {verb} {problem}, program {launch.place(launch.program)}")
        assert argument is not None
        elements = argument.storage_elements(offsets)
        if kind == STORE and np.unique(elements).size != elements.size:
            raise Race(f"line {line}: one store writes an element of {argument.name} twice")
        operation = _Operation(kind, launch.program, launch.epoch, line, elements)
        launch.log.setdefault(argument.storage, []).append(operation)
        if self.watch is not None:
            self.watch(launch.kernel, launch.program, argument.name, kind != LOAD, elements)
        if not argument.virtual:
            real[mask] = (offsets + argument.address).astype(np.uint64)
        if kind != STORE:
            unwritten = self._fresh.unwritten(argument, elements)
            if unwritten is not None:
                where = f"element {unwritten} of {argument.describe()}, program {launch.place(launch.program)}"
                raise Uninitialised(f"line {line}: load of unwritten {where}")
        if kind != LOAD:
            self._fresh.mark(argument, elements)
        return real, argument, elements, mask

    def load(self, pointers: Any, mask: Any, other: Any, dtype: Any) -> Any:
        real, argument, _, mask = self._touch(LOAD, pointers, mask)
        if argument is not None and argument.virtual:
            content = self.contents.get(argument.name, 0)
            return np.where(mask, np.asarray(content).astype(dtype), np.broadcast_to(other, mask.shape)).astype(dtype)
        return self._memory.load(real, mask, other, dtype)

    def store(self, pointers: Any, value: Any, mask: Any) -> Any:
        real, argument, _, mask = self._touch(STORE, pointers, mask)
        return None if argument is not None and argument.virtual else self._memory.store(real, value, mask)

    def atomic_rmw(self, operation: Any, pointers: Any, value: Any, mask: Any, order: Any) -> Any:
        real = self._atomic(pointers, mask)
        return self._memory.atomic_rmw(operation, real, value, mask, order)

    def atomic_cas(self, pointers: Any, compare: Any, value: Any, order: Any) -> Any:
        real = self._atomic(pointers, np.ones_like(pointers, dtype=bool))
        return self._memory.atomic_cas(real, compare, value, order)

    def _atomic(self, pointers: Any, mask: Any) -> NDArray[np.uint64]:
        if not self.allow_atomics:
            raise Race(f"line {_kernel_line()}: an atomic, whose order is not fixed")
        real, argument, _, _ = self._touch(ATOMIC, pointers, mask)
        if argument is not None and argument.virtual:
            raise NotImplementedError("atomics on meta tensors")
        return real

    # ------------------------------------------------------------------ races

    @staticmethod
    def _check_races(launch: _Launch, operations: list[_Operation]) -> None:
        """All accesses of one launch to one storage: sorted by element, then program, then time."""
        if all(operation.kind == LOAD for operation in operations):
            return
        sizes = [operation.elements.size for operation in operations]
        number = np.repeat(np.arange(len(operations)), sizes)
        element = np.concatenate([operation.elements for operation in operations])
        kind = np.array([operation.kind for operation in operations])[number]
        program = np.array([operation.program for operation in operations])[number]
        epoch = np.array([operation.epoch for operation in operations])[number]
        order = np.lexsort((number, program, element))
        number, element, kind, program, epoch = (a[order] for a in (number, element, kind, program, epoch))

        def complain(first: int, second: int, text: str) -> NoReturn:
            lines = sorted({operations[number[k]].line for k in (first, second)})
            programs = sorted({launch.place(int(program[k])) for k in (first, second)})
            where = f"line {' and '.join(map(str, lines))}, element {element[first]}, program {programs}"
            raise Race(f"{launch.kernel}: {text}: {where}")

        same = element[1:] == element[:-1]
        unordered = same & (program[1:] == program[:-1]) & (epoch[1:] == epoch[:-1]) & (number[1:] != number[:-1])
        hazards = np.flatnonzero(unordered & (kind[:-1] == STORE))
        if hazards.size:
            at = int(hazards[0])
            complain(at, at + 1, "a program touches again what it stored, without a barrier between")

        starts = np.flatnonzero(np.concatenate(([True], ~same)))
        ends = np.concatenate((starts[1:], [element.size])) - 1
        shared = program[starts] != program[ends]  # sorted by program within an element
        stored = np.maximum.reduceat((kind == STORE).astype(np.int8), starts) == 1
        mixed = np.minimum.reduceat(kind, starts) != np.maximum.reduceat(kind, starts)
        atomic = np.maximum.reduceat(kind, starts) == ATOMIC
        races = np.flatnonzero(shared & (stored | (atomic & mixed)))
        if races.size:
            at = int(races[0])
            complain(int(starts[at]), int(ends[at]), "programs race for an element")
