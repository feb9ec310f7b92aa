"""What every mutant of the kernels has to get through: short, and stops at the first thing that is wrong.

    TRITON_INTERPRET=1 PYTHONPATH=tests/support python -m killing_suite

Values against the specification, NaN in all memory that nobody wrote, and the sanitizer, on cases chosen so that each
line of the kernels matters in at least one: several tiles and programs, channels on both sides of the padding, windows
over either edge, ratios far below 1, long clips in float32, 16-bit signals, tensors beyond 2³¹ elements.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Iterator

import torch
import triton
import triton.language as tl
from huge_tensors import HUGE, check_huge_tensors
from interpreter_bf16 import corrected_arithmetic
from random_cases import Case, argument_names, arguments, check, laid_out, run
from sanitizer import Sanitizer
from torch import Tensor

from adaptive_window.kernels import resample_windows
from adaptive_window.kernels.triton.operands import pack, unpack

PLAIN = Case(
    seed=1,
    function="windowed_tonality",
    dtype=torch.float64,
    batch=2,
    pairs=2,
    channels=3,
    frames=61,
    window=23,
    taps=7,
    layout="plain",
    grad_layout="plain",
    absurd=False,
    needs=frozenset(argument_names("windowed_tonality")),
)


def crafted_cases() -> Iterator[Case]:
    """Float64 cases; `seed` also decides the places of the windows."""

    def case(function: str, seed: int, needs: list[str] | None = None, **changes: object) -> Case:
        asked = frozenset(argument_names(function) if needs is None else needs)
        return dataclasses.replace(PLAIN, function=function, needs=asked, seed=seed, **changes)

    # windows of whole multiples of 4 frames: z to dz in one kernel
    yield case("windowed_tonality", 40, window=76, channels=17, batch=1, taps=3)
    yield case("tonality_blend", 41, window=36, channels=66, batch=1, taps=1, restore="frame")
    for seed in range(8, 16):
        yield case("resample_windows", seed, pairs=3, batch=1)
    yield case("resample_windows", 16, frames=97, window=61, layout="sliced", channels=70, grad_layout="transposed")
    yield case("resample_windows", 17, frames=1, window=3, layout="transposed")
    yield case("resample_windows", 18, absurd=True, pairs=3, grad_layout="sliced")
    yield case("resample_windows", 43, channels=128, frames=16, window=9, batch=1)  # two whole chunks of channels
    yield case("windowed_tonality", 1)
    yield case("windowed_tonality", 2, frames=97, window=53, taps=9, channels=17, layout="sliced", pairs=1)
    yield case("windowed_tonality", 3, channels=65, window=5, batch=1, grad_layout="transposed", taps=3)
    yield case("windowed_tonality", 4, channels=130, window=33, batch=1, pairs=1, layout="transposed", taps=3)
    yield case("windowed_tonality", 5, absurd=True, taps=3, batch=1)
    yield case("windowed_tonality", 25, window=130, batch=1, pairs=1, channels=2, taps=5)  # several tiles of any size
    # likewise, with channels and tiles read ahead, some of them before the clip
    yield case("windowed_tonality", 42, dtype=torch.float32, window=130, batch=1, pairs=3, channels=2, taps=5)
    yield case("windowed_tonality", 26, window=2, frames=7, batch=3, pairs=6, taps=1)  # more windows than a sum's block
    yield case("windowed_tonality", 6, frames=1, window=1, layout="expanded", taps=1)
    yield case("tonality_blend", 7, layout="transposed", grad_layout="sliced", taps=3, channels=17)
    yield case("tonality_blend", 19, channels=130, window=9, batch=1, layout="sliced", taps=1)
    yield case("windowed_tonality", 27, channels=17, window=33, batch=1, taps=3, restore="frame")
    yield case("windowed_tonality", 28, channels=130, window=33, batch=1, pairs=2, taps=3, restore="frame")
    yield case("windowed_tonality", 29, channels=66, window=1, batch=1, taps=1, restore="frame")
    yield case("tonality_blend", 30, channels=66, window=5, batch=1, taps=1, layout="sliced", restore="frame")
    for seed, name in enumerate(("x", "ratio", "strength", "norm_weight", "pointwise_bias"), 31):
        yield case("windowed_tonality", seed, [name], batch=1, taps=3, window=9, frames=16, restore="frame")
    for seed, name in enumerate(("start", "strength", "depthwise_bias", "norm_weight", "norm_bias"), 20):
        yield case("windowed_tonality", seed, [name], batch=1, taps=3, window=9, frames=16)


def check_tile_borders() -> None:
    """Frames held at the window's edges between two samples that belong to different tiles of dx, of 32 or 128."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, 300, dtype=torch.float64, generator=generator)
    start = torch.tensor([[31.6, 63.4, 127.3, 100.0]], dtype=torch.float64)
    ratio = torch.tensor([[0.3, 0.02, 0.07, 0.25391]], dtype=torch.float64)  # the last window ends between 127 and 128
    values = {"x": x, "start": start, "ratio": ratio}
    case = dataclasses.replace(PLAIN, function="resample_windows", window=111, needs=frozenset(values))
    weight = torch.randn(1, 4, 3, 111, dtype=torch.float64, generator=generator)
    _, grads = run(case, "triton", weight, values)
    _, exact = run(case, "reference", weight, values)
    for name, value in grads.items():
        torch.testing.assert_close(value, exact[name], rtol=1e-10, atol=1e-10, msg=lambda text, n=name: f"{n}: {text}")


