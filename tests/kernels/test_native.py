"""The compiled CPU kernels: equal to the specification, inside their memory, and refused where they cannot run."""

from __future__ import annotations

import ctypes
import dataclasses
import importlib.machinery
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from guarded_memory import Guarded
from random_cases import FUNCTIONS, Case, check
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from window_cases import EPS, GEOMETRY, NAMES, arguments

from adaptive_window.kernels import reference, resample_windows, tonality_blend, windowed_tonality
from adaptive_window.kernels.native import launch, library

HERE = Path(library.__file__).parent
W = 9


def can_be_built() -> bool:
    known = sys.platform.startswith("linux") and platform.machine() in ("x86_64", "aarch64")
    return known and shutil.which("cc") is not None and "AVX" in torch.backends.cpu.get_cpu_capability()


def test_it_was_built() -> None:
    """Installation goes on without it, so nothing else would notice that it no longer compiles."""
    if not can_be_built():
        pytest.skip("this machine has no C compiler, or is of a kind that the kernels are not built for")
    assert library.why_not() is None


native_only = pytest.mark.skipif(library.why_not() is not None, reason=f"no compiled CPU kernels: {library.why_not()}")


def values(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [v.to(dtype) for v in arguments(23, (3.3137, -4.2931), (1.1172, 0.6172), 3, 3)]


def blend_values() -> list[Tensor]:
    return [torch.randn(2, 2, 3, W, dtype=torch.float64), *values()[3:]]


def calls(backend: str) -> dict[str, tuple[Callable[..., Tensor], list[Tensor]]]:
    """Every function with arguments."""
    return {
        "resample_windows": (lambda *v: resample_windows(*v, W, backend=backend), values()[:3]),
        "tonality_blend": (lambda *v: tonality_blend(*v, eps=EPS, backend=backend), blend_values()),
        "windowed_tonality": (lambda *v: windowed_tonality(*v, W, eps=EPS, backend=backend), values()),
    }


def gradients(function: Callable[..., Tensor], given: list[Tensor], grad: Tensor) -> list[Tensor]:
    """The output, and the gradient of every argument."""
    leaves = [v.detach().clone().requires_grad_() for v in given]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))]


