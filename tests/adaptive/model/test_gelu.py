"""GELU by a polynomial's power of two: as exact as float32 is."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from adaptive_window.model.gelu import FACTORS, gelu, normal_cdf

EPS = 2.0**-24  # float32's rounding, relative
FIT = 1.31e-8  # the polynomial's own error of Φ
# Each of the 8 steps of q rounds twice, q by its last product once. An error δ of q is one of ½·ln 2·q·2^−q·δ/q of Φ,
# and q·2^−q is at most 1/(e·ln 2); the power, the half and the difference from 1 round once each, at most by EPS.
CDF = FIT + 0.5 / torch.e * 17 * EPS + 2 * EPS


def grid() -> torch.Tensor:
    return torch.cat([torch.linspace(-12, 12, 200_001), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 3e38, -3e38])])


def exact(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * torch.erfc(-x.double() / 2**0.5)


def test_normal_distribution() -> None:
    x = grid()
    found = normal_cdf(x).double()
    assert float((found - exact(x)).abs().max()) < CDF
    assert float(normal_cdf(x.double()).sub(exact(x)).abs().max()) < FIT  # the fit alone, FACTORS being as they are
    near = (x < 0) & (x > -4)
    by_erf = 0.5 * (1 + torch.erf(x * 2**-0.5)).double()
    errors = [float((value / exact(x) - 1)[near].abs().max()) for value in (found, by_erf)]
    assert errors[0] < errors[1]
    assert len(FACTORS) == 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gelu_and_its_gradient(dtype: torch.dtype) -> None:
    """Against float64's, and no worse than PyTorch's own but for Φ's error."""
    x = grid()[:-2].to(dtype).requires_grad_()
    wide = x.detach().double().requires_grad_()
    grad = torch.randn(x.shape).to(dtype)
    out, expected = gelu(x), F.gelu(wide)
    (by_x,) = torch.autograd.grad(out, x, grad)
    (by_wide,) = torch.autograd.grad(expected, wide, grad.double())
    assert out.dtype == by_x.dtype == dtype
    unit = EPS if dtype == torch.float32 else 2.0**-8
    size = wide.detach().abs()
    assert ((out.double() - expected).abs() <= size * CDF + 2 * unit * expected.abs() + 1e-37).all()
    # Φ + xφ: the power's argument x²·log₂e/2 rounds twice, an error of x³φ(x) ≤ 0.47 times 2·EPS; φ and the sums
    bound = CDF + (2 * 0.47 + 3 * 1.13) * EPS
    assert ((by_x.double() - by_wide).abs() <= grad.double().abs() * bound + 2 * unit * by_wide.abs() + 1e-37).all()


def test_float64_is_pytorchs() -> None:
    x = torch.randn(100, dtype=torch.float64)
    assert torch.equal(gelu(x), F.gelu(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_traced_it_is_the_same(dtype: torch.dtype) -> None:
    """To the bit, gradient and all, from one of the graph's own tensors, as in a layer."""
    x = torch.randn(5, 8, dtype=dtype, requires_grad=True)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return gelu(x * 2).sin().sum()

    traced = torch.compile(loss, backend="aot_eager", fullgraph=True)
    (one,), (other,) = (torch.autograd.grad(call(x), x) for call in (loss, traced))
    assert torch.equal(one, other)
    assert float(one.abs().max()) > 0


def test_transforms_see_through() -> None:
    x = torch.randn(7, 3)
    grads = torch.func.vmap(torch.func.grad(lambda row: gelu(row).sum()))(x)
    torch.testing.assert_close(grads, torch.func.grad(lambda every: F.gelu(every).sum())(x))
    traced = torch.compile(torch.func.grad(lambda every: gelu(every).sum()), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(traced(x), grads)
