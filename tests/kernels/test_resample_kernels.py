"""`resample_windows` on the Triton backend: values, gradients, precision, determinism, launches."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from window_cases import GEOMETRY, arguments

from adaptive_window.kernels import reference, resample_windows

pytest.importorskip("triton")
from adaptive_window.kernels.triton.configurations import TABLE, Configuration, Row
from adaptive_window.kernels.triton.launch import record_launches

INF, NAN = math.inf, math.nan


def triton(x: Tensor, start: Tensor, ratio: Tensor, window: int) -> Tensor:
    return resample_windows(x, start, ratio, window, backend="triton")


def row(*values: float, clips: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor([values] * clips, dtype=dtype)


def gradients(function: object, values: Sequence[Tensor], window: int, grad_out: Tensor) -> tuple[Tensor, ...]:
    leaves = [v.detach().clone().requires_grad_() for v in values]
    return torch.autograd.grad(function(*leaves, window), leaves, grad_out)  # type: ignore[operator]  # either of two functions


def assert_close(got: Sequence[Tensor], wanted: Sequence[Tensor], tolerance: float = 1e-10) -> None:
    for g, w in zip(got, wanted, strict=True):
        assert g.shape == w.shape
        assert g.dtype == w.dtype
        assert float((g - w).abs().max()) <= tolerance * max(1.0, float(w.abs().max()))


@pytest.mark.parametrize("case", GEOMETRY)
def test_windows_of_every_kind(case: str, device: torch.device) -> None:
    frames, window, starts, ratios = GEOMETRY[case]
    values = [v.to(device) for v in arguments(frames, starts, ratios, channels=3, taps=1)[:3]]
    wanted = reference.resample_windows(*values, window)
    got = triton(*values, window)
    assert got.is_contiguous()
    assert_close([got], [wanted])
    grad_out = torch.randn_like(wanted)
    assert_close(gradients(triton, values, window, grad_out), gradients(_reference, values, window, grad_out))


def _reference(x: Tensor, start: Tensor, ratio: Tensor, window: int) -> Tensor:
    return reference.resample_windows(x, start, ratio, window)


@pytest.mark.parametrize(("channels", "pairs", "window"), [(1, 3, 131), (24, 1, 33), (128, 3, 40), (160, 1, 131)])
def test_shapes(channels: int, pairs: int, window: int, device: torch.device) -> None:
    """More than one tile of frames, more than one block of channels, and blocks that are not full."""
    starts, ratios = (3.3137, -4.2931, 40.2137)[:pairs], (1.1172, 0.8172, 1.4987)[:pairs]
    values = [v.to(device) for v in arguments(2 * window + 3, starts, ratios, channels, 1)[:3]]
    grad_out = torch.randn(2, pairs, channels, window, dtype=torch.float64, device=device)
    assert_close([triton(*values, window)], [_reference(*values, window)])
    assert_close(gradients(triton, values, window, grad_out), gradients(_reference, values, window, grad_out))


def test_layouts(device: torch.device) -> None:
    """Sliced, transposed and expanded arguments, and a gradient that is one number expanded."""
    x, start, ratio, strength = arguments(60, (3.3137, 7.7219), (1.1172, 1.3172), 5, 1)[:4]
    start, ratio, _ = (v.to(device) for v in torch.stack((start, ratio, strength), -1).unbind(-1))
    for clip in (
        x.transpose(1, 2).contiguous().transpose(1, 2),
        torch.stack((x, -x), -1).flatten(2)[:, :, ::2],
        x[:1].expand(2, -1, -1),
        x[:, :1].expand(-1, 5, -1),
        torch.cat((x, x), 1)[:, 5:],
    ):
        values = [clip.to(device), start, ratio]
        grad_out = torch.ones((), dtype=torch.float64, device=device).expand(2, 2, 5, 19)
        assert_close([triton(*values, 19)], [_reference(*values, 19)])
        assert_close(gradients(triton, values, 19, grad_out), gradients(_reference, values, 19, grad_out))


@pytest.mark.parametrize(("start", "length"), [(0, 40), (5, 60), (37, 47), (20, 80)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_whole_windows_are_interpolate(start: int, length: int, dtype: torch.dtype, device: torch.device) -> None:
    x = torch.randn(1, 3, 100, dtype=dtype, device=device)
    got = triton(x, row(start, dtype=dtype).to(device), row(length / 40, dtype=dtype).to(device), 40)[:, 0]
    wanted = F.interpolate(x[:, :, start : start + length], size=40, mode="linear", align_corners=False)
    # F.interpolate's own positions carry a rounding error of half a step at `length`, ours less; times the slope of x
    slope = float((x[..., 1:] - x[..., :-1]).abs().max())
    assert float((got - wanted).abs().max()) <= 4 * torch.finfo(dtype).eps * (length * slope + float(x.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_short_binary_fractions_are_exact(dtype: torch.dtype, device: torch.device) -> None:
    """Whole samples, quarters of frames: every product and sum is exact, so the result is too."""
    x = torch.randint(-8, 9, (2, 3, 90), device=device).to(dtype)
    start = row(0.0, 7.0, 12.25, 30.5, clips=2, dtype=dtype).to(device)
    ratio = row(1.0, 2.0, 1.5, 0.5, clips=2, dtype=dtype).to(device)
    got = triton(x, start, ratio, 36)
    assert torch.equal(got.double(), _reference(x.double(), start.double(), ratio.double(), 36))


class TestClosedForms:
    def test_constant(self, device: torch.device) -> None:
        x = torch.full((1, 2, 50), 0.7, dtype=torch.float64, device=device)
        got = triton(x, row(3.3, -20.0, 44.0).to(device), row(1.3, 0.4, 2.0).to(device), 20)
        assert float((got - 0.7).abs().max()) <= 2 * torch.finfo(torch.float64).eps

    def test_ramp_is_the_position(self, device: torch.device) -> None:
        x = torch.arange(50.0, dtype=torch.float64, device=device).expand(1, 2, 50)
        start, ratio = row(3.3, -9.1, 44.0).to(device), row(1.3, 0.4, 2.0).to(device)
        wanted = reference.window_positions(start, ratio, 20, 50)
        assert_close([triton(x, start, ratio, 20)[:, :, 1]], [wanted], 1e-13)

    def test_identity_and_shift(self, device: torch.device) -> None:
        x = torch.randn(1, 2, 50, device=device)
        got = triton(x, row(0.0, 13.0, dtype=torch.float32).to(device), torch.ones(1, 2, device=device), 37)
        assert torch.equal(got[:, 0], x[..., :37])
        assert torch.equal(got[:, 1], x[..., 13:])

    def test_impulse(self, device: torch.device) -> None:
        x = torch.zeros(1, 1, 20, dtype=torch.float64, device=device)
        x[..., 7] = 1.0
        got = triton(x, row(0.25).to(device), row(1.0).to(device), 10)[0, 0, 0]
        assert torch.nonzero(got).flatten().tolist() == [6, 7]
        assert got[6:8].tolist() == [0.25, 0.75]


@pytest.mark.parametrize("frames", [97, 1200, 200_000])
def test_float32_is_as_good_as_pytorch(frames: int, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Error against float64 at most twice that of the PyTorch code in float32, at any place of the clip."""
    if device.type == "cpu":  # larger blocks: fewer programs to interpret, and longer walks for the positions
        monkeypatch.setitem(TABLE, "resample_dx", (Row(Configuration({"BLOCK_X": 4096, "BLOCK_C": 16})),))
    window = 61
    end = frames - 1.5 * window
    starts = (0.31 * end + 0.3137, end + 0.3137, -7.3, frames - 30.7)
    ratios = (1.3172, 1.4987, 0.7731, 1.25)
    values = [v.float().to(device) for v in arguments(frames, starts, ratios, 4, 1)[:3]]
    wide = [v.double() for v in values]
    truth = _reference(*wide, window)
    grad_out = torch.randn(truth.shape, device=device)
    ours, our_grads = triton(*values, window), gradients(triton, values, window, grad_out)
    theirs = _reference(*values, window)
    assert float((ours - truth).abs().max()) <= 2 * float((theirs - truth).abs().max())
    wanted = gradients(_reference, wide, window, grad_out.double())
    for g, t, w in zip(our_grads, gradients(_reference, values, window, grad_out), wanted, strict=True):
        # sums in another order differ by their own rounding, a few steps of the largest term
        step = 4 * torch.finfo(torch.float32).eps * float(w.abs().max())
        assert float((g - w).abs().max()) <= 2 * float((t - w).abs().max()) + step


