"""Dropout in compiled graphs on CUDA: a hash of the place, as good as random, drawn again in the backward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adaptive_window.model import dropout as module
from adaptive_window.model.dropout import Dropout, hashed_dropout, hashed_mask, is_hashed, is_plain_dropout


def seeds(number: int) -> Tensor:
    return torch.randint(2**31 - 1, (2,), dtype=torch.int32, generator=torch.Generator().manual_seed(number))


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_masks_are_as_good_as_random(probability: float) -> None:
    """Shares of the whole, of rows and columns, of neighbours and of two masks, within 5 deviations of chance."""
    x = torch.empty(1000, 1024)
    masks = [hashed_mask(x, seeds(n), probability).double() for n in range(4)]
    deviation = (probability * (1 - probability)) ** 0.5
    for mask in masks:
        centred = (mask - (1 - probability)) / deviation
        assert abs(float(centred.mean())) < 5 / 1_024_000**0.5
        assert float(centred.mean(0).abs().max()) < 5 / 1000**0.5
        assert float(centred.mean(1).abs().max()) < 5 / 1024**0.5
        assert 0.9 < float(centred.mean(0).std()) * 1000**0.5 < 1.1  # no more even than chance
        flat = centred.flatten()
        for apart in (1, 2, 3, 4, 32, 512, 1024, 2048, 65536):
            assert abs(float((flat[apart:] * flat[:-apart]).mean())) < 5 / (flat.numel() - apart) ** 0.5, apart
        pairs = flat.view(-1, 2)  # which share a hash
        for product in (pairs[:, 0] * pairs[:, 1], pairs[1:, 0] * pairs[:-1, 1], pairs[1:, 1] * pairs[:-1, 1]):
            assert abs(float(product.mean())) < 5 / product.numel() ** 0.5
    for one in range(4):
        for other in range(one):
            both = (masks[one] - masks[one].mean()) * (masks[other] - masks[other].mean()) / deviation**2
            assert abs(float(both.mean())) < 5 / 1_024_000**0.5


def test_both_of_a_pair_are_uniform_and_independent() -> None:
    """Their 16 bits, in a table of 16 by 16 counts: chi² within 5 deviations of its mean, the degrees of freedom."""
    x, pairs = torch.empty(2**17), 2**16
    draws = torch.zeros(2**17, dtype=torch.int64)
    for step in range(1, 16):  # a draw is at least as large as LEVELS · probability where it is kept
        draws += hashed_mask(x, seeds(3), step / 16)
    first, second = draws.view(-1, 2).unbind(1)
    counts = torch.bincount(16 * first + second, minlength=256).double()
    expected = pairs / 256
    chi = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi - 255) < 5 * (2 * 255) ** 0.5
    for half in (first, second):
        counts = torch.bincount(half, minlength=16).double()
        chi = float(((counts - pairs / 16) ** 2 / (pairs / 16)).sum())
        assert abs(chi - 15) < 5 * (2 * 15) ** 0.5


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (2, 0, 4)])
def test_masks_of_any_shape(shape: tuple[int, ...]) -> None:
    mask = hashed_mask(torch.empty(shape), seeds(0), 0.5)
    assert mask.shape == shape
    assert torch.equal(mask.flatten(), hashed_mask(torch.empty(100), seeds(0), 0.5)[: mask.numel()])


def test_close_seeds_give_other_masks() -> None:
    x, one = torch.empty(100_000), torch.tensor([5, 9], dtype=torch.int32)
    mask = hashed_mask(x, one, 0.5)
    assert torch.equal(mask, hashed_mask(x, one, 0.5))
    for other in ([4, 9], [5, 8], [9, 5]):
        same = (mask == hashed_mask(x, torch.tensor(other, dtype=torch.int32), 0.5)).double().mean()
        assert abs(float(same) - 0.5) < 5 * 0.5 / 100_000**0.5, other


def test_means_stay() -> None:
    torch.manual_seed(0)
    x = torch.ones(400_000, dtype=torch.float64)
    out = hashed_dropout(x, 0.1)
    assert set(out.unique().tolist()) == {0.0, 2**16 / (2**16 - round(2**16 * 0.1))}
    assert abs(float(out.mean()) - 1) < 5 * (0.1 / 0.9 / 400_000) ** 0.5
    assert not torch.equal(out, hashed_dropout(x, 0.1))
    torch.manual_seed(0)
    assert torch.equal(out, hashed_dropout(x, 0.1))


def test_eager_dropout_is_pytorchs() -> None:
    x = torch.ones(1000)
    layer = Dropout(0.3)
    torch.manual_seed(3)
    ours = layer(x)
    torch.manual_seed(3)
    assert torch.equal(ours, nn.Dropout(0.3)(x))
    assert torch.equal(layer.eval()(x), x)
    assert not is_hashed(x)
    assert is_plain_dropout(layer)
    assert is_plain_dropout(nn.Dropout(0.3))
    assert not is_plain_dropout(Dropout(1.0))
    layer.register_forward_hook(lambda *_: None)
    assert not is_plain_dropout(layer)


@pytest.mark.proof
def test_compiled_it_is_the_same_forward_and_backward_and_keeps_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled for the CPU here; PyTorch's own dropout, compiled, is told apart by the same means."""
    monkeypatch.setattr(module, "is_hashed", lambda x: torch.compiler.is_compiling())
    layer = Dropout(0.25)
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    def f(x: Tensor) -> Tensor:
        return layer(x * 2).exp()

    step: Any = torch.compile(f, fullgraph=True)
    x = torch.randn(64, 1024, requires_grad=True)
    masks = []
    for _ in range(2):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            out = step(x)
        (grad,) = torch.autograd.grad(out.sum(), x)
        mask = out != 1  # exp(0) where dropped
        assert torch.allclose(grad, out * 2 / 0.75 * mask, rtol=1e-5)
        assert abs(float(mask.double().mean()) - 0.75) < 5 * (0.75 * 0.25 / x.numel()) ** 0.5
        masks.append(mask)
    assert not torch.equal(*masks)
    assert not any(t.dtype in (torch.bool, torch.uint8) and t.numel() >= x.numel() for t in kept)
