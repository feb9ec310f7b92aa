"""The compiled CPU kernels' values: equal to the specification, as accurate as PyTorch, inside their memory."""

from __future__ import annotations

import ctypes
import dataclasses
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from guarded_memory import Guarded
from native_cases import call, gradients, native_only
from random_cases import FUNCTIONS, Case, check
from reference_cases import plain_modules
from torch import Tensor
from window_cases import EPS, GEOMETRY, NAMES, W, arguments, small_arguments

from adaptive_window.kernels import reference, windowed_tonality
from adaptive_window.kernels.native import launch, library

HERE = Path(library.__file__).parent


def can_be_built() -> bool:
    vectors = torch.backends.cpu.get_cpu_capability().startswith("AVX")
    known = platform.machine() == "aarch64" or (platform.machine() == "x86_64" and vectors)
    return sys.platform.startswith("linux") and known and shutil.which("cc") is not None


def test_it_was_built() -> None:
    """Installation goes on without it, so nothing else would notice that it no longer compiles."""
    if not can_be_built():
        pytest.skip("this machine has no C compiler, or is of a kind that the kernels are not built for")
    assert library.why_not() is None


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

    @staticmethod
    def against_the_specification(given: list[Tensor], window: int) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Output and gradients: their names, ours, the reference's."""
        grad = torch.randn(*given[1].shape, given[0].shape[1], window, dtype=torch.float64)
        both = [
            gradients(lambda *v, b=backend: windowed_tonality(*v, window, eps=EPS, backend=b), given, grad)
            for backend in ("native", "reference")
        ]
        return zip(("out", *NAMES), *both, strict=True)

    @pytest.mark.parametrize("kind", GEOMETRY)
    def test_windows_of_every_kind(self, kind: str) -> None:
        frames, window, starts, ratios = GEOMETRY[kind]
        for name, got, want in self.against_the_specification(arguments(frames, starts, ratios, 5, 3), window):
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}")

    @pytest.mark.parametrize("taps", [1, 5, 7, 31])
    @pytest.mark.parametrize("channels", [7, 16, 40])
    @pytest.mark.parametrize("window", [1, 3, 64, 65, 131])
    def test_around_tiles_and_vectors(self, taps: int, channels: int, window: int) -> None:
        """Windows shorter than the taps, tiles begun and full, channels beside whole vectors."""
        given = arguments(50, (3.3137, -4.2931), (0.2172, 0.6172), channels, taps)
        for name, got, want in self.against_the_specification(given, window):
            scale = max(1.0, float(want.abs().max()))
            torch.testing.assert_close(got, want, rtol=0, atol=1e-11 * scale, msg=lambda m, name=name: f"{name}: {m}")

    @pytest.mark.parametrize("name", FUNCTIONS)
    def test_finite_differences(self, name: str) -> None:
        function, given = call(name)
        assert torch.autograd.gradcheck(function, [v.requires_grad_() for v in given])

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_16_bits_round_once(self, dtype: torch.dtype) -> None:
        given = [v if n in (1, 2) else v.to(dtype) for n, v in enumerate(small_arguments(torch.float32))]
        got = windowed_tonality(*given, W, backend="native")
        wide = windowed_tonality(*(v.float() for v in given), W, backend="native")
        assert got.dtype == dtype
        assert torch.equal(got, wide.to(dtype))

    @pytest.mark.parametrize("batch", [0, 2])
    @pytest.mark.parametrize("pairs", [0, 2])
    def test_empty(self, batch: int, pairs: int) -> None:
        given = [v[:batch] if n < 4 else v for n, v in enumerate(small_arguments())]
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


def plainly(
    x: Tensor, start: Tensor, ratio: Tensor, strength: Tensor, *weights: Tensor, window: int, restore: str
) -> Tensor:
    """The two operations out of PyTorch's own: `F.grid_sample`, and the modules' functions."""
    p = reference.window_positions(start.double(), ratio.double(), window, x.shape[2])
    across = (2 * p / (x.shape[2] - 1) - 1).to(x.dtype)
    grid = torch.stack((across, torch.zeros_like(across)), dim=-1)
    y = F.grid_sample(x[:, :, None], grid, padding_mode="border", align_corners=True).transpose(1, 2)
    return plain_modules(y, strength, *weights, restore=restore)


@native_only
@pytest.mark.parametrize(("pairs", "restore"), [(1, "none"), (3, "none"), (3, "frame")])
def test_float32_is_as_good_as_pytorch(pairs: int, restore: str) -> None:
    """Error against float64 at most twice that of PyTorch's operations, in the output and in every gradient."""
    torch.manual_seed(3)
    places = ((13.3137, 390.2931, 123.456)[:pairs], (1.4172, 1.0172, 1.2345)[:pairs])
    given = [v.float() for v in arguments(1200, *places, 128, 7)]
    grad = torch.randn(2, pairs, 128, 800)
    wide = [v.double() for v in given]
    options = {"eps": EPS, "restore": restore}
    truth = gradients(lambda *v: windowed_tonality(*v, 800, **options, backend="reference"), wide, grad)
    ours = gradients(lambda *v: windowed_tonality(*v, 800, **options, backend="native"), given, grad)
    theirs = gradients(lambda *v: plainly(*v, window=800, restore=restore), given, grad)
    for name, o, t, w in zip(("out", *NAMES), ours, theirs, truth, strict=True):
        rounding = 2.0**-24 * float(w.norm())  # one, where theirs hardly round
        assert float((o - w).norm()) <= 2 * float((t - w).norm()) + rounding, name


@pytest.mark.proof
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
