"""`windowed_tonality` and `tonality_blend` on the Triton backend: forward values, precision, and gradients end to end.

The backward kernels have tests of their own (`test_backward_*`); here they run through autograd.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from reference_cases import assert_unchanged
from torch import Tensor
from window_cases import EPS, GEOMETRY, arguments

from adaptive_window.kernels import reference, resample_windows, tonality_blend, windowed_tonality
from adaptive_window.kernels.validation import RESTORE

pytest.importorskip("triton")
from adaptive_window.kernels.triton import transform
from adaptive_window.kernels.triton.configurations import Target
from adaptive_window.kernels.triton.launch import precision_of, record_launches, use_target
from adaptive_window.kernels.triton.source import Source
from adaptive_window.kernels.weights import Weights


def triton(*values: Tensor, window: int, restore: str = "none") -> Tensor:
    return windowed_tonality(*values, window, eps=EPS, restore=restore, backend="triton")


def truth(values: Sequence[Tensor], window: int, restore: str = "none") -> Tensor:
    return reference.windowed_tonality(*(v.double() for v in values), window, EPS, restore)


def assert_close(got: Tensor, wanted: Tensor, tolerance: float = 1e-10) -> None:
    assert got.shape == wanted.shape
    assert got.is_contiguous()
    assert float((got - wanted).detach().abs().max()) <= tolerance * max(1.0, float(wanted.detach().abs().max()))


@pytest.mark.parametrize("case", GEOMETRY)
def test_windows_of_every_kind(case: str, device: torch.device) -> None:
    frames, window, starts, ratios = GEOMETRY[case]
    values = [v.to(device) for v in arguments(frames, starts, ratios, channels=3, taps=7)]
    for restore in RESTORE:
        assert_close(triton(*values, window=window, restore=restore), truth(values, window, restore))


# W = 131: several tiles, the last not full; 160 channels, or 31 and 67 taps in the interpreter: the way in steps
SHAPES = [(1, 7, 131), (16, 3, 5), (24, 1, 40), (48, 7, 64), (100, 3, 25), (128, 7, 50), (160, 7, 67), (4, 31, 131)]


@pytest.mark.parametrize(("channels", "taps", "window"), [*SHAPES, (3, 67, 40), (3, 131, 150)])
@pytest.mark.parametrize("pairs", [1, 3])
def test_shapes(channels: int, taps: int, window: int, pairs: int, device: torch.device) -> None:
    starts, ratios = (3.3137, -4.2931, 40.2137)[:pairs], (1.1172, 0.8172, 1.4987)[:pairs]
    values = [v.to(device) for v in arguments(window + 31, starts, ratios, channels, taps)]
    values = [v[:1] if n < 4 else v for n, v in enumerate(values)]
    y, *rest = (truth(values, window), *values[3:])
    for restore in RESTORE:
        assert_close(triton(*values, window=window, restore=restore), truth(values, window, restore))
        blend = tonality_blend(y, *rest, eps=EPS, restore=restore, backend="triton")
        assert_close(blend, reference.tonality_blend(y, *rest, EPS, restore))


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda v: v.transpose(-1, -2).contiguous().transpose(-1, -2),
    "sliced": lambda v: torch.stack((v, -v), -1).flatten(-2)[..., ::2],
    "part of the channels": lambda v: torch.cat((v, v), -2)[..., v.shape[-2] :, :],
    "one clip for all": lambda v: v[:1].expand_as(v),
    "one channel for all": lambda v: v[..., :1, :].expand_as(v),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, device: torch.device) -> None:
    x, start, ratio, strength, *weights = (v.to(device) for v in arguments(60, (3.3, 7.7), (1.1, 1.3), 5, 3))
    start, ratio, strength = torch.stack((start, ratio, strength), -1).unbind(-1)
    weights = [torch.stack((w, w), -1)[..., 0] for w in weights]
    values = [LAYOUTS[layout](x), start, ratio, strength, *weights]
    assert_close(triton(*values, window=19), truth(values, 19))
    y = LAYOUTS[layout](torch.randn(2, 2, 5, 19, dtype=torch.float64, device=device))
    got = tonality_blend(y, strength, *weights, eps=EPS, backend="triton")
    assert_close(got, reference.tonality_blend(y, strength, *weights, EPS))


@pytest.mark.parametrize("channels", [6, 130])
def test_no_strength_is_no_change(channels: int, device: torch.device) -> None:
    # short binary fractions: positions are exact, wherever a tile begins
    values = [v.float().to(device) for v in arguments(60, (3.25, 7.5), (1.125, 1.25), channels, 7)]
    values[3] = torch.zeros_like(values[3])
    got, wanted = triton(*values, window=19), resample_windows(*values[:3], 19, backend="triton")
    if device.type == "cpu":
        assert torch.equal(got, wanted)
    else:  # two kernels: the compiler may fuse another of the two products of an interpolation with its sum
        step = torch.finfo(torch.float32).eps * float(values[0].abs().max())
        assert float((got - wanted).abs().max()) <= 2 * step


@pytest.mark.parametrize("channels", [6, 64, 130])
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_restored_it_changes_nothing_until_trained(channels: int, strength: float, device: torch.device) -> None:
    if device.type != "cpu":
        pytest.skip("a float32 product of tensor cores is no identity to the last bit")
    assert_unchanged("triton", strength, channels, device)


@pytest.mark.parametrize("frames", [97, 200_000])
@pytest.mark.parametrize("restore", RESTORE)
def test_float32_is_as_good_as_pytorch(
    frames: int, restore: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    starts = (0.31 * frames + 0.3137, frames - 91.3, -7.3, frames - 30.7)
    values = [v.float().to(device) for v in arguments(frames, starts, (1.3172, 1.4987, 0.7731, 1.25), 32, 7)]
    wanted = truth(values, 61, restore)
    theirs = reference.windowed_tonality(*values, 61, EPS, restore)
    got = triton(*values, window=61, restore=restore)
    if device.type == "cpu":
        assert float((got - wanted).abs().max()) <= 2 * float((theirs - wanted).abs().max())
    else:  # three bfloat16 products: 3·2⁻¹⁸ of the norms, beside float32's own error
        bound = 2 * float((theirs - wanted).norm()) + 3 * 2.0**-18 * float(wanted.norm())
        assert float((got - wanted).norm()) <= bound


# of one operand of the product; a sum of two bfloat16 numbers has 17 bits
ROUNDING = {"bf16": 2.0**-9, "tf32": 2.0**-11, "bf16x3": 2.0**-18}


class TestPrecisions:
    """Interpreted with bfloat16 and TF32 as hardware computes them, in the block sizes of a GPU."""

    @pytest.mark.parametrize(
        ("dtype", "precision"),
        [
            (torch.float32, "tf32"),
            (torch.float32, "bf16x3"),
            (torch.bfloat16, "bf16"),
            (torch.float16, "tf32"),
        ],
    )
    @pytest.mark.parametrize("channels", [20, 70, 130])
    def test_error(self, dtype: torch.dtype, precision: str, channels: int, device: torch.device) -> None:
        if device.type != "cpu":
            pytest.skip("emulates in the interpreter what the GPU then does itself")
        from interpreter_bf16 import corrected_arithmetic

        window = 141 if channels <= 128 else 12
        values = [v.to(dtype) for v in arguments(200, (3.25, 11.5), (1.25, 1.0), channels, 7)]
        with use_target(Target(90, 2, precision)), corrected_arithmetic():
            got, restored = (triton(*values, window=window, restore=restore) for restore in RESTORE)
        assert got.dtype == restored.dtype == dtype
        # two operands of the product (three terms left out of it for "bf16x3"), then the result itself
        bound = 3 * ROUNDING[precision] + torch.finfo(dtype).eps / 2
        for found, restore in ((got, "none"), (restored, "frame")):
            wanted = truth(values, window, restore)
            assert float((found - wanted).norm()) <= bound * float(wanted.norm())

    def test_float16_beyond_its_range_inside(self, device: torch.device) -> None:
        """The convolutions overflow float16, LayerNorm brings the result back."""
        values = [v.to(torch.float16).to(device) for v in arguments(60, (3.25,), (1.25,), 4, 7)]
        values[0], values[4] = values[0] * 3000, values[4] * 300
        got = triton(*values, window=19)
        wanted = truth(values, 19)
        assert float((got - wanted).norm()) <= 2e-3 * float(wanted.norm())

    def test_follows_pytorchs_switch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        gpu = Target(90, 132)
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
        assert precision_of(torch.float32, gpu) == "tf32"
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
        assert precision_of(torch.float32, gpu) == "bf16x3"
        assert precision_of(torch.float64, gpu) == "fp64"
        assert precision_of(torch.bfloat16, gpu) == "bf16"
        assert precision_of(torch.float16, gpu) == "tf32"
        assert precision_of(torch.float32, Target(0, 1)) == "ieee"

    @pytest.mark.parametrize("allowed", [True, False])
    def test_many_channels_follow_the_same_switch(self, allowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        """C = 160, both passes, as planned for a GPU: the switch for convolutions, not the one for products."""
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
        matmul_before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest" if allowed else "high")
        values = [v.float().to("meta") for v in arguments(60, (3.25,), (1.25,), 160, 7)]
        grad_out = torch.empty(2, 1, 160, 40, device="meta")
        try:
            self.plan_wide(values, grad_out, allowed)
        finally:
            torch.set_float32_matmul_precision(matmul_before)

    def plan_wide(self, values: list[Tensor], grad_out: Tensor, allowed: bool) -> None:
        weights = Weights(*values[4:])
        with use_target(Target(90, 132)), record_launches() as launches:
            transform.forward(Source.of_clips(*values[:3]), values[3], weights, 40, EPS)
            source = Source.of_clips(*values[:3])
            transform.backward(grad_out, source, values[3], weights, EPS, (True,) * 10)
        products = [one for one in launches if one.name in ("wide_product", "wide_weight")]
        assert [one.name for one in products] == ["wide_product", "wide_product", "wide_product", "wide_weight"]
        assert {one.arguments["PRECISION"] for one in products} == {"tf32" if allowed else "bf16x3"}
        operand = torch.float32 if allowed else torch.bfloat16
        assert all(v.dtype == operand for one in products for k, v in one.arguments.items() if k.endswith("_lo_ptr"))

    def test_follows_the_newer_switch(self) -> None:
        before = torch.backends.cudnn.conv.fp32_precision
        try:
            torch.backends.cudnn.conv.fp32_precision = "ieee"
            assert precision_of(torch.float32, Target(80, 108)) == "bf16x3"
            torch.backends.cudnn.conv.fp32_precision = "tf32"
            assert precision_of(torch.float32, Target(80, 108)) == "tf32"
        finally:
            torch.backends.cudnn.conv.fp32_precision = before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype, device: torch.device) -> None:
    """float32 signals and weights are cast as a convolution's are; start and ratio keep float32; so do gradients."""
    values = [v.float().to(device) for v in arguments(60, (33.3137, 7.7219), (1.1172, 1.3172), 5, 7)]
    leaves = [v.clone().requires_grad_() for v in values]
    with torch.autocast(device.type, dtype=dtype):
        with record_launches() as launches:
            out = triton(*leaves, window=19)
        explicit = triton(*(v if n in (1, 2) else v.to(dtype) for n, v in enumerate(values)), window=19)
    assert out.dtype == dtype
    assert torch.equal(out, explicit)
    assert launches[-1].arguments["start_ptr"].dtype == torch.float32
    grads = torch.autograd.grad(out, leaves, torch.ones_like(out))
    assert all(g.dtype == torch.float32 for g in grads)
    wide = [v.double() for v in values]
    with torch.autocast(device.type, dtype=dtype):
        got = triton(*wide, window=19)
    assert torch.equal(got, triton(*wide, window=19))  # float64 is left alone, as PyTorch's autocast leaves it


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_absurd_windows(dtype: torch.dtype, device: torch.device) -> None:
    starts = (0.0, 1e30, -math.inf, math.nan, -3.5, 5.0)
    ratios = (1e30, 1.0, math.inf, 1.0, math.nan, -1e30)
    values = [v.to(dtype).to(device) for v in arguments(61, starts, ratios, 5, 7)]
    values[1], values[2] = values[1].nan_to_num(math.nan), values[2]
    got, wanted = triton(*values, window=21), truth(values, 21)
    absent = values[1].isnan() | values[2].isnan()
    assert got[absent].isnan().all()
    assert not got[~absent].isnan().any()
    if dtype == torch.float64 or device.type == "cpu":
        assert_close(got[~absent], wanted[~absent], 1e-10 if dtype == torch.float64 else 1e-5)
    else:  # three bfloat16 products: 3·2⁻¹⁸ of the norms, beside float32's own error
        theirs = reference.windowed_tonality(*values, 21, EPS)
        near, far = ((v - wanted)[~absent].norm() for v in (got, theirs))
        assert float(near) <= 2 * float(far) + 3 * 2.0**-18 * float(wanted[~absent].norm())


