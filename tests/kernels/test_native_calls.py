"""Which calls the compiled CPU kernels take: gradients asked for and not, programs they cannot follow, no library."""

from __future__ import annotations

import importlib.machinery
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from guarded_memory import Guarded
from native_cases import call, gradients, native_only
from random_cases import FUNCTIONS
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from window_cases import W, arguments, small_arguments, small_blend_arguments

from adaptive_window.kernels import resample_windows, tonality_blend, windowed_tonality
from adaptive_window.kernels.native import launch, library


@native_only
class TestCitizenship:
    @pytest.mark.parametrize("name", FUNCTIONS)
    def test_auto_takes_it_on_a_cpu(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        guarded = Guarded()
        monkeypatch.setattr(launch, "call", guarded)
        function, given = call(name, "auto")
        function(*given)
        assert guarded.calls

    @pytest.mark.parametrize("name", FUNCTIONS)
    def test_second_derivative_is_refused(self, name: str) -> None:
        function, given = call(name)
        leaves = [v.requires_grad_() for v in given]
        first = torch.autograd.grad(function(*leaves).square().sum(), leaves, create_graph=True)
        with pytest.raises(NotImplementedError, match=r"compiled CPU kernels have no second derivative"):
            sum(g.square().sum() for g in first).backward()

    @pytest.mark.parametrize("name", FUNCTIONS)
    def test_backward_twice(self, name: str) -> None:
        function, given = call(name)
        leaves = [v.requires_grad_() for v in given]
        out = function(*leaves).sin().sum()
        first = torch.autograd.grad(out, leaves, retain_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(first, torch.autograd.grad(out, leaves), strict=True))

    @pytest.mark.parametrize("name", FUNCTIONS)
    def test_some_gradients_only(self, name: str) -> None:
        function, given = call(name)
        whole = gradients(function, given, torch.ones(2, 2, 3, W))[1:]
        for n, want in enumerate(whole):
            leaves = [v.detach().clone().requires_grad_(m == n) for m, v in enumerate(given)]
            out = function(*leaves)
            (got,) = torch.autograd.grad(out, [leaves[n]], torch.ones_like(out))
            assert torch.equal(got, want), n

    @pytest.mark.parametrize("count", [1, 100])
    def test_without_gradients(self, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """no_grad, inference_mode or nothing to train: the same values, and nothing is kept for a backward pass."""
        monkeypatch.setattr(launch, "BUFFER_BYTES", count * 3 * W * 8)
        blend, kept = launch.blend, []

        def watched(*values: Any) -> Any:
            kept.append(values[-1][0] is not None)
            return blend(*values)

        monkeypatch.setattr(launch, "blend", watched)
        for function, given in (call(name) for name in ("tonality_blend", "windowed_tonality")):
            found = [function(*given)]
            leaves = [v.requires_grad_() for v in given]
            for mode in (torch.no_grad(), torch.inference_mode()):
                with mode:
                    found.append(function(*leaves))
            assert not any(v.requires_grad for v in found)
            found.append(function(*leaves))
            assert all(torch.equal(v, found[-1]) for v in found)
            assert kept == [False] * 3 + [True]
            kept.clear()

    @pytest.mark.parametrize("name", ["tonality_blend", "windowed_tonality"])
    def test_autocast_changes_nothing_inside(self, name: str) -> None:
        """16-bit arguments are computed in float32 in both passes, whoever asks for the gradient where."""
        function, given = call(name)
        given = [v.bfloat16() for v in given]
        grad = torch.randn(2, 2, 3, W)
        want = gradients(function, given, grad)
        with torch.autocast("cpu", torch.bfloat16):
            got = gradients(function, given, grad)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))

    def test_inside_checkpoint(self) -> None:
        function, given = call("windowed_tonality")
        grad = torch.randn(2, 2, 3, W, dtype=torch.float64)
        again = gradients(lambda *v: checkpoint(function, *v, use_reentrant=False), given, grad)
        assert all(torch.equal(a, b) for a, b in zip(again, gradients(function, given, grad), strict=True))

    def test_changing_an_input_before_backward_is_noticed(self) -> None:
        for n in range(10):
            leaves = [v.requires_grad_(m == (n + 1) % 10) for m, v in enumerate(small_arguments())]
            out = windowed_tonality(*leaves, W, backend="native")
            with torch.no_grad():
                leaves[n].add_(1)
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                out.sum().backward()

    def test_negative_views(self) -> None:
        """`x.neg()` may be a flag of the tensor, which memory does not show."""
        x, *rest = small_arguments()
        flagged = torch._neg_view(x)
        assert flagged.is_neg()
        got = windowed_tonality(flagged, *rest, W, backend="native")
        assert torch.equal(got, windowed_tonality(-x, *rest, W, backend="native"))