@pytest.mark.proof
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_absurd_windows(dtype: torch.dtype, device: torch.device) -> None:
    """NaN gives NaN in its window alone; everything else is held inside the clip, as the reference holds it."""
    starts = (0.0, -3.5, 96.0, 1e30, -1e30, INF, -INF, NAN, 3e38)
    ratios = (1.0, 0.0, -1.0, 0.31, 1.75, 40.0, 1e30, -1e30, INF, -INF, NAN, 1e-30)
    start = torch.tensor([[s] * len(ratios) for s in starts], dtype=dtype, device=device)
    ratio = torch.tensor([list(ratios)] * len(starts), dtype=dtype, device=device)
    x = torch.rand(len(starts), 2, 97, dtype=dtype, device=device)
    leaves = [v.requires_grad_() for v in (x, start, ratio)]
    out = triton(*leaves, 21)
    absent = start.isnan() | ratio.isnan()
    assert out[absent].isnan().all()
    assert not out[~absent].isnan().any()
    wanted = _reference(x.double(), start.double(), ratio.double(), 21).detach()
    out_wide = out.detach().double()
    # at ratio 40 a float32 position is a sum of numbers up to 840
    tolerance = 1e-10 if dtype == torch.float64 else 4 * torch.finfo(dtype).eps * 840
    assert float((out_wide - wanted)[~absent].abs().max()) <= tolerance
    dx, dstart, dratio = torch.autograd.grad(out, leaves, torch.ones_like(out))
    assert dx[:7].isfinite().logical_or(absent[:7].any(1)[:, None, None]).all()
    assert dstart.isnan().equal(absent)
    assert dratio.isnan().equal(absent)


