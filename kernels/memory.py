"""Whether a tensor's numbers lie in memory that is there: asked before an address goes to C or to a kernel.

A tensor keeps its shape when its storage is freed or shrunk (FSDP, activation offloading), PyTorch's zero tensors never
had memory, and a wrapper of functorch or AOTAutograd may call itself a plain tensor. Reading any of them by address
ends the process, or reads what lies there by now.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def extent(value: Tensor) -> int:
    """Bytes from the first element to the end of the last one."""
    if value.numel() == 0:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
    return (last + 1) * value.element_size()


def addresses(values: Sequence[Tensor], extents: Sequence[int]) -> list[int] | None:
    """Where each begins; None if one of them has no memory of its extent."""
    found = []
    try:
        for value, size in zip(values, extents):  # noqa: B905 - `strict` costs as much as the rest
            at = value.data_ptr()
            if size:
                storage = value.untyped_storage()
                first = storage.data_ptr()
                if not 0 < first <= at <= first + storage.nbytes() - size:
                    return None
            found.append(at)
    except RuntimeError:  # PyTorch's own word on a storage that is none
        return None
    return found


def settled(name: str, value: Tensor) -> Tensor:
    """`value` as numbers in memory: itself, or a copy where PyTorch holds it as zeros or with its signs turned.

    Raises:
        RuntimeError: its memory was freed or resized, or was never there.
    """
    if value._is_zerotensor():
        value = value.clone()
    value = value.resolve_neg()
    if addresses([value], [extent(value)]) is None:
        held = value.untyped_storage().nbytes()
        raise RuntimeError(
            f"{name} has no memory for its elements: shape {list(value.shape)} needs {extent(value)} bytes from offset "
            f"{value.storage_offset() * value.element_size()}, its storage holds {held} (freed or resized, as FSDP and "
            "offloading do, or a wrapper without memory); restore it before the call"
        )
    return value
