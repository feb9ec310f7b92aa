"""Convolutions with channels together: the same values and gradients as `nn.Conv1d`, and the layout that is meant."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from adaptive_window.model import convolution as module
from adaptive_window.model.composer import MultiScaleExtractor
from adaptive_window.model.convolution import Convolution, channels_together, convolve


@pytest.mark.parametrize("taps", [1, 3, 21])
def test_values_and_gradients_are_those_of_conv1d(taps: int) -> None:
    generator = torch.Generator().manual_seed(taps)
    x, weight, bias = (
        torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()
        for shape in ((3, 8, 40), (6, 8, taps), (6,))
    )
    ours = convolve(x, weight, bias, taps // 2)
    theirs = F.conv1d(x, weight, bias, padding=taps // 2)
    grad = torch.randn(theirs.shape, dtype=torch.float64, generator=generator)
    found = torch.autograd.grad(ours, (x, weight, bias), grad)
    wanted = torch.autograd.grad(theirs, (x, weight, bias), grad)
    for one, other in zip((ours, *found), (theirs, *wanted), strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert ours.stride(1) == 1


def test_eagerly_it_is_conv1d() -> None:
    torch.manual_seed(0)
    layer, x = Convolution(8, 6, 5), torch.randn(2, 8, 30)
    assert isinstance(layer, nn.Conv1d)
    assert (layer.padding, layer.stride) == ((2,), (1,))
    assert not channels_together(x)
    assert torch.equal(layer(x), F.conv1d(x, layer.weight, layer.bias, padding=2))


@pytest.mark.proof
def test_an_extractor_compiled_so_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward, in float64; for the CPU here."""
    torch.manual_seed(0)
    extractor = MultiScaleExtractor(8, 4).double()
    x = torch.randn(3, 8, 40, dtype=torch.float64, requires_grad=True)
    leaves = (x, *extractor.parameters())
    wanted = extractor(x)
    wanted_grads = torch.autograd.grad(sum(out.square().sum() for out in wanted), leaves)
    monkeypatch.setattr(module, "channels_together", lambda x: torch.compiler.is_compiling())
    seen: list[bool] = []
    convolved = module.convolve
    monkeypatch.setattr(module, "convolve", lambda *a, **k: (seen.append(True), convolved(*a, **k))[1])
    found = torch.compile(extractor, fullgraph=True)(x)
    grads = torch.autograd.grad(sum(out.square().sum() for out in found), leaves)
    assert len(seen) == 7  # traced through; the skips are one
    for one, other in zip((*found, *grads), (*wanted, *wanted_grads), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
