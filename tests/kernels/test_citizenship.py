"""The operators as citizens of PyTorch: schema, fakes, torch.compile, what is saved, what is refused, CUDA graphs."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from native_cases import native_only
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from window_cases import EPS, W, arguments, small_arguments, small_calls

from adaptive_window.kernels import resample_windows, tonality_blend, windowed_tonality

pytest.importorskip("triton")
from adaptive_window.kernels.ops import OPERATORS
from adaptive_window.kernels.triton.launch import record_launches

FUNCTIONS = small_calls("triton")
NUMBERS: dict[str, tuple[Any, ...]] = {
    "resample_windows": (W,),
    "tonality_blend": (EPS, "none"),
    "windowed_tonality": (W, EPS, "none"),
    "windowed_tonality:frame": (W, EPS, "frame"),
}


def operator_of(name: str, kind: str = "") -> Any:
    return OPERATORS[name.partition(":")[0] + kind]


def operator_cases(backend: str, device: torch.device) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Forward operators with arguments that need gradients, backward ones with every other gradient asked for."""
    torch.manual_seed(1)
    device = torch.device("cpu") if backend == "native" else device
    cases = {}
    for name, (_, make) in FUNCTIONS.items():
        plain = [v.to(device) for v in make()]
        leaves = [v.clone().requires_grad_() for v in plain]
        cases[name] = (operator_of(name), (*leaves, *NUMBERS[name], backend, True))
        grad_out = torch.randn(2, 2, 3, W, dtype=torch.float64, device=device)
        needs = [n % 2 == 0 for n in range(len(plain))]
        with torch.no_grad():
            kept = operator_of(name)(*plain, *NUMBERS[name], backend, True)[1]
        backward = (grad_out, *plain, kept, *NUMBERS[name], backend, needs)
        cases[f"{name}_backward"] = (operator_of(name, "_backward"), backward)
    return cases


CASES = [name + kind for name in FUNCTIONS for kind in ("", "_backward")]
BACKENDS = ["triton", pytest.param("native", marks=native_only)]


@pytest.mark.proof
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(name: str, backend: str, device: torch.device) -> None:
    torch.library.opcheck(*operator_cases(backend, device)[name])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("layout", ["plain", "transposed", "expanded"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_fakes_tell_the_truth(name: str, layout: str, backend: str, device: torch.device) -> None:
    """Shape, stride, dtype and device of every result, foretold and found."""
    change: dict[str, Callable[[Tensor], Tensor]] = {
        "plain": lambda v: v,
        "transposed": lambda v: v.transpose(0, -1).contiguous().transpose(0, -1),
        "expanded": lambda v: v[..., :1].expand_as(v),
    }
    operator, given = operator_cases(backend, device)[name]
    signals = [n for n, v in enumerate(given) if isinstance(v, Tensor) and v.dim() > 1]  # not what forward kept
    given = tuple(change[layout](v.detach()) if n in signals else v for n, v in enumerate(given))
    with FakeTensorMode() as mode:
        fakes = tuple(mode.from_tensor(v) if isinstance(v, Tensor) else v for v in given)
        foretold = operator(*fakes)
    found = operator(*given)
    foretold, found = ([v] if isinstance(v, Tensor) else v for v in (foretold, found))
    assert len(found) == len(foretold) > 0
    for a, b in zip(found, foretold, strict=True):
        assert (a.shape, a.stride(), a.dtype, a.device) == (b.shape, b.stride(), b.dtype, b.device)
    found = [v for v in found if v.numel()]
    storages = [v.untyped_storage().data_ptr() for v in (*found, *(v for v in given if isinstance(v, Tensor)))]
    assert len(set(storages[: len(found)])) == len(found)
    assert not set(storages[: len(found)]) & set(storages[len(found) :])


def gradients(function: Callable[..., Tensor], given: Sequence[Tensor], needs: Sequence[bool]) -> tuple[Tensor, ...]:
    leaves = [v.detach().clone().requires_grad_(need) for v, need in zip(given, needs, strict=True)]
    return torch.autograd.grad(function(*leaves).sin().sum(), [v for v in leaves if v.requires_grad])


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_to_one_graph(name: str, dynamic: bool, device: torch.device) -> None:
    torch.compiler.reset()
    function, make = FUNCTIONS[name]
    given = [v.to(device) for v in make()]
    needs = [n < 2 for n in range(len(given))]
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    with record_launches() as plain:
        wanted = gradients(function, given, needs)
    with record_launches() as traced:
        got = gradients(compiled, given, needs)
    for g, w in zip(got, wanted, strict=True):
        torch.testing.assert_close(g, w, rtol=0, atol=0)
    # frozen weights cost nothing in a compiled backward either; only their preparation is done again
    wanted_names = [one.name for one in plain]
    if name != "resample_windows":
        wanted_names.insert(2, "prepare_weights")
    assert [one.name for one in traced] == wanted_names


@pytest.mark.proof
@native_only
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("backend", ["native", "auto"])
def test_the_compiled_kernels_compile_to_one_graph(name: str, dynamic: bool, backend: str) -> None:
    torch.compiler.reset()
    function, make = small_calls(backend)[name]
    given = make()
    needs = [n < 2 for n in range(len(given))]
    nodes = []

    def look(graph: torch.fx.GraphModule, _: object) -> Callable[..., Any]:
        nodes.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    torch.compile(function, fullgraph=True, dynamic=dynamic, backend=look)(*given)
    assert any(node.startswith(f"adaptive_window.{name.partition(':')[0]}") for node in nodes), nodes
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    assert torch.equal(compiled(*given), function(*given))
    for g, w in zip(gradients(compiled, given, needs), gradients(function, given, needs), strict=True):
        assert torch.equal(g, w)


def test_compiles_inside_a_module(device: torch.device) -> None:
    from adaptive_window.model.tonality import TonalityReducer

    torch.compiler.reset()
    module = TonalityReducer(encoding_dim=4, kernel_size=3, backend="triton").to(device)
    y, strength = torch.randn(2, 3, 4, 11, device=device), torch.rand(2, 3, device=device)
    wanted = module(y, strength)
    got = torch.compile(module, fullgraph=True, backend="aot_eager")(y, strength)
    assert torch.equal(got, wanted)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(y, strength), wanted)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_only_inputs_are_saved(name: str, device: torch.device) -> None:
    function, make = FUNCTIONS[name]
    leaves = [v.to(device).clone().requires_grad_() for v in make()]
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda v: saved.append(v) or v, lambda v: v):
        function(*leaves)
    assert {v.data_ptr() for v in saved} == {v.data_ptr() for v in leaves}