@native_only
class TestValues:
    @pytest.mark.parametrize("block", range(10))
    def test_random_cases(self, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """Odd sizes, strides, windows of every kind and absurd places; nothing beyond a tensor is read or written."""
        guarded = Guarded()
        monkeypatch.setattr(launch, "call", guarded)
        for seed in range(100 * block, 100 * block + 100):
            check(dataclasses.replace(Case.draw(seed), arch=0), "native")
        assert set(guarded.calls) == set(library.SIGNATURES)

    @pytest.mark.parametrize("kind", GEOMETRY)
    def test_windows_of_every_kind(self, kind: str) -> None:
        frames, window, starts, ratios = GEOMETRY[kind]
        given = arguments(frames, starts, ratios, 5, 3)
        grad = torch.randn(2, 3, 5, window, dtype=torch.float64)
        both = [
            gradients(lambda *v, b=backend: windowed_tonality(*v, window, eps=EPS, backend=b), given, grad)
            for backend in ("native", "reference")
        ]
        for name, got, want in zip(("out", *NAMES), *both, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}")

    @pytest.mark.parametrize("taps", [1, 5, 7, 31])
    @pytest.mark.parametrize("channels", [7, 16, 40])
    @pytest.mark.parametrize("window", [1, 3, 64, 65, 131])
    def test_around_tiles_and_vectors(self, taps: int, channels: int, window: int) -> None:
        """Windows shorter than the taps, tiles begun and full, channels beside whole vectors."""
        given = arguments(50, (3.3137, -4.2931), (0.2172, 0.6172), channels, taps)
        grad = torch.randn(2, 2, channels, window, dtype=torch.float64)
        both = [
            gradients(lambda *v, b=backend: windowed_tonality(*v, window, eps=EPS, backend=b), given, grad)
            for backend in ("native", "reference")
        ]
        for name, got, want in zip(("out", *NAMES), *both, strict=True):
            scale = max(1.0, float(want.abs().max()))
            torch.testing.assert_close(got, want, rtol=0, atol=1e-11 * scale, msg=lambda m, name=name: f"{name}: {m}")

    @pytest.mark.parametrize("name", FUNCTIONS)
    def test_finite_differences(self, name: str) -> None:
        function, given = calls("native")[name]
        assert torch.autograd.gradcheck(function, [v.requires_grad_() for v in given])

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_16_bits_round_once(self, dtype: torch.dtype) -> None:
        given = [v if n in (1, 2) else v.to(dtype) for n, v in enumerate(values(torch.float32))]
        got = windowed_tonality(*given, W, backend="native")
        wide = windowed_tonality(*(v.float() for v in given), W, backend="native")
        assert got.dtype == dtype
        assert torch.equal(got, wide.to(dtype))

    @pytest.mark.parametrize("batch", [0, 2])
    @pytest.mark.parametrize("pairs", [0, 2])
    def test_empty(self, batch: int, pairs: int) -> None:
        given = [v[:batch] if n < 4 else v for n, v in enumerate(values())]
        given = [v[:, :pairs] if n in (1, 2, 3) else v for n, v in enumerate(given)]
        found = gradients(lambda *v: windowed_tonality(*v, W, backend="native"), given, torch.ones(batch, pairs, 3, W))
        assert [v.shape for v in found[1:]] == [v.shape for v in given]
        assert found[0].shape == (batch, pairs, 3, W)
        assert all(v.isfinite().all() for v in found)

    def test_results_do_not_depend_on_threads(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """To the last bit: sums are kept per tile. (PyTorch's matrix products stay with one number of threads.)"""
        given = [v.float() for v in arguments(300, (3.3137, -40.2931, 99.125), (1.1172, 0.6172, 1.4), 40, 7)]
        grad = torch.randn(2, 3, 40, 200)
        found = []
        for threads in (1, 2, 5):
            monkeypatch.setattr(launch, "_threads", lambda _, threads=threads: threads)
            found.append(gradients(lambda *v: windowed_tonality(*v, 200, backend="native"), given, grad))
        for other in found[1:]:
            assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))

    def test_windows_in_any_number_at_a_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """All of a clip's windows or parts of them: cut into buffers of one, three and all windows."""
        given = arguments(60, (3.3137, -4.2931, 20.125, 7.5321), (1.1172, 0.6172, 1.4, 0.93), 5, 3)
        grad = torch.randn(2, 4, 5, 30, dtype=torch.float64)
        found = []
        for count in (1, 3, 100):
            monkeypatch.setattr(launch, "BUFFER_BYTES", count * 5 * 30 * 8)
            found.append(gradients(lambda *v: windowed_tonality(*v, 30, backend="native"), given, grad))
        for other in found[1:]:
            for a, b in zip(found[0], other, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def plainly(x: Tensor, start: Tensor, ratio: Tensor, strength: Tensor, *weights: Tensor, window: int) -> Tensor:
    """The two operations out of PyTorch's own: `F.grid_sample`, two `F.conv1d`, `F.layer_norm`."""
    dw, db, pw, pb, gamma, beta = weights
    p = reference.window_positions(start.double(), ratio.double(), window, x.shape[2])
    across = (2 * p / (x.shape[2] - 1) - 1).to(x.dtype)
    grid = torch.stack((across, torch.zeros_like(across)), dim=-1)
    y = F.grid_sample(x[:, :, None], grid, padding_mode="border", align_corners=True).transpose(1, 2)
    z = F.conv1d(y.flatten(0, 1), dw, db, padding=dw.shape[-1] // 2, groups=dw.shape[0])
    u = F.conv1d(z, pw, pb).transpose(1, 2)
    v = F.layer_norm(u, gamma.shape, gamma, beta, EPS).transpose(1, 2).reshape(y.shape)
    s = strength[:, :, None, None]
    return (1 - s) * y + s * v


@native_only
@pytest.mark.parametrize("pairs", [1, 3])
def test_float32_is_as_good_as_pytorch(pairs: int) -> None:
    """Error against float64 at most twice that of PyTorch's operations, in the output and in every gradient."""
    torch.manual_seed(3)
    places = ((13.3137, 390.2931, 123.456)[:pairs], (1.4172, 1.0172, 1.2345)[:pairs])
    given = [v.float() for v in arguments(1200, *places, 128, 7)]
    grad = torch.randn(2, pairs, 128, 800)
    wide = [v.double() for v in given]
    truth = gradients(lambda *v: windowed_tonality(*v, 800, eps=EPS, backend="reference"), wide, grad)
    ours = gradients(lambda *v: windowed_tonality(*v, 800, eps=EPS, backend="native"), given, grad)
    theirs = gradients(lambda *v: plainly(*v, window=800), given, grad)
    for name, o, t, w in zip(("out", *NAMES), ours, theirs, truth, strict=True):
        rounding = 2.0**-24 * float(w.norm())  # one, where theirs hardly round
        assert float((o - w).norm()) <= 2 * float((t - w).norm()) + rounding, name


@native_only
class TestCitizenship:
    @pytest.mark.parametrize("name", FUNCTIONS)
    def test_auto_takes_it_on_a_cpu(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        guarded = Guarded()
        monkeypatch.setattr(launch, "call", guarded)
        function, given = calls("auto")[name]
        function(*given)
        assert guarded.calls

    @pytest.mark.parametrize("name", FUNCTIONS)
    def test_second_derivative_is_refused(self, name: str) -> None:
        function, given = calls("native")[name]
        leaves = [v.requires_grad_() for v in given]
        first = torch.autograd.grad(function(*leaves).square().sum(), leaves, create_graph=True)
        with pytest.raises(NotImplementedError, match=r"compiled CPU kernels have no second derivative"):
            sum(g.square().sum() for g in first).backward()

    @pytest.mark.parametrize("name", FUNCTIONS)
    def test_backward_twice(self, name: str) -> None:
        function, given = calls("native")[name]
        leaves = [v.requires_grad_() for v in given]
        out = function(*leaves).sin().sum()
        first = torch.autograd.grad(out, leaves, retain_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(first, torch.autograd.grad(out, leaves), strict=True))

    @pytest.mark.parametrize("name", FUNCTIONS)
    def test_some_gradients_only(self, name: str) -> None:
        function, given = calls("native")[name]
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
            out, u, moments = blend(*values)
            kept.append(len(u))
            return out, u, moments

        monkeypatch.setattr(launch, "blend", watched)
        for function, given in (calls("native")[name] for name in ("tonality_blend", "windowed_tonality")):
            found = [function(*given)]
            leaves = [v.requires_grad_() for v in given]
            for mode in (torch.no_grad(), torch.inference_mode()):
                with mode:
                    found.append(function(*leaves))
            assert not any(v.requires_grad for v in found)
            found.append(function(*leaves))
            assert all(torch.equal(v, found[-1]) for v in found)
            assert kept == [min(count, 4)] * 3 + [4]
            kept.clear()

    @pytest.mark.parametrize("name", ["tonality_blend", "windowed_tonality"])
    def test_autocast_changes_nothing_inside(self, name: str) -> None:
        """16-bit arguments are computed in float32 in both passes, whoever asks for the gradient where."""
        function, given = calls("native")[name]
        given = [v.bfloat16() for v in given]
        grad = torch.randn(2, 2, 3, W)
        want = gradients(function, given, grad)
        with torch.autocast("cpu", torch.bfloat16):
            got = gradients(function, given, grad)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))

    def test_inside_checkpoint(self) -> None:
        function, given = calls("native")["windowed_tonality"]
        grad = torch.randn(2, 2, 3, W, dtype=torch.float64)
        again = gradients(lambda *v: checkpoint(function, *v, use_reentrant=False), given, grad)
        assert all(torch.equal(a, b) for a, b in zip(again, gradients(function, given, grad), strict=True))

    def test_changing_an_input_before_backward_is_noticed(self) -> None:
        for n in (0, 3, 4, 5, 6, 7, 8, 9):  # start and ratio are not read again: frames keep their positions
            leaves = [v.requires_grad_(m == (n + 1) % 10) for m, v in enumerate(values())]
            out = windowed_tonality(*leaves, W, backend="native")
            with torch.no_grad():
                leaves[n].add_(1)
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                out.sum().backward()

    def test_negative_views(self) -> None:
        """`x.neg()` may be a flag of the tensor, which memory does not show."""
        x, *rest = values()
        flagged = torch._neg_view(x)
        assert flagged.is_neg()
        got = windowed_tonality(flagged, *rest, W, backend="native")
        assert torch.equal(got, windowed_tonality(-x, *rest, W, backend="native"))


class Watching(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
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
    "torch.compile": (lambda f: torch.compile(f, fullgraph=True, backend="aot_eager"), "traced"),
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
        want, given = calls("reference")[name]
        guarded = Guarded()
        monkeypatch.setattr(launch, "call", guarded)
        got = wrap(calls("auto")[name][0])(*given)
        assert not guarded.calls
        torch.testing.assert_close(torch.as_tensor(got).as_subclass(Tensor), want(*given), rtol=1e-12, atol=1e-12)
        with pytest.raises(Exception, match=f"backend='native' cannot run.*({reason})"):
            wrap(calls("native")[name][0])(*given)

    def test_forward_mode(self) -> None:
        y, *rest = blend_values()
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(y, torch.ones_like(y))
            assert forward_ad.unpack_dual(tonality_blend(dual, *rest)).tangent is not None
            with pytest.raises(RuntimeError, match="backend='native' cannot run: it has no forward-mode derivative"):
                tonality_blend(dual, *rest, backend="native")

    def test_other_devices(self) -> None:
        x, start, ratio = (v.to("meta") for v in values()[:3])
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
        library._load.cache_clear()
        yield
        library._load.cache_clear()

    def refused(self, reason: str) -> None:
        function, given = calls("auto")["windowed_tonality"]
        want = calls("reference")["windowed_tonality"][0](*given)
        assert torch.equal(function(*given), want)
        with pytest.raises(RuntimeError, match=f"backend='native' cannot run: {reason}"):
            calls("native")["windowed_tonality"][0](*given)
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


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize("flags", ["", "-mavx2 -mfma -fsanitize=undefined -fno-sanitize-recover=all"])
def test_other_builds(flags: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a warning: for processors whose vectors have 16 bytes, and with undefined behaviour made an abort."""
    if "avx2" in flags and not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        pytest.skip("this processor has no AVX2")
    built = tmp_path / "windows.so"
    options = ["-O3", "-fopenmp", "-fno-math-errno", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", *flags.split()]
    command = ["cc", *options, '-DSOURCES="test"', str(HERE / "windows.c"), "-o", str(built), "-lm"]
    subprocess.run(command, check=True)
    other = ctypes.CDLL(str(built))
    library.declare(other)
    monkeypatch.setattr(library, "_load", lambda: other)
    for seed in range(1000, 1060):
        check(dataclasses.replace(Case.draw(seed), arch=0), "native")
