"""TorchInductor's code for a GPU, read without one: its kernels, what they move, and how much memory it holds at once.

The code is made with `benchmark_kernel` set: each kernel then says the sizes of its arguments.
"""

from __future__ import annotations

import re
import tempfile
import types
import weakref
from collections import Counter
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .compiled import _pretending, _tool
from .sass import Listing

_KERNEL = re.compile(r"^(\w+) = async_compile\.triton\('\w+', r?'''(.*?)''', device_str", re.S | re.M)
_TENSOR = r"(\w+) = rand_strided\(\(([\d, ]*)\), \(([\d, ]*)\), device='[\w:]+', dtype=torch\.(\w+)\)"
_POINTER = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "fp64": "float64", "i1": "bool", "u8": "uint8",
            "i32": "int32", "i64": "int64"}  # fmt: skip
_HEAD = """import triton
import triton.language as tl
from torch._inductor.runtime import triton_helpers
from torch._inductor.runtime.triton_helpers import libdevice, math as tl_math
"""
BLOCK, WARPS = 1024, 4  # of an elementwise kernel
ALIGNMENT = 512  # of CUDA's allocator


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number.strip())


def _enclosed(text: str) -> str:
    """Of a text that begins with a parenthesis, up to where it is closed."""
    depth = 0
    for end, sign in enumerate(text):
        depth += (sign == "(") - (sign == ")")
        if depth == 0:
            return text[: end + 1]
    return text


class Kernel(NamedTuple):
    """One of TorchInductor's, and how often a call launches it."""

    name: str
    launches: int
    source: str

    @property
    def body(self) -> str:
        """The function, without its decorator and what measures it."""
        return self.source[self.source.index("@triton.jit") :].split("\n\n\ndef ")[0]

    @property
    def elements(self) -> int:
        """Of what it works on: the product of its ranges."""
        return prod(int(n) for n in re.findall(r"^\s+[xyzr]\w*numel = (\d+)", self.body, re.M))

    @property
    def kind(self) -> str:
        if "MixOrderReductionGrid" in self.source:  # sums over rows and over columns, from one reading
            return "both sums" if "fixed_config(" in self.source else "both sums, rows divided"
        if "fixed_config(" in self.source:  # `training.choices` lays out nothing else
            return "sums over blocks"
        return {"poi": "elementwise", "red": "sums over columns"}.get(self.name.split("_")[1], "sums over rows")

    @property
    def bytes(self) -> int:
        """Read and written, everything once each; of an argument of which it has a slice, no more than it touches."""
        if "def get_args" not in self.source:  # of kernels in one launch, only the numbers of elements: casts, 4 to 2
            rows: dict[str, list[int]] = {}
            for part, size in re.findall(r"'[xyr]0?_?numel_(\d+)': (\d+)", self.source):
                rows.setdefault(part, []).append(int(size))
            return 6 * sum(prod(sizes) for sizes in rows.values())
        parameters = re.search(r"def triton_\w+\((.*?)\):", self.source)
        names = [one.split(":")[0].strip() for one in parameters[1].split(",")] if parameters else []
        total = 0
        for name, sizes, _, dtype in re.findall(_TENSOR, self.source[self.source.index("def get_args") :]):
            argument = names[int(name.removeprefix("arg_"))]
            for verb in ("load", "store"):
                places = {_enclosed(rest) for rest in re.findall(rf"tl\.{verb}\({argument} \+ (.*)", self.body)}
                touched = min(prod(_numbers(sizes)), len(places) * self.elements)
                total += touched * getattr(torch, dtype).itemsize
        return total

    def instructions(self, arch: int) -> float:
        """Of a thread and element, where the kernel is elementwise."""
        signature = re.search(r"'signature': (\{.*?\})", self.source)
        if signature is None:
            raise ValueError(f"{self.name}: no signature in its source")
        blocks = {"XBLOCK": 32, "YBLOCK": BLOCK // 32} if "YBLOCK" in self.body else {"XBLOCK": BLOCK}
        arguments: dict[str, Any] = {}
        for name, kind in re.findall(r"'(\w+)': '([*\w]+)'", signature[1]):
            if kind.startswith("*"):
                arguments[name] = torch.empty(16, dtype=getattr(torch, _POINTER[kind[1:]]), device="meta")
            else:
                arguments[name] = blocks[name] if kind == "constexpr" else 4096
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "kernel.py")
            path.write_text(_HEAD + self.body)
            spec = spec_from_file_location("kernel", path)
            module = module_from_spec(spec)  # type: ignore[arg-type]
            spec.loader.exec_module(module)  # type: ignore[union-attr]
            (function,) = (f for name, f in vars(module).items() if name.startswith("triton_") and hasattr(f, "run"))
            with _pretending(arch):
                made = function.run(grid=(1, 1, 1), warmup=True, num_warps=WARPS, num_stages=1, **arguments)
            cubin = Path(folder, "kernel.cubin")
            cubin.write_bytes(made.asm["cubin"])
            names = Listing.parse(_tool("nvdisasm", "-c", str(cubin))).names
        return sum(name.split(".")[0] not in ("NOP", "BRA", "EXIT") for name in names) * 32 * WARPS / BLOCK