def test_gradcheck(device: torch.device) -> None:
    values = [v.to(device) for v in arguments(23, (3.3137, -4.2931), (1.1172, 0.6172), 2, 1)[:3]]
    for needs in ((True, True, True), (False, True, False), (True, False, False)):
        leaves = [v.clone().requires_grad_(need) for v, need in zip(values, needs, strict=True)]
        assert torch.autograd.gradcheck(lambda *v: triton(*v, 7), leaves, fast_mode=True)


def test_two_passes_are_bit_equal(device: torch.device) -> None:
    values = [v.float().to(device) for v in arguments(97, (3.3137, -4.2931, 60.0), (1.1172, 0.6172, 2.0), 20, 1)[:3]]
    grad_out = torch.randn(2, 3, 20, 41, device=device)
    first, second = (gradients(triton, values, 41, grad_out) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(triton(*values, 41), triton(*values, 41))


@pytest.mark.parametrize(
    ("needs", "names"),
    [
        ((True, False, False), ["resample_dx"]),
        ((False, True, False), ["resample_position_gradient", "finish_places"]),
        ((False, False, True), ["resample_position_gradient", "finish_places"]),
        ((True, True, True), ["resample_dx", "resample_position_gradient", "finish_places"]),
    ],
)
def test_nothing_is_computed_that_nobody_asked_for(
    needs: tuple[bool, ...], names: list[str], device: torch.device
) -> None:
    values = [v.to(device) for v in arguments(23, (3.3,), (1.1,), 2, 1)[:3]]
    leaves = [v.requires_grad_(need) for v, need in zip(values, needs, strict=True)]
    with record_launches() as forward:
        out = triton(*leaves, 7)
    with record_launches() as backward:
        out.sum().backward()
    assert [one.name for one in forward] == ["resample_forward"]
    assert [one.name for one in backward] == names
    assert [leaf.grad is not None for leaf in leaves] == list(needs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits(dtype: torch.dtype, device: torch.device) -> None:
    """One rounding, at the end; start and ratio may be wider, and their gradients have their own dtype."""
    from interpreter_bf16 import corrected_arithmetic

    x = torch.randn(2, 3, 90, device=device).to(dtype)
    start, ratio = row(3.3137, 30.7, clips=2).to(device), row(1.1172, 1.4, clips=2).to(device)
    for position in (torch.float64, torch.float32, dtype):
        leaves = [x.clone().requires_grad_(), *(v.to(position).requires_grad_() for v in (start, ratio))]
        wide = [v.detach().double().requires_grad_() for v in leaves]
        with corrected_arithmetic():
            out = triton(*leaves, 37)
            grads = torch.autograd.grad(out, leaves, torch.ones_like(out))
        wanted = _reference(*wide, 37)
        assert out.dtype == dtype
        error = ((out - wanted).abs() / wanted.abs().clamp(min=1e-2)).detach()
        assert float(error.max()) <= torch.finfo(dtype).eps
        for g, v, w in zip(grads, leaves, torch.autograd.grad(wanted, wide, torch.ones_like(wanted)), strict=True):
            assert g.dtype == v.dtype
            # its own rounding, and that of a float32 sum of 111 terms
            step = torch.finfo(g.dtype).eps + 8 * torch.finfo(torch.float32).eps
            assert float((g - w).abs().max()) <= step * float(w.abs().max())


@pytest.mark.parametrize(("clips", "pairs"), [(0, 2), (2, 0)])
def test_nothing_to_do(clips: int, pairs: int, device: torch.device) -> None:
    x = torch.randn(clips, 3, 9, device=device, requires_grad=True)
    start, ratio = (torch.ones(clips, pairs, device=device, requires_grad=True) for _ in range(2))
    out = triton(x, start, ratio, 4)
    assert out.shape == (clips, pairs, 3, 4)
    grads = torch.autograd.grad(out, (x, start, ratio), torch.ones_like(out))
    assert [g.shape for g in grads] == [x.shape, start.shape, ratio.shape]
    assert not any(g.any() for g in grads)
