import pytest
import torch

from adaptive_window.losses.scale_space import annealed_sigma, gaussian_blur


def formula(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """The docstring's two sums, as written."""
    t = torch.arange(x.shape[-1], dtype=x.dtype)
    g = torch.exp(-0.5 * ((t[:, None] - t) / sigma) ** 2)  # [t, s]
    return (x @ g.T) / g.sum(1)


@pytest.mark.parametrize("frames", [1, 2, 7, 48, 61])
@pytest.mark.parametrize("sigma", [0.2, 1.0, 5.5, 64.0, 1e4])
def test_equals_the_formula(frames, sigma):
    x = torch.randn(2, 3, frames, dtype=torch.float64)
    torch.testing.assert_close(gaussian_blur(x, sigma), formula(x, sigma), rtol=0, atol=1e-12)


@pytest.mark.parametrize("sigma", [0, 0.0, 0.01, torch.tensor(0.0, dtype=torch.float64)])
def test_no_blur_is_identity(sigma):
    x = torch.randn(2, 3, 40, dtype=torch.float64)
    torch.testing.assert_close(gaussian_blur(x, sigma), x, rtol=0, atol=1e-14)


def test_a_constant_stays_up_to_the_edges():
    x = torch.full((1, 50), 3.0, dtype=torch.float64)
    torch.testing.assert_close(gaussian_blur(x, 10.0), x, rtol=0, atol=1e-13)


def test_one_sigma_per_sample():
    x = torch.randn(3, 2, 4, 40, dtype=torch.float64)
    sigma = torch.tensor([0.0, 1.5, 20.0], dtype=torch.float64)
    wanted = torch.stack([gaussian_blur(row, float(s)) for row, s in zip(x, sigma, strict=True)])
    torch.testing.assert_close(gaussian_blur(x, sigma), wanted, rtol=0, atol=1e-13)
    torch.testing.assert_close(gaussian_blur(x[:, 0, 0], sigma), wanted[:, 0, 0], rtol=0, atol=1e-13)


@pytest.mark.parametrize("shape", [(), (2,)])
def test_differentiable_in_signal_and_sigma(shape):
    x = torch.randn(2, 3, 9, dtype=torch.float64, requires_grad=True)
    sigma = torch.full(shape, 1.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(gaussian_blur, (x, sigma))


def test_gradient_at_no_blur_is_finite():
    x = torch.randn(2, 9, requires_grad=True)
    sigma = torch.zeros((), requires_grad=True)
    gaussian_blur(x, sigma).sum().backward()
    assert sigma.grad == 0
    torch.testing.assert_close(x.grad, torch.ones_like(x))


@pytest.mark.parametrize(("dtype", "unit"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_16_bit_signals_are_rounded_once(dtype, unit):
    x = torch.randn(2, 40, dtype=dtype)
    y = gaussian_blur(x, 2.0)
    assert y.dtype == dtype
    exact = formula(x.double(), 2.0)
    assert ((y.double() - exact).abs() <= unit * exact.abs() + 1e-6).all()  # 1e-6: the FFT in float32


def test_blurred_signals_let_the_gradient_see_far():
    """A bump 20 frames away: no gradient at all without blur, the right sign with it."""
    x, y = torch.zeros(2, 1, 101, dtype=torch.float64)
    x[0, 40], y[0, 60] = 1.0, 1.0
    t = torch.arange(101, dtype=torch.float64)
    slopes = []
    for sigma in (0.0, 16.0):
        shift = torch.zeros((), dtype=torch.float64, requires_grad=True)
        p = t - shift  # y = x moved by +shift
        i = p.detach().floor().clamp(0, 99)
        blurred = gaussian_blur(x, sigma)[0]
        moved = torch.lerp(blurred[i.long()], blurred[i.long() + 1], p - i)
        (moved - gaussian_blur(y, sigma)[0]).square().sum().backward()
        slopes.append(float(shift.grad))
    assert slopes[1] < -1e-5  # falls toward +20


def test_schedule():
    sigmas = [annealed_sigma(i, 16) for i in range(16)]
    assert sigmas == pytest.approx([64 * (1 - i / 15) ** 2 for i in range(16)])
    assert (sigmas[0], sigmas[-1]) == (64.0, 0.0)
    assert annealed_sigma(0, 1) == 0.0
    assert annealed_sigma(1, 3, sigma=8.0) == 2.0


def test_bad_arguments_are_named():
    x = torch.randn(2, 3, 8)
    for error, match, call in [
        (TypeError, r"x must be a torch\.Tensor.*list", lambda: gaussian_blur([1.0], 1.0)),
        (
            TypeError,
            r"x must have a floating dtype.*int64",
            lambda: gaussian_blur(torch.ones(3, dtype=torch.long), 1.0),
        ),
        (ValueError, r"x must have shape \[\.\.\., T\].*\[2, 0\]", lambda: gaussian_blur(torch.ones(2, 0), 1.0)),
        (ValueError, r"sigma must be finite.*-1", lambda: gaussian_blur(x, -1.0)),
        (ValueError, r"sigma must be finite.*nan", lambda: gaussian_blur(x, float("nan"))),
        (TypeError, r"sigma must be a number.*str", lambda: gaussian_blur(x, "1")),
        (TypeError, r"sigma must be a number.*bool", lambda: gaussian_blur(x, True)),
        (TypeError, r"sigma.*int64", lambda: gaussian_blur(x, torch.tensor(1))),
        (ValueError, r"sigma must be.*\[3\].*\[2, 3, 8\]", lambda: gaussian_blur(x, torch.ones(3))),
        (ValueError, r"sigma must be.*\[8\]", lambda: gaussian_blur(torch.ones(8), torch.ones(8))),
        (ValueError, r"device", lambda: gaussian_blur(x, torch.ones((), device="meta"))),
        (ValueError, r"level must be below levels \(4\), got 4", lambda: annealed_sigma(4, 4)),
        (ValueError, r"levels must be at least 1", lambda: annealed_sigma(0, 0)),
        (ValueError, r"level must be at least 0", lambda: annealed_sigma(-1, 4)),
        (ValueError, r"sigma must be finite", lambda: annealed_sigma(0, 4, float("inf"))),
    ]:
        with pytest.raises(error, match=match):
            call()