class TestRefusals:
    @pytest.mark.parametrize("name", FUNCTIONS)
    def test_second_derivative(self, name: str, device: torch.device) -> None:
        function, make = FUNCTIONS[name]
        leaves = [v.to(device).clone().requires_grad_() for v in make()]
        first = torch.autograd.grad(function(*leaves).square().sum(), leaves, create_graph=True)
        with pytest.raises(NotImplementedError, match=r"no second derivative.*backend='reference'"):
            sum(g.square().sum() for g in first).backward()

    @pytest.mark.parametrize("name", FUNCTIONS)
    def test_forward_mode(self, name: str, device: torch.device) -> None:
        function, make = FUNCTIONS[name]
        given = tuple(v.to(device) for v in make())
        for n in range(len(given)):
            tangents = tuple(torch.ones_like(v) if m == n else torch.zeros_like(v) for m, v in enumerate(given))
            with pytest.raises(NotImplementedError, match=r"no forward-mode derivative.*backend='reference'"):
                torch.func.jvp(function, given, tangents)

    @pytest.mark.parametrize("name", FUNCTIONS)
    def test_vmap_is_a_loop_or_an_error(self, name: str, device: torch.device) -> None:
        """PyTorch runs an operator without a batching rule once per element; torch.func.grad is refused by name."""
        function, make = FUNCTIONS[name]
        first, *rest = (v.to(device) for v in make())
        both = torch.stack((first, first.flip(0)))
        got = torch.vmap(lambda v: function(v, *rest))(both)
        assert torch.equal(got, torch.stack([function(v, *rest) for v in both]))
        said = r"backend='triton' cannot run: a transform of torch\.func is active.*backend='reference'"
        for transform in (torch.func.grad, torch.func.jacrev, lambda f: torch.vmap(torch.func.grad(f))):
            given = both if transform not in (torch.func.grad, torch.func.jacrev) else first
            with pytest.raises(RuntimeError, match=said):
                transform(lambda v: function(v, *rest).sum())(given)
        auto = small_calls("auto")[name][0]
        wanted = small_calls("reference")[name][0]
        got = torch.func.grad(lambda v: auto(v, *rest).sin().sum())(first)
        torch.testing.assert_close(got, torch.func.grad(lambda v: wanted(v, *rest).sin().sum())(first))

    def test_too_many_frames(self, device: torch.device) -> None:
        x = torch.zeros(1, 1, 1, device=device).expand(1, 1, 2**24)
        place = torch.ones(1, 1, device=device)
        with pytest.raises(ValueError, match=r"x must have fewer than 2²⁴ frames.*\[1, 1, 16777216\]"):
            resample_windows(x, place, place, 4, backend="triton")
        with pytest.raises(ValueError, match=r"window must be less than 2²⁴ frames.*16777216"):
            resample_windows(x[..., :5], place, place, 2**24, backend="triton")


