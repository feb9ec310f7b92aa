"""The sanitizer's memory: which addresses belong to which argument of a launch, which elements were ever written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

SHIFT = 44  # an argument's range is 2⁴⁴ bytes, its tensor in the middle: strays of 8 TB to either side are recognized
HALF = 1 << (SHIFT - 1)


@dataclass
class Argument:
    """One tensor argument of a launch."""

    name: str
    tensor: Tensor
    base: int  # its invented address
    virtual: bool  # a meta tensor: no memory behind it
    storage: tuple[int, int]
    first: int  # element of the storage that is the tensor's first
    extent: int  # elements from the first to the last one, holes included
    allowed: NDArray[np.bool_] | None  # [extent]; None where every element is the view's own

    @classmethod
    def of(cls, name: str, tensor: Tensor, base: int) -> Argument:
        virtual = tensor.device.type == "meta"
        sizes = list(zip(tensor.shape, tensor.stride(), strict=True))
        extent = sum((n - 1) * step for n, step in sizes) + 1 if tensor.numel() else 0
        allowed = None
        if not virtual and not tensor.is_contiguous():
            places = np.zeros((), np.int64)
            for n, step in sizes:
                places = places[..., None] + np.arange(n) * step
            allowed = np.zeros(extent, bool)
            allowed[places.ravel()] = True
        storage = (id(tensor), 0) if virtual else (tensor.untyped_storage().data_ptr(), tensor.element_size())
        return cls(name, tensor, base, virtual, storage, tensor.storage_offset(), extent, allowed)

    @property
    def address(self) -> int:
        return self.tensor.data_ptr()

    def storage_elements(self, offsets: NDArray[np.int64]) -> NDArray[np.int64]:
        """Byte offsets from the tensor's first element -> elements of its storage, as all its views count them."""
        return offsets // self.tensor.element_size() + self.first

    def describe(self) -> str:
        return f"{self.name} (shape {list(self.tensor.shape)}, strides {list(self.tensor.stride())})"


@dataclass
class RangeOfArguments:
    """The invented address space of one launch."""

    arguments: list[Argument] = field(default_factory=list)

    def add(self, name: str, tensor: Tensor) -> int:
        base = (len(self.arguments) + 1) << SHIFT
        self.arguments.append(Argument.of(name, tensor, base))
        return base

    def resolve(self, pointers: NDArray[np.uint64]) -> tuple[Argument | None, NDArray[np.int64], str | None]:
        """The argument that `pointers` were derived from, their byte offsets in it, and what is wrong with them."""
        signed = pointers.astype(np.int64)
        index = ((signed + HALF) >> SHIFT) - 1
        known = (index >= 0) & (index < len(self.arguments)) & (index == index[0])
        if not known.all():
            return None, signed, f"through a pointer to nothing ({int(pointers[~known][0]):#x})"
        argument = self.arguments[int(index[0])]
        offsets = signed - argument.base
        size = argument.tensor.element_size()
        elements = offsets // size
        wrong = (elements < 0) | (elements >= argument.extent) | (offsets % size != 0)
        if argument.allowed is not None and not wrong.any():
            wrong = ~argument.allowed[elements]
        if wrong.any():
            stray = int(elements[wrong][0])
            return argument, offsets, f"out of bounds: element {stray} of {argument.extent} of {argument.describe()}"
        return argument, offsets, None


@dataclass
class _Fresh:
    alive: StorageWeakRef
    version: int  # PyTorch's count of in-place writes when the memory was allocated
    written: NDArray[np.bool_]


class FreshMemory:
    """Which elements of tensors from torch.empty, empty_like, empty_strided and new_empty were written since.

    Stores of kernels count element by element; any in-place operation of PyTorch counts as writing everything.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], _Fresh] = {}

    def watch_allocations(self) -> list[tuple[Any, str, Any]]:
        """Replaces the allocating functions; returns what undoes it: (owner, name, original)."""
        undo: list[tuple[Any, str, Any]] = []
        owners = [(torch, name) for name in ("empty", "empty_like", "empty_strided")]
        owners += [(torch.Tensor, name) for name in ("new_empty", "new_empty_strided")]
        for owner, name in owners:
            undo.append((owner, name, getattr(owner, name)))
            setattr(owner, name, self._recording(getattr(owner, name)))
        return undo

    def _recording(self, allocate: Any) -> Any:
        def recorded(*args: Any, **kwargs: Any) -> Tensor:
            made: Tensor = allocate(*args, **kwargs)
            if made.device.type == "cpu" and made.numel():
                storage = made.untyped_storage()
                written = np.zeros(storage.nbytes() // made.element_size(), bool)
                key = (storage.data_ptr(), made.element_size())
                self._known[key] = _Fresh(StorageWeakRef(storage), made._version, written)
            return made

        return recorded

    def _find(self, argument: Argument) -> _Fresh | None:
        fresh = self._known.get(argument.storage)
        if fresh is None:
            return None
        if fresh.alive.expired() or argument.tensor._version != fresh.version:
            del self._known[argument.storage]
            return None
        return fresh

    def unwritten(self, argument: Argument, elements: NDArray[np.int64]) -> int | None:
        """The first of `elements` that nothing has written."""
        fresh = self._find(argument)
        if fresh is None or fresh.written[elements].all():
            return None
        return int(elements[~fresh.written[elements]][0])

    def mark(self, argument: Argument, elements: NDArray[np.int64]) -> None:
        fresh = self._find(argument)
        if fresh is not None:
            fresh.written[elements] = True