class Watching(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # PyTorch's signature
        return function(*args, **(kwargs or {}))


class Subclass(Tensor):
    pass


def entered(mode: TorchDispatchMode) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    def wrap(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def inside(*given: Tensor) -> Tensor:
            with mode:
                return function(*given)

        return inside

    return wrap


ELSEWHERE: dict[str, tuple[Callable[[Callable[..., Tensor]], Callable[..., Tensor]], str]] = {
    "torch.jit.trace": (lambda f: lambda *v: torch.jit.trace(f, v, check_trace=False)(*v), "traced"),
    "vmap": (lambda f: lambda *v: torch.vmap(f)(*(w[None] for w in v))[0], "torch.func"),
    "jvp": (lambda f: lambda *v: torch.func.jvp(f, v, v)[0], "torch.func|forward-mode"),
    "dispatch mode": (entered(Watching()), "dispatch mode"),
    "subclass": (lambda f: lambda first, *v: f(first.as_subclass(Subclass), *v), "cannot read a Subclass"),
}


@native_only
class TestElsewhere:
    """Where the kernels cannot run, auto takes the specification and the name is refused."""

    @pytest.mark.filterwarnings("ignore")  # torch.jit says that it is deprecated, and what tracing makes constant
    @pytest.mark.parametrize("name", FUNCTIONS)
    @pytest.mark.parametrize("where", ELSEWHERE)
    def test_transformed_programs(self, where: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        torch.compiler.reset()
        wrap, reason = ELSEWHERE[where]
        if where == "jvp" and name != "tonality_blend":
            pytest.skip("the specification's cut has no forward-mode derivative either")
        want, given = call(name, "reference")
        guarded = Guarded()
        monkeypatch.setattr(launch, "call", guarded)
        got = wrap(call(name, "auto")[0])(*given)
        assert not guarded.calls
        torch.testing.assert_close(torch.as_tensor(got).as_subclass(Tensor), want(*given), rtol=1e-12, atol=1e-12)
        with pytest.raises(Exception, match=f"backend='native' cannot run.*({reason})"):
            wrap(call(name)[0])(*given)

    def test_forward_mode(self) -> None:
        y, *rest = small_blend_arguments()
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(y, torch.ones_like(y))
            assert forward_ad.unpack_dual(tonality_blend(dual, *rest)).tangent is not None
            with pytest.raises(RuntimeError, match="backend='native' cannot run: it has no forward-mode derivative"):
                tonality_blend(dual, *rest, backend="native")

    def test_other_devices(self) -> None:
        x, start, ratio = (v.to("meta") for v in small_arguments()[:3])
        assert resample_windows(x, start, ratio, W).device.type == "meta"
        with pytest.raises(RuntimeError, match="cannot run: a tensor is on meta"):
            resample_windows(x, start, ratio, W, backend="native")

    def test_many_taps(self) -> None:
        given = arguments(50, (3.3137, -4.2931), (0.2172, 0.6172), 3, 33)
        want = windowed_tonality(*given, W, backend="reference")
        assert torch.equal(windowed_tonality(*given, W), want)
        for function, taken in ((windowed_tonality, [*given, W]), (tonality_blend, [want, *given[3:]])):
            with pytest.raises(RuntimeError, match="cannot run: it takes at most 31 taps, got K = 33"):
                function(*taken, backend="native")


class TestLibrary:
    """What is said of a library that cannot be called, and that auto goes on without it."""

    @pytest.fixture(autouse=True)
    def _looked_for_again(self) -> Iterator[None]:
        library._looked = False
        yield
        library.look()

    def refused(self, reason: str) -> None:
        function, given = call("windowed_tonality", "auto")
        want = call("windowed_tonality", "reference")[0](*given)
        assert torch.equal(function(*given), want)
        with pytest.raises(RuntimeError, match=f"backend='native' cannot run: {reason}"):
            call("windowed_tonality")[0](*given)
        with pytest.raises(RuntimeError, match=f"cannot run: {reason}"):
            library.call("turn", torch.float32, 1, 0, 0, 0, given[0], given[0])

    def test_not_built(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(library, "__file__", str(tmp_path / "library.py"))
        self.refused("its library was not built: install the package from source")

    def test_damaged(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / ("_windows" + importlib.machinery.EXTENSION_SUFFIXES[0])).write_bytes(b"no library")
        monkeypatch.setattr(library, "__file__", str(tmp_path / "library.py"))
        self.refused("its library cannot be loaded")

    @native_only
    def test_older_than_its_sources(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(library, "_digest", lambda: "another")
        self.refused("its C sources have changed since it was built")

    @native_only
    def test_an_installed_package_has_no_sources(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(library, "_digest", lambda: None)
        assert library.why_not() is None

    @native_only
    @pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors need no AVX2")
    def test_old_processor(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
        self.refused("it needs a processor with AVX2 and FMA, and PyTorch reports DEFAULT")
