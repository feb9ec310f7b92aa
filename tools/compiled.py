"""Launches compiled for a GPU that is not there, and the results taken apart by NVIDIA's tools as Triton ships them."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .sass import Listing, resources

if TYPE_CHECKING:
    from adaptive_window.kernels.triton.launch import Launch


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of one launch."""

    ttgir: str
    ptx: str
    listing: Listing
    registers: int  # per thread
    spill_bytes: int  # per thread
    shared_bytes: int  # per program
    parameters: tuple[str, ...]  # the kernel's arguments that are left at run time, in order


class _Driver:
    """Stands in for a GPU's driver, so that Triton specializes and compiles a launch as it would for that GPU."""

    def __init__(self, arch: int) -> None:
        from triton.backends.compiler import GPUTarget

        self.arch = arch
        self.target = GPUTarget("cuda", arch, 32)

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return self.arch  # Triton keeps compiled kernels by device: one "device" per architecture

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def _pretending(arch: int) -> Iterator[None]:
    from triton.runtime.driver import driver

    before = driver._active
    driver.set_active(_Driver(arch))  # answers the four questions that compiling asks
    try:
        yield
    finally:
        driver._active = before


def _tool(name: str, *arguments: str) -> str:
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    done = subprocess.run([str(path), *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{name} failed: {done.stderr.strip()}")
    return done.stdout


def _parameters(launch: Launch) -> tuple[str, ...]:
    names = []
    for parameter in launch.kernel.params:
        value = launch.arguments[parameter.name]
        is_one = isinstance(value, int) and not isinstance(value, bool) and value == 1  # Triton compiles it in
        if not parameter.is_constexpr and not is_one:
            names.append(parameter.name)
    return tuple(names)


def compile_launch(launch: Launch, arch: int) -> Compiled:
    """One launch as it would be compiled for compute capability `arch` / 10."""
    with _pretending(arch):
        compiled = launch.kernel.run(
            grid=launch.grid,
            warmup=True,
            num_warps=launch.num_warps,
            num_stages=launch.num_stages,
            **launch.arguments,
        )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        registers, spilled = resources(_tool("cuobjdump", "--dump-resource-usage", file.name))
        listing = Listing.parse(_tool("nvdisasm", "-c", file.name))
    return Compiled(
        compiled.asm["ttgir"],
        compiled.asm["ptx"],
        listing,
        registers,
        spilled,
        compiled.metadata.shared,
        _parameters(launch),
    )


def bytes_of(launch: Launch) -> dict[str, int]:
    """Size of each tensor among the arguments."""
    return {n: v.numel() * v.element_size() for n, v in launch.arguments.items() if isinstance(v, torch.Tensor)}
