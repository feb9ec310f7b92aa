"""The specification itself: `reference` against F.interpolate, closed forms, exact arithmetic, PyTorch's modules."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from native_cases import native_only
from reference_cases import assert_unchanged, column, exact_position, tonality_weights
from torch import Tensor

from adaptive_window.kernels import reference
from adaptive_window.kernels.validation import RESTORE

EPS64 = torch.finfo(torch.float64).eps
HALVES = (torch.bfloat16, torch.float16)


class TestWholeWindows:
    """Whole start and whole length, inside the clip: F.interpolate."""

    @pytest.mark.parametrize(
        ("frames", "window", "start", "length"),
        [(40, 16, 0, 16), (40, 16, 5, 24), (40, 16, 24, 16), (1200, 800, 137, 1000), (60, 20, 3, 7), (31, 17, 2, 29)],
    )
    def test_equals_interpolate(self, frames: int, window: int, start: int, length: int) -> None:
        x = torch.randn(2, 3, frames, dtype=torch.float64)
        got = reference.resample_windows(x, column(start).repeat(2, 1), column(length / window).repeat(2, 1), window)
        cut = x[:, :, start : start + length]
        want = F.interpolate(cut, size=window, mode="linear", align_corners=False)
        # positions below T carry a rounding error of a few ulp of T, times the slope of x
        atol = 8 * EPS64 * frames * x.diff(dim=-1).abs().max().item()
        torch.testing.assert_close(got[:, 0], want, rtol=0, atol=atol)

    def test_the_original_loop_agrees_where_it_is_exact(self) -> None:
        x = torch.randn(3, 4, 60, dtype=torch.float64)
        start = torch.tensor([[0.0, 7.0], [13.0, 20.0], [28.0, 1.0]], dtype=torch.float64)
        ratio = torch.tensor([[1.0, 1.5], [1.25, 2.0], [1.0, 1.75]], dtype=torch.float64)
        got = reference.interpolate_windows(x, start, ratio, 16)
        assert got.shape == (3, 2, 4, 16)
        torch.testing.assert_close(got, reference.resample_windows(x, start, ratio, 16), rtol=1e-12, atol=1e-12)

    def test_the_original_loop_truncates_and_has_no_gradient(self) -> None:
        x = torch.randn(1, 2, 40, dtype=torch.float64)
        start, ratio = column(3.9).requires_grad_(), column(1.27).requires_grad_()
        got = reference.interpolate_windows(x, start, ratio, 10)
        assert torch.equal(got, reference.interpolate_windows(x, column(3.0), column(1.2), 10))
        assert not got.requires_grad


class TestClosedForms:
    PLACES = ((0.0, 1.0), (3.3, 1.4), (-5.6, 1.2), (30.2, 1.3), (7.1, 0.4), (2.0, 0.01), (-8.0, 4.0))

    def test_constant_signal_stays(self) -> None:
        x = torch.full((1, 2, 37), 3.7, dtype=torch.float64)
        start, ratio = (column(*values) for values in zip(*self.PLACES, strict=True))
        got = reference.resample_windows(x, start, ratio, 24)
        torch.testing.assert_close(got, torch.full_like(got, 3.7), rtol=2 * EPS64, atol=0)

    @pytest.mark.parametrize(("start", "ratio"), PLACES)
    def test_ramp_gives_the_position(self, start: float, ratio: float) -> None:
        frames, window = 37, 24
        x = torch.arange(frames, dtype=torch.float64).view(1, 1, frames)
        got = reference.resample_windows(x, column(start), column(ratio), window)[0, 0, 0]
        want = [float(exact_position(start, ratio, t, window, frames)) for t in range(window)]
        torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), rtol=0, atol=8 * EPS64 * frames)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES])
    def test_whole_start_at_ratio_one_copies(self, dtype: torch.dtype) -> None:
        x = torch.randn(2, 3, 40).to(dtype)
        start = torch.tensor([[0.0, 11.0], [24.0, 3.0]], dtype=dtype)
        got = reference.resample_windows(x, start, torch.ones_like(start), 16)
        for b in range(2):
            for p in range(2):
                begin = int(start[b, p])
                assert torch.equal(got[b, p], x[b, :, begin : begin + 16])

    @pytest.mark.parametrize("fraction", [0.25, 0.5, 0.8125])
    def test_fractional_shift(self, fraction: float) -> None:
        x = torch.randn(1, 3, 40, dtype=torch.float64)
        got = reference.resample_windows(x, column(7 + fraction), column(1.0), 16)[:, 0]
        assert torch.equal(got, (1 - fraction) * x[..., 7:23] + fraction * x[..., 8:24])

    @pytest.mark.parametrize("place", [0, 9, 36])
    @pytest.mark.parametrize(("start", "ratio"), PLACES)
    def test_impulse_draws_the_hat(self, start: float, ratio: float, place: int) -> None:
        frames, window = 37, 24
        x = torch.zeros(1, 1, frames, dtype=torch.float64)
        x[..., place] = 1.0
        got = reference.resample_windows(x, column(start), column(ratio), window)[0, 0, 0]
        p = [exact_position(start, ratio, t, window, frames) for t in range(window)]
        want = torch.tensor([float(max(1 - abs(q - place), Fraction(0))) for q in p], dtype=torch.float64)
        torch.testing.assert_close(got, want, rtol=0, atol=8 * EPS64 * frames)

    def test_one_frame_of_source(self) -> None:
        x = torch.randn(1, 4, 1, dtype=torch.float64)
        got = reference.resample_windows(x, column(0.0, -3.0, 5.0), column(1.0, 0.5, 3.0), 6)
        assert torch.equal(got, x[:, None].expand(1, 3, 4, 6))

    def test_one_frame_of_output(self) -> None:
        """W = 1: p = start + min((r − 1)/2, r − 1) for r ≥ 1, start for r < 1."""
        x = torch.arange(20, dtype=torch.float64).view(1, 1, 20)
        got = reference.resample_windows(x, column(4.0, 4.0, 4.25), column(1.0, 3.0, 0.5), 1)
        assert got.flatten().tolist() == [4.0, 5.0, 4.25]


@pytest.mark.parametrize("ratio", [1.0, 1.2345678, 1.5, 0.57, 1.75])
@pytest.mark.parametrize("start", [0.3, 524_288.123, 1_048_570.0])
def test_positions_of_long_clips(start: float, ratio: float) -> None:
    """A sawtooth of slope ±1 shows the position: at T = 2²⁰ it is exact to 1e-5 frames, with float32 data."""
    frames, window = 1 << 20, 800
    x = (torch.arange(frames) % 2).float().view(1, 1, frames)
    s, r = (column(value, dtype=torch.float32) for value in (start, ratio))
    got = reference.resample_windows(x, s, r, window)[0, 0, 0]
    want = []
    for t in range(window):
        p = exact_position(s.item(), r.item(), t, window, frames)
        want.append(float(1 - abs(p % 2 - 1)))
    torch.testing.assert_close(got.double(), torch.tensor(want, dtype=torch.float64), rtol=0, atol=1e-5)


class TestAbsurdWindows:
    def clip(self) -> Tensor:
        """A clip inside a larger buffer of 1e6, which any read outside the clip would bring in."""
        buffer = torch.full((1, 2, 1000), 1e6, dtype=torch.float64)
        x = buffer[:, :, 480:520]
        x.copy_(torch.rand(x.shape, dtype=torch.float64))
        return x

    @pytest.mark.parametrize("bad", [(float("nan"), 1.0), (3.0, float("nan")), (float("nan"), float("nan"))])
    def test_nan_marks_its_own_window(self, bad: tuple[float, float]) -> None:
        x = self.clip()
        start, ratio = column(2.5, bad[0], 30.0), column(1.2, bad[1], 0.5)
        got = reference.resample_windows(x, start, ratio, 12)
        assert got[:, 1].isnan().all()
        assert torch.equal(got[:, ::2], reference.resample_windows(x, start[:, ::2], ratio[:, ::2], 12))

    @pytest.mark.parametrize("value", [float("inf"), 1e30, 3e38])
    def test_beyond_the_end(self, value: float) -> None:
        x = self.clip()
        got = reference.resample_windows(x, column(value, -value), column(1.0, 1.0), 12)
        assert torch.equal(got[:, 0], x[..., -1:].expand(1, 2, 12))
        assert torch.equal(got[:, 1], x[..., :1].expand(1, 2, 12))

    @pytest.mark.parametrize("value", [float("inf"), 1e30])
    def test_endless_ratio(self, value: float) -> None:
        x = self.clip()
        got = reference.resample_windows(x, column(3.0, 3.0), column(value, -value), 12)
        assert torch.equal(got[:, 0], x[..., -1:].expand(1, 2, 12))
        assert torch.equal(got[:, 1], x[..., 3:4].expand(1, 2, 12))  # a length below one frame: its first frame

    def test_everything_at_once_stays_inside(self) -> None:
        x = self.clip()
        values = (0.0, -3.5, 39.0, 1e30, -1e30, float("inf"), float("-inf"), 1e-30, -0.0)
        start = torch.tensor([[s for s in values for _ in values]], dtype=torch.float64)
        ratio = torch.tensor([[r for _ in values for r in values]], dtype=torch.float64)
        got = reference.resample_windows(x, start, ratio, 12)
        assert bool(((got >= 0) & (got <= 1)).all())


class TestSixteenBits:
    @pytest.mark.parametrize("dtype", HALVES)
    @pytest.mark.parametrize("place", [torch.float32, torch.float64])
    def test_resampling_rounds_once(self, dtype: torch.dtype, place: torch.dtype) -> None:
        x = torch.randn(2, 3, 2000).to(dtype)
        start, ratio = column(1000.3, 5.77, dtype=place).repeat(2, 1), column(1.21, 0.6, dtype=place).repeat(2, 1)
        got = reference.resample_windows(x, start, ratio, 50)
        assert got.dtype == dtype
        assert torch.equal(got, reference.resample_windows(x.float(), start, ratio, 50).to(dtype))

    @pytest.mark.parametrize("dtype", HALVES)
    def test_blend_and_fused_round_once(self, dtype: torch.dtype) -> None:
        x, strength = torch.randn(2, 8, 60).to(dtype), torch.rand(2, 2).to(dtype)
        start, ratio = column(10.3, 5.77, dtype=torch.float32).repeat(2, 1), column(1.21, 0.6).float().repeat(2, 1)
        weights = tonality_weights(8, dtype=dtype)
        wide = [value.float() for value in (strength, *weights)]
        fused = reference.windowed_tonality(x, start, ratio, strength, *weights, 20)
        want = reference.windowed_tonality(x.float(), start, ratio, *wide, 20)
        assert torch.equal(fused, want.to(dtype))
        y = torch.randn(2, 2, 8, 20).to(dtype)
        blend = reference.tonality_blend(y, strength, *weights)
        assert torch.equal(blend, reference.tonality_blend(y.float(), *wide).to(dtype))

    def test_sixteen_bit_positions_are_widened(self) -> None:
        x = torch.arange(600.0).view(1, 1, 600).bfloat16()
        start, ratio = column(256.0, dtype=torch.bfloat16), column(1.0, dtype=torch.bfloat16)
        got = reference.resample_windows(
            x, start, ratio, 100
        )  # 257 … 355 are no bfloat16 numbers: positions would stick
        assert torch.equal(got[0, 0, 0], x[0, 0, 256:356])


class TestTonality:
    @pytest.mark.parametrize("taps", [1, 3, 7])
    def test_equals_torch_modules(self, taps: int) -> None:
        channels, window = 6, 15
        weights = tonality_weights(channels, taps)
        depthwise = torch.nn.Conv1d(channels, channels, taps, padding=taps // 2, groups=channels, dtype=torch.float64)
        pointwise = torch.nn.Conv1d(channels, channels, 1, dtype=torch.float64)
        norm = torch.nn.LayerNorm(channels, dtype=torch.float64)
        with torch.no_grad():
            for module, (weight, bias) in zip(
                (depthwise, pointwise, norm), zip(weights[::2], weights[1::2], strict=True), strict=True
            ):
                module.weight.copy_(weight)
                module.bias.copy_(bias)
        y, strength = torch.randn(2, 3, channels, window, dtype=torch.float64), torch.rand(2, 3, dtype=torch.float64)
        got = reference.tonality_blend(y, strength, *weights)
        for b in range(2):
            for p in range(3):
                v = norm(pointwise(depthwise(y[b, p])).T).T
                want = (1 - strength[b, p]) * y[b, p] + strength[b, p] * v
                torch.testing.assert_close(got[b, p], want, rtol=1e-12, atol=1e-12)

    def test_strength_zero_changes_nothing(self) -> None:
        y = torch.randn(2, 3, 4, 9)
        got = reference.tonality_blend(y, torch.zeros(2, 3), *tonality_weights(4, dtype=torch.float32))
        assert torch.equal(got, y)

    def test_eps_is_the_variances(self) -> None:
        y, ones = torch.full((1, 1, 2, 3), 0.0, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
        y[0, 0, 0] = 2.0  # mean 1, variance 1 over the two channels
        w = [
            torch.zeros(2, 1, 3),
            torch.zeros(2),
            torch.eye(2)[..., None],
            torch.zeros(2),
            torch.ones(2),
            torch.zeros(2),
        ]
        w[0][:, 0, 1] = 1.0
        got = reference.tonality_blend(y, ones, *(value.double() for value in w), eps=3.0)
        assert got[0, 0, :, 0].tolist() == [0.5, -0.5]

    @pytest.mark.parametrize("strength", [0.0, 0.3, 0.5, 1.0])
    @pytest.mark.parametrize("backend", ["reference", pytest.param("native", marks=native_only)])
    def test_restored_it_changes_nothing_until_trained(self, strength: float, backend: str) -> None:
        assert_unchanged(backend, strength, 6, torch.device("cpu"))

    def test_restored_frames_have_the_mean_and_spread_they_had(self) -> None:
        """Whatever the convolutions; and eps is the variances', of y as of u."""
        y, ones = 2 * torch.randn(1, 2, 5, 9, dtype=torch.float64) + 3, torch.ones(1, 2, dtype=torch.float64)
        w = tonality_weights(5, 3)
        w[4].fill_(1.0), w[5].zero_()
        got = reference.tonality_blend(y, ones, *w, 1e-12, "frame")
        for moment in (torch.mean, torch.std):
            torch.testing.assert_close(moment(got, 2), moment(y, 2), rtol=1e-9, atol=1e-9)
        pair = torch.tensor([2.0, 0.0], dtype=torch.float64).view(1, 1, 2, 1)  # mean 1, variance 1
        same = [torch.ones(2, 1, 1), torch.zeros(2), torch.eye(2)[..., None], torch.zeros(2), torch.ones(2), w[5][:2]]
        got = reference.tonality_blend(pair, ones[:, :1], *(v.double() for v in same), 3.0, "frame")
        assert got.flatten().tolist() == [2.0, 0.0]  # sqrt(1 + 3) · (±1 / sqrt(1 + 3)) + 1

    def test_zero_padding_is_at_the_windows_edges(self) -> None:
        """A fused call must not let the convolution see frames outside the window, even where the clip has them."""
        x = torch.randn(1, 4, 50, dtype=torch.float64)
        weights, strength = tonality_weights(4), torch.ones(1, 1, dtype=torch.float64)
        fused = reference.windowed_tonality(x, column(10.0), column(1.0), strength, *weights, 20)
        cut = x[:, None, :, 10:30].contiguous()
        torch.testing.assert_close(fused, reference.tonality_blend(cut, strength, *weights), rtol=1e-13, atol=1e-13)


