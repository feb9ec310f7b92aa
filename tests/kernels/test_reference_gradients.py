"""Gradients of the specification: finite differences, ties, NaN, and their accuracy in float32."""

from __future__ import annotations

import pytest
import torch
from reference_cases import column, plain_modules, tonality_weights
from torch import Tensor

from adaptive_window.kernels import reference


class TestGradients:
    # start, ratio: inside; over the left edge; over the right one; over both; ratios that pile frames up
    PLACES = ((4.13, 1.31), (-3.37, 1.27), (13.21, 1.43), (-4.29, 3.71), (5.17, 0.43), (9.61, 0.021), (-0.71, 0.37))

    @staticmethod
    def assert_no_kink(start: Tensor, ratio: Tensor, window: int, frames: int) -> None:
        """Finite differences need every free position away from whole frames, where y has a corner."""
        p = reference.window_positions(start, ratio, window, frames)
        distance = (p - p.round()).abs()
        clamped = (p == 0) | (p == frames - 1) | (ratio[..., None] * window < 1)
        assert bool(((distance > 1e-4) | clamped).all())

    @pytest.mark.parametrize(("start", "ratio"), PLACES)
    def test_resampling(self, start: float, ratio: float) -> None:
        x = torch.randn(1, 2, 19, dtype=torch.float64, requires_grad=True)
        s, r = column(start).requires_grad_(), column(ratio).requires_grad_()
        self.assert_no_kink(s.detach(), r.detach(), 11, 19)
        assert torch.autograd.gradcheck(lambda *a: reference.resample_windows(*a, 11), (x, s, r))

    def test_both_in_one_every_argument(self) -> None:
        x = torch.randn(2, 3, 19, dtype=torch.float64)
        start, ratio = (torch.tensor(v, dtype=torch.float64).view(2, 3) for v in zip(*self.PLACES[:6], strict=True))
        self.assert_no_kink(start, ratio, 9, 19)
        arguments = [x, start, ratio, torch.rand(2, 3, dtype=torch.float64), *tonality_weights(3, taps=5)]
        for value in arguments:
            value.requires_grad_()
        assert torch.autograd.gradcheck(lambda *a: reference.windowed_tonality(*a, 9), arguments)
        assert torch.autograd.gradcheck(lambda *a: reference.windowed_tonality(*a, 9, 1e-5, "frame"), arguments)

    # Right-hand derivatives at ties: whole positions, the clip's edges, the window's edges. All values are dyadic and
    # y is piecewise linear in start and in ratio, so a forward difference with a small dyadic step *is* the derivative.
    TIES = (
        (0.0, 1.0),  # the first frame sits on the clip's edge
        (3.0, 1.0),
        (16.0, 1.0),  # the last frame sits on the clip's other edge: frames - window
        (23.0, 1.0),  # everything but the first frame beyond it
        (-2.0, 1.0),
        (-8.0, 1.0),
        (0.0, 2.0),
        (2.0, 3.0),  # positions whole, frames 3 apart
        (0.0, 0.5),
        (5.0, 0.25),
        (5.0, 0.125),  # ratio·W = 1: the window's last frame meets its first
        (5.0, 0.0625),  # ratio·W < 1: no derivative to ratio
        (5.5, 1.5),
    )

    @pytest.mark.parametrize(("start", "ratio"), TIES)
    def test_right_hand_derivatives_at_ties(self, start: float, ratio: float) -> None:
        frames, window, step = 24, 8, 2.0**-16
        x = torch.randint(-8, 9, (1, 1, frames)).double()
        weight = torch.randint(-8, 9, (window,)).double()

        def total(s: Tensor, r: Tensor) -> Tensor:
            return (reference.resample_windows(x, s, r, window) * weight).sum()

        s, r = column(start).requires_grad_(), column(ratio).requires_grad_()
        got = torch.autograd.grad(total(s, r), (s, r))
        with torch.no_grad():
            by_start = (total(s + step, r) - total(s, r)) / step
            by_ratio = (total(s, r + step) - total(s, r)) / step
        assert got[0].item() == pytest.approx(by_start.item(), abs=1e-9)
        assert got[1].item() == pytest.approx(by_ratio.item(), abs=1e-9)

    @pytest.mark.parametrize(("start", "ratio"), [*PLACES, *TIES])
    def test_derivative_table(self, start: float, ratio: float) -> None:
        """∂p/∂start and ∂p/∂ratio as the docstring of `window_positions` states them, frame by frame."""
        frames, window = 24, 8
        s, r = column(start).requires_grad_(), column(ratio).requires_grad_()
        p = reference.window_positions(s, r, window, frames)
        for t in range(window):
            by_start, by_ratio = torch.autograd.grad(p[0, 0, t], (s, r), retain_graph=True)
            v = (t + 0.5) * ratio - 0.5
            last = max(ratio * window - 1, 0.0)
            inside = 0 <= start + min(max(v, 0.0), last) < frames - 1
            held = 0.0 if v < 0 else (window if ratio * window >= 1 else 0.0) if v > last else t + 0.5
            assert by_start.item() == float(inside)
            assert by_ratio.item() == (held if inside else 0.0)

    def test_many_frames_on_one(self) -> None:
        """ratio → 0: all W frames read one place, and its gradient is their sum."""
        x = torch.randn(1, 1, 12, dtype=torch.float64, requires_grad=True)
        y = reference.resample_windows(x, column(4.25), column(0.001), 500)
        (grad,) = torch.autograd.grad(y.sum(), x)
        want = torch.zeros(12, dtype=torch.float64)
        want[4:6] = torch.tensor([375.0, 125.0])
        torch.testing.assert_close(grad[0, 0], want, rtol=1e-12, atol=1e-12)