SUBSETS = [(1, 2), (0, 3, 8), tuple(range(10))]


@pytest.mark.parametrize("subset", SUBSETS)
def test_gradcheck(subset: tuple[int, ...], device: torch.device) -> None:
    values = [v[:1] if n < 4 else v for n, v in enumerate(arguments(17, (3.3137, -4.2931), (1.1172, 0.6172), 3, 3))]
    leaves = [v.to(device).clone().requires_grad_(n in subset) for n, v in enumerate(values)]
    assert torch.autograd.gradcheck(lambda *v: triton(*v, window=7), leaves, fast_mode=True)


@pytest.mark.parametrize("subset", [(1,), tuple(range(8))])
def test_gradcheck_of_the_blend(subset: tuple[int, ...], device: torch.device) -> None:
    rest = arguments(17, (0.0, 0.0), (1.0, 1.0), 3, 3)[3:]
    values = [torch.randn(1, 2, 3, 9, dtype=torch.float64), rest[0][:1], *rest[1:]]
    leaves = [v.to(device).clone().requires_grad_(n in subset) for n, v in enumerate(values)]
    assert torch.autograd.gradcheck(lambda *v: tonality_blend(*v, backend="triton"), leaves, fast_mode=True)


def test_two_passes_are_bit_equal(device: torch.device) -> None:
    values = [v.float().to(device) for v in arguments(97, (3.3, -4.2, 60.0), (1.1, 0.6, 2.0), 20, 7)]
    runs = []
    for _ in range(2):
        leaves = [v.clone().requires_grad_() for v in values]
        out = triton(*leaves, window=41)
        runs.append((out, *torch.autograd.grad(out, leaves, out.detach())))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize(("clips", "pairs"), [(0, 2), (2, 0)])
