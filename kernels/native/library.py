"""The compiled C of `windows.c`: where it lies, what its functions take, and why it cannot be called.

`setup.py` has it built at installation where it can be (Linux on x86-64 or AArch64, with a C compiler); without it the
package works as before, by `reference`. It is a library of plain functions, no Python module: it depends on no version
of Python or PyTorch. It shares PyTorch's threads, because both ask for GNU OpenMP by the same name.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.machinery
import platform
from pathlib import Path

import torch
from torch import Tensor

from ..memory import addresses

TILE, MAX_TAPS = 64, 31  # as in windows.c
SUFFIXES = {torch.float32: "f32", torch.float64: "f64"}
REALS = {torch.float32: ctypes.c_float, torch.float64: ctypes.c_double}

# Arguments of every function: i an integer, r a number of the tensors' type, p a tensor's address.
SIGNATURES = {
    "turn": "iiii pp",
    "cut": "iiiiiii pppp",
    "convolve": "iiiii ppp",
    "blend": "iiiii r ppppppp p",
    "blend_backward": "iiiii r ppppppp pppp",
    "convolve_backward": "iiiii ppp pp",
    "place_backward": "iiiiiii ppp p",
    "cut_backward": "iiiiiii ppp p",
}


def declare(library: ctypes.CDLL) -> None:
    """Tell ctypes what every function takes."""
    for name, signature in SIGNATURES.items():
        for dtype, suffix in SUFFIXES.items():
            kinds = {"i": ctypes.c_int64, "r": REALS[dtype], "p": ctypes.c_void_p}
            function = getattr(library, f"{name}_{suffix}")
            function.argtypes = [kinds[letter] for letter in signature.replace(" ", "")]
            function.restype = None


def _digest() -> str | None:
    """Of the sources beside this file, which an installed package may lack; as in setup.py."""
    files = [Path(__file__).with_name(name) for name in ("rows.h", "stages.h", "windows.c")]
    if not all(file.exists() for file in files):
        return None
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _load() -> ctypes.CDLL | str:
    """The library, or the reason why there is none."""
    files = [Path(__file__).with_name("_windows" + suffix) for suffix in importlib.machinery.EXTENSION_SUFFIXES]
    found = [file for file in files if file.exists()]
    if not found:
        return (
            "its library was not built: install the package from source on Linux (x86-64 or AArch64) with a C compiler"
        )
    capability = torch.backends.cpu.get_cpu_capability()
    if platform.machine() in ("x86_64", "AMD64") and not capability.startswith("AVX"):
        return f"it needs a processor with AVX2 and FMA, and PyTorch reports {capability}"
    try:
        library = ctypes.CDLL(str(found[0]))
    except OSError as error:
        return f"its library cannot be loaded: {error}"
    library.sources.restype = ctypes.c_char_p
    if _digest() not in (None, library.sources().decode()):
        return "its C sources have changed since it was built: install the package again"
    declare(library)
    return library


_library: ctypes.CDLL | None = None
_reason: str | None = None
_looked = False  # names of their own, which torch.compile reads as constants; it could not trace the search


def look() -> None:
    """Look for the library, once more if need be."""
    global _library, _reason, _looked
    found = _load()
    _library, _reason = (None, found) if isinstance(found, str) else (found, None)
    _looked = True


def why_not() -> str | None:
    """None where the library can be called, else the reason."""
    if not _looked:
        look()
    return _reason


def _address(function: str, value: Tensor) -> int:
    """Of a contiguous tensor's first element; C reads and writes all of them from there."""
    size = value.numel() * value.element_size()
    found = addresses([value], [size])
    if found is None:
        raise RuntimeError(
            f"{function}: a tensor of shape {list(value.shape)} needs {size} bytes of memory, its storage holds "
            f"{value.untyped_storage().nbytes()} (freed or resized between the forward and the backward pass?)"
        )
    return found[0]


def call(name: str, dtype: torch.dtype, *arguments: Tensor | float) -> None:
    """Run a function of `SIGNATURES` on contiguous tensors; for `library` to be there is the caller's to know."""
    reason = why_not()
    if reason is not None:
        raise RuntimeError(f"the compiled CPU kernels cannot run: {reason}")
    function = getattr(_library, f"{name}_{SUFFIXES[dtype]}")
    function(*(_address(name, value) if isinstance(value, Tensor) else value for value in arguments))