def check_cases() -> None:
    for case in crafted_cases():
        try:
            check(case)
        except Exception as error:
            error.add_note(str(case))
            raise


def check_many_shares() -> None:
    """Of more channels than one program holds, a sum of dâ is one row, and those of dÂ are one per program."""
    from adaptive_window.kernels.triton.configurations import Target
    from adaptive_window.kernels.triton.launch import use_target

    needs = frozenset({"pointwise_weight", "depthwise_bias"})
    with use_target(Target(0, 18)):  # 4 programs of each 64 x 64 channels
        check(dataclasses.replace(PLAIN, channels=130, window=33, batch=1, pairs=3, taps=1, needs=needs))


def relative_error(got: Tensor, truth: Tensor) -> float:
    return ((got.double() - truth).abs().max() / truth.abs().max()).item()


def gradients(function: Callable[..., Tensor], values: list[Tensor], window: int, backend: str) -> list[Tensor]:
    given = [value.detach().clone().requires_grad_() for value in values]
    out = function(*given, window, backend=backend)
    weight = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape).sin().to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, given, weight)]


def check_long_clips() -> None:
    """Float32 against float64 truth: positions must not be those of float32 arithmetic.

    Those are off by 1/128 of a frame at T = 200,000, and by 1/2048 at T = 12,000 (all of whose samples dx visits). The
    bounds are a hundredth of that, 1e-5 frames times the steepest slope and the rounding of sums of W·C terms included.
    """
    for frames, needs, bound in ((200_000, "start ratio", 1e-4), (12_000, "x", 2e-5)):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(1, 2, frames, generator=generator)
        start = torch.tensor([[0.75 * frames + 0.3, frames - 99.3, 0.4 * frames + 0.77]])
        ratio = torch.tensor([[1.3717, 1.0, 0.6113]])
        values = {"x": x, "start": start, "ratio": ratio}
        case = dataclasses.replace(PLAIN, function="resample_windows", window=40, needs=frozenset(needs.split()))
        weight = torch.randn(1, 3, 2, 40, generator=generator)
        out, grads = run(case, "triton", weight, values)
        exact, exact_grads = run(case, "reference", weight.double(), {k: v.double() for k, v in values.items()})
        for name, mine, truth in (("y", out, exact), *((n, g, exact_grads[n]) for n, g in grads.items())):
            error = relative_error(mine, truth)
            assert error < bound, f"clip of {frames} frames, {name}: relative error {error:.1e}"