def kernels(code: str) -> list[Kernel]:
    """Of a generated module, those that its `call` launches."""
    launched = Counter(re.findall(r"^\s+(triton_\w+)\.run\(", code[code.index("async_compile.wait") :], re.M))
    sources = dict(_KERNEL.findall(code))
    return [Kernel(name, count, sources[name]) for name, count in launched.items()]


class Meter:
    """Bytes of the tensors that are alive."""

    def __init__(self) -> None:
        self.live = self.peak = 0
        self._owners: Counter[int] = Counter()
        self._sizes: dict[int, int] = {}

    def see(self, made: Any) -> Any:
        """Counts a tensor's memory, or that of several, until the last tensor that shares it is gone."""
        if isinstance(made, (tuple, list)):
            for one in made:
                self.see(one)
        if not isinstance(made, Tensor):
            return made
        storage = made.untyped_storage()
        key = storage._cdata
        if not self._owners[key]:
            self._sizes[key] = -(-storage.nbytes() // ALIGNMENT) * ALIGNMENT
            self.live += self._sizes[key]
            self.peak = max(self.peak, self.live)
        self._owners[key] += 1
        weakref.finalize(made, self._gone, key, storage)
        return made

    def _gone(self, key: int, storage: object) -> None:
        """`storage` is held until here, so that no other one has its key."""
        self._owners[key] -= 1
        if not self._owners[key]:
            self.live -= self._sizes.pop(key)


class _Operators:
    """`torch.ops`, of which every call's results are seen."""

    def __init__(self, meter: Meter, of: Any) -> None:
        self._meter, self._of = meter, of

    def __getattr__(self, name: str) -> _Operators:
        return _Operators(self._meter, getattr(self._of, name))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        def on_meta(value: Any) -> Any:
            return torch.device("meta") if isinstance(value, torch.device) else value

        return self._meter.see(self._of(*map(on_meta, args), **{name: on_meta(v) for name, v in kwargs.items()}))


class _Products:
    """`extern_kernels`: products write into `out`, convolutions make what they return."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if "out" in kwargs:
                return kwargs["out"]
            made = getattr(torch.ops.aten, name)(*args, **kwargs)
            if name == "convolution" and made.dim() == 4:
                made = made.contiguous(memory_format=torch.channels_last)
            return self._meter.see(made)

        return call


def _call_of(code: str, meter: Meter) -> Callable[[list[Tensor]], Any]:
    """A generated module's `call`, which then allocates and frees on meta tensors and launches nothing."""

    class Quiet:
        def run(self, *args: Any, **kwargs: Any) -> None:
            """Launches nothing."""

        __enter__ = __exit__ = run

    class Torch:
        ops = _Operators(meter, torch.ops)
        cuda = types.SimpleNamespace(
            _DeviceGuard=lambda device: Quiet(), set_device=lambda device: None, synchronize=lambda: None
        )

        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

    def strided(size: Any, stride: Any, dtype: torch.dtype) -> Tensor:
        return meter.see(torch.empty_strided(size, stride, dtype=dtype, device="meta"))

    def reinterpret(x: Tensor, size: Any, stride: Any, offset: int = 0) -> Tensor:
        return meter.see(torch.as_strided(x, size, stride, x.storage_offset() + offset))

    def nothing(*args: Any, **kwargs: Any) -> None:
        """Checks of sizes and alignment."""

    names: dict[str, Any] = {name: Quiet() for name in re.findall(r"^(triton_\w+) = async_compile", code, re.M)}
    names |= dict.fromkeys(re.findall(r"\b(assert_\w+)\(", code), nothing)
    names |= {
        "torch": Torch(),
        "aten": torch.ops.aten,
        "device": torch.device,
        "inf": float("inf"),
        "nan": float("nan"),
        "empty_strided_cuda": strided,
        "reinterpret_tensor": reinterpret,
        "extern_kernels": _Products(meter),
        "get_raw_stream": lambda device: 0,
        "copy_if_misaligned": lambda x, *rest: x,
    }
    body = code[code.index("async_compile.wait") :].split("\n", 1)[1]
    body = re.split(r"^def (?:benchmark_compiled_module|get_args)\(", body, flags=re.M)[0].replace(
        "del async_compile", ""
    )
    exec(compile(body, "generated", "exec"), names)
    return names["call"]


def _arguments(code: str, meter: Meter) -> dict[str, Tensor]:
    """A generated module's, on meta tensors.

    Neighbours that are strided alike and apart, such as q, k and v, are views of one: torch 2.14's code says so itself.
    """
    base, kind, left = torch.empty(0), None, 0

    def strided(size: Any, stride: Any, device: str, dtype: torch.dtype) -> Tensor:
        nonlocal base, kind, left
        span = 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if prod(size) else 0
        if span <= 1.5 * prod(size) or span == 1:
            return torch.empty_strided(size, stride, dtype=dtype, device="meta")
        if kind != (size, stride, dtype) or left == 0:
            left, kind = round(span / prod(size)), (size, stride, dtype)
            base = torch.empty(left * prod(size), dtype=dtype, device="meta")
        left -= 1
        return torch.as_strided(base, size, stride)

    body = re.split(r"^(?=\S)", code[code.rindex("def get_args():") :].split("\n", 1)[1], flags=re.M)[0]
    names: dict[str, Any] = {"rand_strided": strided, "torch": torch}
    body = "\n".join(line for line in body.splitlines() if not line.lstrip().startswith(("from ", "import ")))
    exec(f"def get_args():\n{body}", names)
    order = re.findall(r"\w+", body[body.rindex("return [") :].removeprefix("return"))
    return dict(zip(order, meter.see(names["get_args"]()), strict=True))


def peak_bytes(forward: str, backward: str) -> int:
    """The most that a step holds: weights, inputs, what forward keeps, and what either makes on its way.

    Followed through both generated modules; what lies within an operator of cuDNN or cuBLAS is not seen.
    """
    meter = Meter()
    given = _arguments(forward, meter)
    held, outside = list(given.values()), meter.live  # weights and inputs are the caller's
    _call_of(forward, meter)(held.copy())
    behind = Meter()
    given = _arguments(backward, behind)
    held = [tensor for name, tensor in given.items() if name.startswith("primals")]
    outside -= sum(tensor.numel() * tensor.element_size() for tensor in held)
    values = list(given.values())
    given.clear()
    _call_of(backward, behind)(values)
    return max(meter.peak, outside + behind.peak)