def test_nothing_to_do(clips: int, pairs: int, device: torch.device) -> None:
    values = arguments(9, (1.0, 1.0), (1.0, 1.0), 3, 3)
    values = [values[0][:clips], *(v[:clips, :pairs] for v in values[1:4]), *values[4:]]
    leaves = [v.to(device).clone().requires_grad_() for v in values]
    out = triton(*leaves, window=4)
    assert out.shape == (clips, pairs, 3, 4)
    grads = torch.autograd.grad(out, leaves, torch.ones_like(out))
    assert [g.shape for g in grads] == [v.shape for v in leaves]
    assert not any(g.any() for g in grads)


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("taps", [1, 3, 7, 13])
def test_frames_come_by_fours(arch: int, taps: int) -> None:
    """What the compiler is told of the forward kernel's stores where W is a multiple of 4, and believes."""
    weights = Weights(*(torch.empty(size, device="meta") for size in ((64, 1, taps), (64,), (64, 64, 1), *[(64,)] * 3)))
    for window in (4, 40, 132, 800):
        x, places = torch.empty(2, 64, 300, device="meta"), torch.empty(2, 3, device="meta")
        with use_target(Target(arch, 132, "tf32")), record_launches() as launches:
            transform.forward(Source.of_clips(x, places, places), places, weights, window, EPS)
        (one,) = (launch.arguments for launch in launches if launch.name == "windowed_tonality_forward")
        for frames in (one["HALO"], one["JOINED"], one["BLOCK_T"] - 2 * one["HALO"], one["W"]):
            assert frames % 4 == 0