class TestAbsentWindows:
    @pytest.mark.parametrize("bad", [(float("nan"), 1.0), (3.0, float("nan")), (float("nan"), 0.001)])
    def test_nan_is_its_own_gradient(self, bad: tuple[float, float]) -> None:
        """A window without a place has no slope: NaN to its start and ratio, and nothing of it to the other windows."""
        x = torch.randn(2, 3, 40, dtype=torch.float64)
        start, ratio = column(2.5, bad[0], 30.0), column(1.2, bad[1], 0.5)
        good = [x, start[:, ::2], ratio[:, ::2]]
        grads = []
        for given in ([x, start, ratio], good):
            leaves = [given[0][:1], *given[1:]]
            leaves = [value.clone().requires_grad_() for value in leaves]
            y = reference.resample_windows(*leaves, 12)
            grads.append(torch.autograd.grad(y[:, [0, -1]].square().sum() + y.sum(), leaves[1:]))
        for whole, part in zip(*grads, strict=True):
            assert whole[:, 1].isnan().all()
            assert torch.equal(whole[:, ::2], part)

    @pytest.mark.parametrize("value", [float("inf"), float("-inf"), 1e30])
    def test_what_clamps_has_no_gradient(self, value: float) -> None:
        x = torch.randn(1, 2, 40, dtype=torch.float64)
        start, ratio = column(value, 3.0).requires_grad_(), column(1.0, value).requires_grad_()
        by_start, by_ratio = torch.autograd.grad(reference.resample_windows(x, start, ratio, 12).sum(), (start, ratio))
        assert by_start[0, 0] == 0
        assert by_ratio[0, 1] == 0
        assert by_start.isfinite().all()
        assert by_ratio.isfinite().all()


def test_float32_is_as_good_as_plain_modules() -> None:
    """Error against float64 at most twice theirs, in every gradient, at a training batch's number of frames."""
    channels, window = 32, 800
    rest = [value.float() / 3 for value in tonality_weights(channels)]
    values = [torch.randn(8, 3, channels, window), torch.rand(8, 3), *rest]
    grad_out = torch.randn(8, 3, channels, window)

    def gradients(function: object, given: list[Tensor]) -> tuple[Tensor, ...]:
        leaves = [value.clone().requires_grad_() for value in given]
        out = function(*leaves)  # type: ignore[operator]  # one of two functions of tensors
        return torch.autograd.grad(out, leaves, grad_out.to(out.dtype))

    truth = gradients(plain_modules, [value.double() for value in values])
    ours, theirs = gradients(reference.tonality_blend, values), gradients(plain_modules, values)
    for n, (o, t, w) in enumerate(zip(ours, theirs, truth, strict=True)):
        rounding = 2.0**-24 * float(w.norm())  # one, where theirs hardly round
        assert float((o - w).norm()) <= 2 * float((t - w).norm()) + rounding, n