def check_tiles_read_ahead() -> None:
    """Float32, several tiles of each program: float64 reads nothing ahead. A frame from elsewhere is off by about 1."""
    case = dataclasses.replace(
        PLAIN, dtype=torch.float32, batch=1, pairs=3, channels=35, window=130, taps=5, needs=frozenset()
    )
    from adaptive_window.kernels.triton.configurations import Target
    from adaptive_window.kernels.triton.launch import use_target

    values = arguments(case)
    with use_target(Target(0, 3, "ieee")):
        out, _ = run(case, "triton", torch.ones(1), values)
    exact, _ = run(case, "reference", torch.ones(1), {name: value.double() for name, value in values.items()})
    assert relative_error(out, exact) < 1e-4


def check_sixteen_bits() -> None:
    """bfloat16 and float16: computed in float32, rounded once.

    So the output is off by half a unit of the last place (2⁻⁸, 2⁻¹¹) and no more, float32 errors being far smaller;
    gradients likewise, being sums in float32 of the same rounded inputs.
    """
    for dtype, half_unit in ((torch.bfloat16, 2.0**-8), (torch.float16, 2.0**-11)):
        for function in ("windowed_tonality", "resample_windows", "tonality_blend"):
            needs = frozenset(argument_names(function))
            case = dataclasses.replace(PLAIN, function=function, dtype=dtype, needs=needs, batch=1, channels=5, taps=3)
            values = arguments(case)
            for name in ("start", "ratio"):  # places are never 16-bit numbers
                if name in values:
                    values[name] = values[name].float() + 0.123
            shape = (case.batch, case.pairs, case.channels, case.window)
            grad = laid_out(shape, "plain", dtype, torch.Generator().manual_seed(3))
            with corrected_arithmetic():
                out, grads = run(case, "triton", grad, values)
            wide = dataclasses.replace(case, dtype=torch.float64)
            exact, exact_grads = run(wide, "reference", grad.double(), {k: v.double() for k, v in values.items()})
            assert out.dtype == dtype
            bound = 1.01 * half_unit * exact.abs() + 1e-4 * half_unit  # the interpreter's product is in float32 as well
            assert bool(((out.double() - exact).abs() <= bound).all()), f"{function}, {dtype}: output"
            for name, value in grads.items():
                error = relative_error(value, exact_grads[name])
                assert error <= 1.01 * half_unit, f"{function}, {dtype}: gradient of {name} is off by {error:.1e}"


def check_three_products() -> None:
    """Float32 without TF32, on tensor cores: three bfloat16 products instead of one leave 2⁻¹⁶, not 2⁻⁸.

    Only in the sum of three do the parts that one product drops come back; the bound lies between, 30 times below the
    error of a single product.
    """
    from adaptive_window.kernels.triton.configurations import Target
    from adaptive_window.kernels.triton.launch import use_target

    # more tiles than programs, for `product_backward`; and TF32's gradients, which are in `joint_backward`, from which
    # dz goes to `window_backward` in 24 bits, two of its tiles
    for precision, window in (("bf16x3", 131), ("tf32", 60)):
        case = dataclasses.replace(PLAIN, dtype=torch.float32, batch=1, channels=17, taps=3, window=window)
        values = arguments(case)
        grad = laid_out((1, case.pairs, case.channels, window), "plain", case.dtype, torch.Generator().manual_seed(3))
        with corrected_arithmetic(), use_target(Target(0, 3, precision)):
            out, grads = run(case, "triton", grad, values)
        wide = {name: value.double() for name, value in values.items()}
        exact, exact_grads = run(dataclasses.replace(case, dtype=torch.float64), "reference", grad.double(), wide)
        results = {**grads, "output": out} if precision == "bf16x3" else grads
        for name, mine in results.items():
            error = relative_error(mine, exact if name == "output" else exact_grads[name])
            assert error <= 2.0**-13, f"{precision} as three products, {name}: relative error {error:.1e}"