def test_as_many_channels_as_there_may_be(device: torch.device) -> None:
    """C = 1024 runs, one more is refused with the number, the limit and the way out."""
    given = [v[:1] if n < 4 else v for n, v in enumerate(arguments(7, (1.3137,), (0.9172,), 1024, 1))]
    given = [v.to(device) for v in given]
    wanted = windowed_tonality(*given, 3, backend="reference")
    torch.testing.assert_close(windowed_tonality(*given, 3, backend="triton"), wanted, rtol=1e-10, atol=1e-10)
    c = 1025
    weights = [torch.zeros(s, device=device) for s in ((c, 1, 1), (c,), (c, c, 1), (c,), (c,), (c,))]
    place = torch.ones(1, 1, device=device)
    clip = torch.zeros(1, c, 4, device=device)
    said = r"must have at most 1024 channels for backend='triton', got C = 1025 in shape .*backend='reference'"
    with pytest.raises(ValueError, match="x " + said):
        resample_windows(clip, place, place, 4, backend="triton")
    with pytest.raises(ValueError, match="x " + said):
        windowed_tonality(clip, place, place, place, *weights, 4, backend="triton")
    with pytest.raises(ValueError, match="y " + said):
        tonality_blend(clip[None], place, *weights, backend="triton")
    assert resample_windows(clip, place, place, 4, backend="reference").shape == (1, 1, c, 4)


def test_nan_windows_have_the_specifications_gradients(device: torch.device) -> None:
    """NaN where the reference has NaN: in the window's own start, ratio and strength, not in another's."""
    for bad in ((1, 0, 1), (2, 1, 0)):
        given = [v.to(device) for v in small_arguments()]
        given[bad[0]] = given[bad[0]].clone()
        given[bad[0]][bad[1:]] = float("nan")
        for function, count in ((resample_windows, 3), (windowed_tonality, 10)):
            found = []
            for backend in ("triton", "reference"):
                leaves = [v.clone().requires_grad_() for v in given[:count]]
                out = function(*leaves, W, backend=backend)
                found.append(torch.autograd.grad(out, leaves, torch.ones_like(out))[:4])
            clips = [grads.pop(0) for grads in map(list, found)]
            assert torch.equal(*(dx.isnan() for dx in clips))  # in the two frames that are read, in no other
            torch.testing.assert_close(*clips, rtol=1e-9, atol=1e-9, equal_nan=True)
            for mine, theirs in zip(*(grads[1:] for grads in found), strict=True):
                assert mine.isnan()[bad[1:]]
                assert int(mine.isnan().sum()) == 1
                torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9, equal_nan=True)


def test_changing_an_input_before_backward_is_noticed(device: torch.device) -> None:
    x, start, ratio = (v.to(device) for v in small_arguments()[:3])
    out = FUNCTIONS["resample_windows"][0](x, start.requires_grad_(), ratio)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.gpu
class TestDevice:
    def leaves(self, device: torch.device) -> list[Tensor]:
        return [v.to(device, torch.float32).requires_grad_() for v in small_arguments()]

    def test_nothing_waits(self, device: torch.device) -> None:
        leaves = self.leaves(device)
        FUNCTIONS["windowed_tonality"][0](*leaves).sum().backward()  # compiled once
        torch.cuda.set_sync_debug_mode("error")
        try:
            FUNCTIONS["windowed_tonality"][0](*leaves).sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def test_in_a_graph(self, device: torch.device) -> None:
        leaves = self.leaves(device)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                wanted = torch.autograd.grad(FUNCTIONS["windowed_tonality"][0](*leaves).sum(), leaves)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = torch.autograd.grad(FUNCTIONS["windowed_tonality"][0](*leaves).sum(), leaves)
        for g in got:
            g.fill_(float("nan"))
        graph.replay()
        assert all(torch.equal(g, w) for g, w in zip(got, wanted, strict=True))

    def test_on_the_current_stream(self, device: torch.device) -> None:
        leaves = [v.detach() for v in self.leaves(device)]
        wanted = FUNCTIONS["windowed_tonality"][0](*leaves)
        stream = torch.cuda.Stream()
        x = torch.zeros_like(leaves[0])
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)
            x.copy_(leaves[0])
            got = FUNCTIONS["windowed_tonality"][0](x, *leaves[1:])
        stream.synchronize()
        assert torch.equal(got, wanted)
