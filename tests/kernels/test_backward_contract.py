"""What the backward pass promises beside values: only what is needed, the same bits, no harm done, 16 bits right."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor
from window_cases import EPS, GEOMETRY, NAMES, arguments

from adaptive_window.kernels import reference

pytest.importorskip("triton")
from triton_calls import tonality_blend_backward, windowed_tonality_backward  # needs triton

from adaptive_window.kernels.triton import transform  # needs triton
from adaptive_window.kernels.triton.configurations import Target
from adaptive_window.kernels.triton.launch import record_launches, use_target
from adaptive_window.kernels.triton.source import Source
from adaptive_window.kernels.weights import Weights

INTERPRETED = os.environ["TRITON_INTERPRET"] == "1"
EVERYTHING = (True,) * 10
Grads = tuple[Tensor | None, ...]


def setup(
    channels: int = 5, taps: int = 3, dtype: torch.dtype = torch.float64, clips: int = 2, window: int = 41
) -> tuple[list[Tensor], Tensor]:
    """A window of a multiple of 4 frames goes through `joint_backward`, others through two kernels in its place."""
    frames, _, starts, ratios = GEOMETRY["inside"]
    values = [v.to(dtype) for v in arguments(frames, starts, ratios, channels, taps)]
    values[:4] = [v[:clips] for v in values[:4]]
    return values, torch.randn(clips, 3, channels, window).to(dtype)


def backward(
    values: list[Tensor], grad_out: Tensor, needs: tuple[bool, ...] = EVERYTHING, restore: str = "none"
) -> Grads:
    if grad_out.is_meta:  # planned, and not run
        source = Source.of_clips(*values[:3])
        return transform.backward(
            grad_out, source, values[3], Weights(*values[4:]), EPS, needs, restore=restore == "frame"
        )
    return windowed_tonality_backward(grad_out, values, EPS, needs, restore)


def needs_of(*names: str) -> tuple[bool, ...]:
    return tuple(name in names for name in NAMES)


SUBSETS = [(name,) for name in NAMES] + [
    ("start", "ratio"),
    ("start", "ratio", "strength"),
    ("x", "start", "ratio", "strength"),
    ("dw", "db", "pw", "pb", "gamma", "beta"),
    ("strength", "beta"),
    ("x", "pw"),
]


@pytest.mark.parametrize(("channels", "window"), [(5, 41), (5, 36), (130, 41)])
@pytest.mark.parametrize("restore", ["none", "frame"])
def test_only_what_is_needed(channels: int, window: int, restore: str, device: torch.device) -> None:
    """Any subset of gradients: None for the rest, and for those what a full backward gives.

    In the interpreter to the bit. On a GPU every subset is a kernel compiled for itself, whose multiplications and
    additions the compiler may fuse otherwise: equal but for rounding, and the same bits at every run.
    """
    values, grad_out = setup(channels, clips=1, window=window)
    values, grad_out = [v.to(device) for v in values], grad_out.to(device)
    full = backward(values, grad_out, restore=restore)
    for subset in SUBSETS if channels == 5 else SUBSETS[11:12]:
        got = backward(values, grad_out, needs_of(*subset), restore)
        again = backward(values, grad_out, needs_of(*subset), restore) if device.type != "cpu" else got
        assert all(a is b or torch.equal(a, b) for a, b in zip(got, again, strict=True)), subset
        for name, g, f in zip(NAMES, got, full, strict=True):
            if name in subset:
                assert g is not None
                assert f is not None
                if device.type == "cpu":
                    assert torch.equal(g, f), (subset, name)
                else:
                    assert float((g - f).abs().max()) <= 1e-12 * float(f.abs().max()), (subset, name)
            else:
                assert g is None, (subset, name)


CHAIN = ["prepare_weights", "recompute_windows", "norm_backward"]
WINDOW, FINISH = "window_backward", "finish_gradients"
LAUNCHES = {
    NAMES: [*CHAIN, "product_backward", WINDOW, "resample_dx", FINISH],
    ("x", "start", "ratio", "strength"): [*CHAIN, "product_backward", WINDOW, "resample_dx", FINISH],
    ("start", "ratio", "strength"): [*CHAIN, "product_backward", WINDOW, FINISH],
    ("dw",): [*CHAIN, "product_backward", WINDOW, FINISH],
    ("strength",): [*CHAIN, WINDOW, FINISH],
    ("x",): [*CHAIN, "product_backward", WINDOW, "resample_dx"],
    ("pw",): [*CHAIN, "product_backward", FINISH],
    ("db",): [*CHAIN, FINISH],
    ("pb",): [*CHAIN, FINISH],
    ("gamma",): [*CHAIN, FINISH],
    ("beta",): ["prepare_weights", WINDOW, FINISH],
}


@pytest.mark.parametrize("subset", LAUNCHES)
@pytest.mark.parametrize(("arch", "window"), [(90, 40), (90, 41), (80, 40)])
@pytest.mark.parametrize("restore", ["none", "frame"])
def test_launches(subset: tuple[str, ...], arch: int, window: int, restore: str) -> None:
    """Recorded on tensors without memory, as a GPU would launch them."""
    values, grad_out = setup(dtype=torch.float32, window=window)
    values, grad_out = [v.to("meta") for v in values], grad_out.to("meta")
    with use_target(Target(arch, 108)), record_launches() as launches:
        backward(values, grad_out, needs_of(*subset), restore)
    wanted = list(LAUNCHES[subset])
    if arch == 80 and subset == NAMES:  # dz and the weight's gradient do not fit the registers together
        wanted.insert(3, "product_backward")
    if (arch, window, restore) == (90, 40, "none"):
        wanted = [name.replace("norm_backward", "joint_backward") for name in wanted if name != "product_backward"]
    assert [one.name for one in launches] == wanted
    for one in launches:
        if one.name in ("product_backward", "joint_backward"):
            assert one.arguments["NEED_WEIGHT"] == ("pw" in subset) or one.arguments["NEED_DZ"]
            assert not one.arguments["NEED_WEIGHT"] or "pw" in subset
        if one.name == "joint_backward":
            assert one.arguments["NEED_DZ"] == bool({"x", "start", "ratio", "dw"} & set(subset))
        if one.name == "window_backward":
            assert one.arguments["NEED_PLACE"] == bool({"start", "ratio"} & set(subset))
            assert one.arguments["NEED_TAPS"] == ("dw" in subset)


@pytest.mark.parametrize("window", [40, 41])
def test_two_backward_passes_are_bit_equal(window: int, device: torch.device) -> None:
    values, grad_out = setup(dtype=torch.float32, clips=1, window=window)
    values, grad_out = [v.to(device) for v in values], grad_out.to(device)
    for first, second in zip(backward(values, grad_out), backward(values, grad_out), strict=True):
        assert first is not None
        assert second is not None
        assert torch.equal(first, second)


def test_nan_stays_in_its_window(device: torch.device) -> None:
    """A window without a place has no gradients; the other clip's and the other windows' are what they were."""
    values, grad_out = setup()
    values, grad_out = [v.to(device) for v in values], grad_out.to(device)
    clean = backward(values, grad_out)
    for argument in (1, 2):
        broken = [v.clone() for v in values]
        broken[argument][1, 2] = float("nan")
        dx, dstart, dratio, dstrength, *_ = backward(broken, grad_out)
        assert dx is not None
        assert clean[0] is not None
        assert torch.equal(dx[0], clean[0][0])
        for got, was in zip((dstart, dratio, dstrength), clean[1:4], strict=True):
            assert got is not None
            assert was is not None
            assert got[1, 2].isnan()
            assert torch.equal(got.flatten()[:-1], was.flatten()[:-1])


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), 1e30, -1e30])
def test_absurd_windows_are_held_at_the_edge(value: float, device: torch.device) -> None:
    values, grad_out = setup()
    values, grad_out = [v.to(device) for v in values], grad_out.to(device)
    values[1][0, 1] = value
    values[2][1, 0] = value
    got = backward(values, grad_out)
    assert all(g is not None and bool(g.isfinite().all()) for g in got)
    assert got[1] is not None
    assert float(got[1][0, 1]) == 0


@pytest.mark.parametrize("case", ["over the right edge", "one frame", "ratio below 1"])
def test_nothing_unsafe(case: str) -> None:
    """No access out of bounds, no race, nothing read that was not written, no overflow; NaN and infinity included."""
    if not INTERPRETED:
        pytest.skip("the sanitizer watches the interpreter; compute-sanitizer watches the GPU")
    from sanitizer import Sanitizer

    frames, window, starts, ratios = GEOMETRY[case]
    channels = 130 if case == "one frame" else 5
    values = arguments(frames, starts, ratios, channels, 7)
    values[1][1, 2] = float("nan")
    values[2][1, 1] = float("inf")
    grad_out = torch.randn(2, 3, channels, window, dtype=torch.float64)
    with Sanitizer() as sanitizer:
        backward(values, grad_out)
        tonality_blend_backward(grad_out, [grad_out, *values[3:]], EPS, EVERYTHING[:8])
    assert sanitizer.accesses > 100


ROUNDING = {torch.bfloat16: 2.0**-9, torch.float16: 2.0**-11}


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("wide_place", [False, True])
def test_16_bits(dtype: torch.dtype, wide_place: bool) -> None:
    """Sums in float32, one rounding at the end, beside that of the products' operands (z, du, Â) to bfloat16.

    Interpreted, with bfloat16 and TF32 arithmetic as hardware does it.
    """
    if not INTERPRETED:
        pytest.skip("emulates in the interpreter what the GPU then does itself")
    from interpreter_bf16 import corrected_arithmetic

    values, grad_out = setup(16, 7, dtype)
    if wide_place:
        values[1:3] = [v.float() + 0.001 for v in values[1:3]]
    leaves = [v.double().requires_grad_() for v in values]
    out = reference.windowed_tonality(*leaves, grad_out.shape[3], EPS)
    wanted = torch.autograd.grad(out, leaves, grad_out.double())
    precision = "bf16" if dtype == torch.bfloat16 else "tf32"
    with use_target(Target(0, 3, precision)), corrected_arithmetic():
        got = backward(values, grad_out)
    for name, v, g, w in zip(NAMES, values, got, wanted, strict=True):
        assert g is not None
        assert g.dtype == v.dtype
        # three rounded operands in a row (Â and z, then du), and the result: 4 roundings, each at most `rounding`
        assert float((g.double() - w).norm() / w.norm()) <= 4 * ROUNDING[dtype], name


@pytest.mark.parametrize("window", [40, 41])
def test_float32_without_tf32(window: int) -> None:
    """Three bfloat16 products: three parts of 2⁻¹⁸ each, for each of the products that follow one another."""
    if not INTERPRETED:
        pytest.skip("emulates in the interpreter what the GPU then does itself")
    from interpreter_bf16 import corrected_arithmetic

    values, grad_out = setup(16, 7, torch.float32, window=window)
    leaves = [v.double().requires_grad_() for v in values]
    out = reference.windowed_tonality(*leaves, grad_out.shape[3], EPS)
    wanted = torch.autograd.grad(out, leaves, grad_out.double())
    with use_target(Target(0, 3, "bf16x3")), corrected_arithmetic(), record_launches() as launches:
        got = backward(values, grad_out)
    assert {one.arguments["dz_ptr"].dtype for one in launches if "dz_ptr" in one.arguments} == {torch.float32}
    for name, g, w in zip(NAMES, got, wanted, strict=True):
        assert g is not None
        assert float((g.double() - w).norm() / w.norm()) <= 2 * 3 * 2.0**-18, name


def test_tf32_is_better_than_that_in_one_kernel() -> None:
    """`joint_backward` multiplies as three bfloat16 products; the forward's part of it, z, is exact to 2⁻¹⁸ as well."""
    if not INTERPRETED:
        pytest.skip("emulates in the interpreter what the GPU then does itself")
    from interpreter_bf16 import corrected_arithmetic

    values, grad_out = setup(16, 7, torch.float32, window=40)
    leaves = [v.double().requires_grad_() for v in values]
    out = reference.windowed_tonality(*leaves, grad_out.shape[3], EPS)
    wanted = torch.autograd.grad(out, leaves, grad_out.double())
    with use_target(Target(0, 3, "tf32")), corrected_arithmetic(), record_launches() as launches:
        got = backward(values, grad_out)
    assert {one.arguments["PRECISION"] for one in launches if one.name == "joint_backward"} == {"bf16x3"}
    passed = [tuple(one.arguments[name].dtype for name in ("dz_ptr", "dz_lo_ptr")) for one in launches[2:4]]
    assert passed == [(torch.int16, torch.int8)] * 2, "dz in 24 bits, from `joint_backward` to `window_backward`"
    for name, g, w in zip(NAMES, got, wanted, strict=True):
        assert g is not None
        assert float((g.double() - w).norm() / w.norm()) <= 2 * 3 * 2.0**-18, name