@triton.jit
def through_24_bits(a_ptr, upper_ptr, lower_ptr, out_ptr, N: tl.constexpr):
    n = tl.arange(0, N)
    upper, lower = pack(tl.load(a_ptr + n))
    tl.store(upper_ptr + n, upper)
    tl.store(lower_ptr + n, lower)
    tl.debug_barrier()
    tl.store(out_ptr + n, unpack(tl.load(upper_ptr + n), tl.load(lower_ptr + n)))


def check_24_bits() -> None:
    """Sixteen bits of mantissa: off by 2⁻¹⁶ at most, to either side alike; what is no number stays what it is."""
    a = torch.randn(1024, generator=torch.Generator().manual_seed(5)) * torch.logspace(-30, 30, 1024)
    bits = [0x7FFFFFFF, -1, 0x7FC00000, -0x400000, 0x7F800000, -0x800000, 0, -0x80000000]  # NaN, infinities, zeros
    a[: len(bits)] = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    upper, lower, out = torch.empty(1024, dtype=torch.int16), torch.empty(1024, dtype=torch.int8), torch.empty(1024)
    through_24_bits[(1,)](a, upper, lower, out, N=1024)
    finite = a.isfinite()
    assert torch.equal(out.isnan(), a.isnan()), "NaN in 24 bits"
    torch.testing.assert_close(out[4:8], a[4:8], rtol=0, atol=0)
    error = (out.double() / a.double() - 1)[finite & (a != 0)]
    assert error.abs().max() <= 2.0**-16, "rounded to 24 bits"
    assert error.mean().abs() <= 3 * 2.0**-16 / math.sqrt(3 * len(error)), "to the nearest"


def check_poisoned_windows() -> None:
    """NaN in one window's start leaves the others' values and gradients alone, and spoils two frames of the clip's."""
    x = torch.randn(1, 3, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    start = torch.tensor([[4.3173, math.nan, 20.1291]], dtype=torch.float64)
    ratio = torch.tensor([[1.2037, 1.0, 0.7013]], dtype=torch.float64)
    got = gradients(resample_windows, [x, start, ratio], 11, "triton")
    kept = [0, 2]
    want = gradients(resample_windows, [x, start, ratio], 11, "reference")
    assert got[0][:, 1].isnan().all()
    torch.testing.assert_close(got[0][:, kept], want[0][:, kept], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got[1], want[1], rtol=1e-10, atol=1e-10, equal_nan=True)
    for mine, theirs in zip(got[2:], want[2:], strict=True):
        torch.testing.assert_close(mine[:, kept], theirs[:, kept], rtol=1e-10, atol=1e-10)
        assert mine[:, 1].isnan().all()
    # in one pass, where a tile may hold the end of one window and the beginning of the next
    case = dataclasses.replace(PLAIN, batch=1, pairs=3, window=11, needs=frozenset())
    values = arguments(case)
    for spoiled in range(case.pairs):
        placed = values["start"].clone()
        placed[0, spoiled] = math.nan
        out, _ = run(case, "triton", torch.empty(0), {**values, "start": placed})
        true, _ = run(case, "reference", torch.empty(0), {**values, "start": placed})
        assert out[:, spoiled].isnan().all(), "a window without a place"
        torch.testing.assert_close(out, true, rtol=1e-10, atol=1e-10, equal_nan=True)


CHECKS = (
    check_poisoned_windows,
    check_tile_borders,
    check_cases,
    check_many_shares,
    check_long_clips,
    check_tiles_read_ahead,
    check_sixteen_bits,
    check_three_products,
    check_24_bits,
)


def main() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)  # torch.empty gives NaN
    torch.set_num_threads(1)
    with Sanitizer() as sanitizer:
        for run_check in CHECKS:
            began = time.process_time()
            run_check()
            print(f"{run_check.__name__}: {time.process_time() - began:.1f} s", flush=True)
    for name in HUGE:
        check_huge_tensors(name, programs=2)
    print(f"passed: {sanitizer.accesses} memory operations in {sum(sanitizer.launches.values())} launches")


if __name__ == "__main__":
    main()
    sys.exit(0)
