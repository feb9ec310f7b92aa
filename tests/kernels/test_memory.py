"""Tensors without memory: refused in our words, or computed as PyTorch does, and never read by address."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from native_cases import native_only
from torch import Tensor
from window_cases import small_calls

FUNCTIONS = ["resample_windows", "tonality_blend", "windowed_tonality"]
COUNTS = {"resample_windows": 3, "tonality_blend": 8, "windowed_tonality": 10}
EVERY = [(name, n) for name in FUNCTIONS for n in range(COUNTS[name])]
INTERPRETED = os.environ["TRITON_INTERPRET"] == "1"
BACKENDS = [
    pytest.param("native", marks=native_only),
    pytest.param("triton", marks=pytest.mark.skipif(not INTERPRETED, reason="CPU tensors: needs the interpreter")),
]


def calls(name: str, backend: str) -> tuple[Callable[..., Tensor], list[Tensor]]:
    if backend == "triton":
        pytest.importorskip("triton")
    function, make = small_calls(backend)[name]
    return function, make()


def freed(value: Tensor) -> None:
    value.untyped_storage().resize_(0)


def inside_freed(value: Tensor) -> Tensor:
    """A view with an offset: PyTorch gives it the address 0 plus that offset, which is not 0."""
    both = torch.cat((value.flatten(), value.flatten()))
    second = both[value.numel() :].view(value.shape)
    freed(both)
    return second


def cut_short(value: Tensor) -> Tensor:
    """The last number is beyond the storage."""
    flat = value.clone()
    flat.untyped_storage().resize_(flat.untyped_storage().nbytes() - value.element_size())
    return flat


@pytest.mark.parametrize(("name", "n"), EVERY)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("met", [False, True], ids=["first call", "known call"])
def test_freed_and_resized(name: str, n: int, backend: str, met: bool) -> None:
    function, given = calls(name, backend)
    if met:
        function(*given)
    broken = given[n].clone()
    freed(broken)
    for value in (broken, inside_freed(given[n]), cut_short(given[n])):
        with pytest.raises(RuntimeError, match=r"^\w+ has no memory for its elements: shape .*needs \d+ bytes"):
            function(*(value if m == n else v for m, v in enumerate(given)))


@pytest.mark.parametrize(("name", "n"), EVERY)
@pytest.mark.parametrize("backend", BACKENDS)
def test_freed_before_backward(name: str, n: int, backend: str) -> None:
    function, given = calls(name, backend)
    leaves = [v.clone().requires_grad_() for v in given]
    out = function(*leaves)
    freed(leaves[n])
    with pytest.raises(RuntimeError, match="has no memory"):
        torch.autograd.grad(out, leaves, torch.ones_like(out))


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_without_memory(name: str, backend: str) -> None:
    function, given = calls(name, backend)
    leaves = [v.clone().requires_grad_() for v in given]
    grad = torch.ones_like(function(*leaves))
    freed(grad)
    with pytest.raises(RuntimeError, match="the gradient has no memory"):
        torch.autograd.grad(function(*leaves), leaves, grad)
    zeros = torch._efficientzerotensor(grad.shape, dtype=grad.dtype)
    assert zeros.data_ptr() == 0
    for g in torch.autograd.grad(function(*leaves), leaves, zeros):
        assert not g.any()


@pytest.mark.parametrize(("name", "n"), EVERY)
@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_tensors_are_zeros(name: str, n: int, backend: str) -> None:
    function, given = calls(name, backend)
    wanted = function(*(torch.zeros_like(v) if m == n else v for m, v in enumerate(given)))
    zeros = torch._efficientzerotensor(given[n].shape, dtype=given[n].dtype)
    assert torch.equal(function(*(zeros if m == n else v for m, v in enumerate(given))), wanted)


@pytest.mark.proof
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_turned_signs(name: str, backend: str) -> None:
    """`_neg_view`: memory does not show the sign, of an argument or of the gradient."""
    function, given = calls(name, backend)
    leaves = [v.clone().requires_grad_() for v in given]
    out = function(*leaves)
    for n, value in enumerate(given):
        got = function(*(torch._neg_view(v) if m == n else v for m, v in enumerate(given)))
        assert torch.equal(got, function(*(-v if m == n else v for m, v in enumerate(given))))
        assert torch._neg_view(value).is_neg()
    grad = torch.randn_like(out)
    turned = torch.autograd.grad(out, leaves, torch._neg_view(grad), retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(turned, torch.autograd.grad(out, leaves, -grad), strict=True))


@native_only
@pytest.mark.parametrize("name", FUNCTIONS)
def test_wrappers_that_call_themselves_plain(name: str) -> None:
    function, given = calls(name, "native")
    with pytest.raises(RuntimeError, match=r"has no memory for its elements.*wrapper"):
        function(torch._to_functional_tensor(given[0]), *given[1:])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_named() -> None:
    function, given = calls("windowed_tonality", "reference")
    nested = torch.nested.nested_tensor(list(given[0]))
    with pytest.raises(TypeError, match=r"x must be a dense .* tensor of shape .B, C, T., got a nested tensor"):
        function(nested, *given[1:])


@native_only
def test_every_pointer_that_goes_to_c() -> None:
    """The last line, whoever calls."""
    from adaptive_window.kernels.native import library

    x, out = torch.ones(2, 3, 4), torch.ones(2, 4, 3)
    library.call("turn", x.dtype, 1, 2, 3, 4, x, out)
    for gone in (0, 1):
        values = [x.clone(), out.clone()]
        freed(values[gone])
        with pytest.raises(RuntimeError, match=r"turn: a tensor .* needs 96 bytes of memory, its storage holds 0"):
            library.call("turn", x.dtype, 1, 2, 3, 4, *values)


def test_first_call_loads_no_compiler() -> None:
    """torch._dynamo takes 1.6 to 2 s to import, and a call needs nothing of it."""
    code = """
import sys, torch
before = {name for name in sys.modules if name.startswith(("torch._dynamo", "torch._inductor"))}
from adaptive_window.kernels import windowed_tonality
for backend in sys.argv[1:]:
    shapes = ((1, 4, 20), *[(1, 2)] * 3, (4, 1, 3), (4,), (4, 4, 1), *[(4,)] * 3)
    leaves = [torch.ones(shape, requires_grad=True) for shape in shapes]
    windowed_tonality(*leaves, 8, backend=backend).sum().backward()
after = {name for name in sys.modules if name.startswith(("torch._dynamo", "torch._inductor"))}
assert after == before, sorted(after - before)[:5]
"""
    backends = ["auto"] + ["triton"] * INTERPRETED
    done = subprocess.run([sys.executable, "-c", code, *backends], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