class TestOtherDerivatives:
    def arguments(self) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(0)
        shapes = ((1, 2, 3, 5), (1, 2), (3, 1, 3), (3,), (3, 3, 1), (3,), (3,), (3,))
        return tuple(torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes)

    @pytest.mark.parametrize("restore", RESTORE)
    def test_second_derivative(self, restore: str) -> None:
        assert torch.autograd.gradgradcheck(lambda *v: reference.tonality_blend(*v, 1e-5, restore), self.arguments())

    @pytest.mark.parametrize("argument", [0, 2])  # y and depthwise_weight have a rule of their own
    def test_forward_mode(self, argument: int) -> None:
        values = [v.detach() for v in self.arguments()]

        def blended(value: Tensor) -> Tensor:
            return reference.tonality_blend(*values[:argument], value, *values[argument + 1 :])

        at = values[argument]
        tangent = torch.linspace(-1, 1, at.numel(), dtype=at.dtype).view(at.shape)
        _, got = torch.func.jvp(blended, (at,), (tangent,))
        step = 1e-6
        ahead, behind = (blended(at + h * tangent) for h in (step, -step))
        torch.testing.assert_close(got, (ahead - behind) / (2 * step), rtol=1e-7, atol=1e-8)

    @pytest.mark.parametrize("window", [1, 2, 3, 9])
    @pytest.mark.parametrize("taps", [1, 3, 7])
    def test_depthwise_weight_reaches_no_further_than_the_window(self, window: int, taps: int) -> None:
        """Its gradient is written out: taps that lie beyond a short window on either side have none."""
        y = torch.randn(2, window, 3, dtype=torch.float64, requires_grad=True)
        weight = torch.randn(3, 1, taps, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(reference._Depthwise.apply, (y, weight))
        by_weight = torch.autograd.grad(reference._depthwise(y, weight).sum(), weight)[0]
        distance = (torch.arange(taps) - taps // 2).abs()
        assert bool((by_weight[:, 0, distance >= window] == 0).all())

    def test_depthwise_gradient_beneath_autocast_keeps_float32(self) -> None:
        """It is a convolution of its own, which autocast would run in 16 bits."""
        y, weight = torch.randn(2, 9, 3, requires_grad=True), torch.randn(3, 1, 7)
        out, grad_out = reference._depthwise(y, weight), torch.randn(2, 9, 3)
        plain = torch.autograd.grad(out, y, grad_out, retain_graph=True)[0]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(torch.autograd.grad(out, y, grad_out)[0], plain)

    def test_gradients_come_back_in_rows(self) -> None:
        """What precedes the last transposition reads its gradient row by row."""
        rows = torch.randn(2, 5, 3, requires_grad=True)
        seen = []
        rows.register_hook(lambda grad: seen.append(grad.is_contiguous()))
        out = reference._turned(rows)
        assert torch.equal(out, rows.transpose(1, 2))
        out.backward(torch.randn(2, 3, 5))
        assert seen == [True]


class TestLayouts:
    @staticmethod
    def layouts(shape: tuple[int, ...]) -> list[Tensor]:
        """The same kind of tensor with other strides: sliced, transposed, expanded, reversed in memory."""
        *lead, last = shape
        plain = torch.randn(shape, dtype=torch.float64)
        sliced = torch.randn(*lead, 2 * last, dtype=torch.float64)[..., ::2]
        swapped = torch.randn(*lead[:-1], last, lead[-1], dtype=torch.float64).transpose(-1, -2)
        spread = torch.randn(1, *shape[1:], dtype=torch.float64).expand(shape)
        return [plain, sliced, swapped, spread]

    def test_strides_do_not_matter(self) -> None:
        places = torch.rand(2, 6, dtype=torch.float64)[:, ::2] * 10
        strength = torch.rand(3, 2, dtype=torch.float64).T
        weights = tonality_weights(4)
        for x in self.layouts((2, 4, 30)):
            got = reference.windowed_tonality(x, places, 1 + places / 10, strength, *weights, 11)
            plain = (value.contiguous() for value in (x, places, 1 + places / 10, strength))
            assert torch.equal(got, reference.windowed_tonality(*plain, *weights, 11))
            assert got.is_contiguous()
            resampled = reference.resample_windows(x, places, 1 + places / 10, 11)
            assert resampled.is_contiguous()
        for y in self.layouts((2, 3, 4, 11)):
            got = reference.tonality_blend(y, strength, *weights)
            assert got.is_contiguous()
            assert torch.equal(got, reference.tonality_blend(y.contiguous(), strength, *weights))
