"""Biases whose gradients are summed block by block: the same values, gradients no less exact, and one reading."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.backends.debugging import boxed_nop

from adaptive_window.model import bias as module
from adaptive_window.model import convolution, encoder
from adaptive_window.model.bias import ROWS, add_bias, add_dropped, linear_in_blocks, spread_over
from adaptive_window.model.composer import CompositionalCreativeAgent


def of(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).to(dtype).requires_grad_()


@pytest.mark.parametrize("rows", [3 * ROWS, 3 * ROWS + 1])
def test_a_linear_in_blocks_is_a_linear(rows: int) -> None:
    torch.manual_seed(0)
    leaves = x, weight, bias = of(rows, 5), of(7, 5), of(7)
    out, expected = linear_in_blocks(x, weight, bias), F.linear(x, weight, bias)
    assert out.shape == ((3, ROWS, 7) if rows % ROWS == 0 else (1, rows, 7))
    grad = torch.randn(rows, 7, dtype=torch.float64)
    found = torch.autograd.grad(out, leaves, grad.view(out.shape))
    for one, other in zip(
        (out.flatten(0, 1), *found), (expected, *torch.autograd.grad(expected, leaves, grad)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rows", [2 * ROWS, 20])
@pytest.mark.parametrize("spread", [False, True])
def test_biases_added_apart_and_spread(rows: int, spread: bool) -> None:
    """Of two tensors, one of which is read with its last two dimensions swapped, as convolutions' are."""
    torch.manual_seed(0)
    leaves = first, second, a, b = of(3, rows, 4), of(3, 6, rows), of(4), of(6)
    apart = spread_over([a, b], 3 * module.blocks_of(rows)[0]) if spread else (None, None)
    outs = add_bias(first, a, apart[0]), add_bias(second.transpose(1, 2), b, apart[1])
    expected = first + a, second.transpose(1, 2) + b
    grads = [torch.randn(out.shape, dtype=torch.float64) for out in outs]
    found = torch.autograd.grad(outs, leaves, grads)
    for one, other in zip((*outs, *found), (*expected, *torch.autograd.grad(expected, leaves, grads)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_in_bfloat16_sums_are_float32s() -> None:
    """Each addition rounds by 2⁻²⁴ of what has come together: first a block's rows, then the blocks."""
    torch.manual_seed(0)
    rows = 100 * ROWS
    x, weight, bias = of(rows, 4, dtype=torch.bfloat16), of(8, 4, dtype=torch.bfloat16), of(8, dtype=torch.float32)
    grad = torch.randn(rows, 8).bfloat16()
    out = module._Biased.apply(module.F.linear(x, weight).view(-1, ROWS, 8), bias)
    assert out.dtype == torch.bfloat16
    (found,) = torch.autograd.grad(out, bias, grad.view(out.shape))
    assert found.dtype == torch.float32
    bound = (ROWS + rows // ROWS) * 2.0**-24 * grad.double().abs().sum(0)
    assert ((found.double() - grad.double().sum(0)).abs() <= bound).all()


@pytest.mark.parametrize("drops", [True, False])
def test_a_bias_that_is_dropped_with_what_it_was_added_to(drops: bool) -> None:
    torch.manual_seed(0)
    leaves = x, z, bias = of(50, 4), of(50, 4), of(4)
    mask, factor = (torch.rand(50, 4) < 0.7, 1 / 0.7) if drops else (None, 1.0)
    out = add_dropped(x, z + bias.detach(), bias.expand(50, -1), mask, factor)
    expected = x + (z + bias if mask is None else (z + bias) * mask * factor)
    grad = torch.randn(50, 4, dtype=torch.float64)
    found = torch.autograd.grad(out, leaves, grad)
    for one, other in zip((out, *found), (expected, *torch.autograd.grad(expected, leaves, grad)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_of_a_sum_in_float32_the_biass_gradient_is_not_rounded_to_what_was_added() -> None:
    """Two factors round each element, and each addition rounds by 2⁻²⁴ of what has come together."""
    torch.manual_seed(0)
    x, z, bias = of(300, 4, dtype=torch.float32), of(300, 4, dtype=torch.bfloat16), of(4, dtype=torch.float32)
    mask, grad = torch.rand(300, 4) < 0.7, torch.randn(300, 4)
    (found,) = torch.autograd.grad(add_dropped(x, z, bias.expand(300, -1), mask, 1.5), bias, grad)
    wanted = 1.5 * grad.double() * mask
    assert ((found.double() - wanted.sum(0)).abs() <= 302 * 2.0**-24 * wanted.abs().sum(0)).all()


class Cut:
    """Compiles for no device, and keeps the graph of the backward pass."""

    def __init__(self, call: nn.Module) -> None:
        def keep(graph: torch.fx.GraphModule, inputs: object) -> object:
            self.backward = graph
            return boxed_nop(graph, inputs)

        torch._dynamo.reset()
        backend = aot_autograd(fw_compiler=boxed_nop, bw_compiler=keep)
        self.call = torch.compile(call, backend=backend, fullgraph=True, dynamic=False)


@pytest.mark.parametrize(
    ("frames", "blocks"),
    [(2 * ROWS, 2), pytest.param(20, 1, marks=pytest.mark.proof)],  # of the convolutions, in a window
)
def test_an_agent_as_for_cuda_is_the_eager_one(monkeypatch: pytest.MonkeyPatch, frames: int, blocks: int) -> None:
    """In float64, every gradient, each laid out as its weight: else PyTorch would copy it behind the step.

    What is summed is written before, wherever a kernel writes it.
    """
    for where, name in ((encoder, "compiles_for_cuda"), (convolution, "channels_together")):
        monkeypatch.setattr(where, name, lambda x: torch.compiler.is_compiling())
    torch.manual_seed(0)
    eager = CompositionalCreativeAgent(8, 4, 2, 2, composer_dim=16, dropout=0.0).double()
    compiled = copy.deepcopy(eager)
    cut = Cut(compiled)
    x, y = (torch.randn(3, 8, frames, dtype=torch.float64) for _ in range(2))
    found = []
    for agent, call in ((eager, eager), (compiled, cut.call)):
        out, loss = call(x, y)
        weights = list(agent.parameters())
        found.append([out.detach(), *torch.autograd.grad(out.square().mean() + loss, weights)])
    for one, other in zip(*found, strict=True):
        assert float((one - other).abs().max()) <= 1e-9 * float(one.abs().max()) + 1e-15
    for weight, grad in zip(compiled.parameters(), found[1][1:], strict=True):
        strides = zip(weight.stride(), grad.stride(), weight.shape, strict=True)
        assert all(wanted == had for wanted, had, size in strides if size > 1)
    nodes = cut.backward.graph.nodes
    sums = [node for node in nodes if node.target == torch.ops.aten.sum.dim_IntList and node.args[1] == [-2]]
    assert all(node.args[0].target == torch.ops.aten.as_strided.default for node in sums)
    # two products a layer, the composer's first (where windows are whole blocks) and last but one; in each of two
    # extractors six convolutions and the three skips as one; the selector's first
    assert len(sums) == 2 * 2 + (frames % ROWS == 0) + 1 + 2 * 7 + 1
    # and over all rows at once those of each layer's second feed-forward product, and of the second layer's attention
    behind = [node for node in nodes if node.target == torch.ops.aten.sum.dim_IntList and node.args[1] == [0]]
    behind = [node for node in behind if node.args[0].target == torch.ops.aten.as_strided.default]
    assert [tuple(node.meta["val"].shape) for node in behind] == [(1, 16)] * 3
    spread = [node for node in nodes if node.target == torch.ops.aten.cat.default and node.meta["val"].dim() == 2]
    assert [tuple(node.meta["val"].shape) for node in spread].count((3 * blocks, 3 * 8 + 3 * 4 + 12)) == 2


def test_more_frames_than_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "compiles_for_cuda", lambda x: True)
    composer = CompositionalCreativeAgent(8, 4, 2, 1, composer_dim=16).composer
    assert composer._encoded(torch.randn(1, 2 * ROWS, 24)).shape == (1, 2 * ROWS, 16)
    with pytest.raises(ValueError, match="at most 2000 frames"):
        composer._encoded(torch.randn(1, 63 * ROWS, 24))
