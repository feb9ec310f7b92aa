"""What the composer computes again instead of keeping: the same values and gradients, in less memory."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from adaptive_window import AdaptiveWindowCreativeAgent, CompositionalCreativeAgent
from adaptive_window.model import dropout, lean
from adaptive_window.model.encoder import Encoder

SMALL = {"component_dim": 4, "composer_heads": 2, "composer_layers": 2, "composer_dim": 16}


def small(**options: Any) -> CompositionalCreativeAgent:
    torch.manual_seed(0)
    agent = CompositionalCreativeAgent(8, **(SMALL | options)).double()
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return agent


def windows(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2, 3, 8, 12, dtype=dtype, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def by_modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bool], None]]:
    own = lean.can_be_lean
    return lambda modules: monkeypatch.setattr(lean, "can_be_lean", (lambda x: False) if modules else own)


@pytest.mark.parametrize("training", [True, False])
def test_lean_is_the_modules(training: bool, by_modules: Callable[[bool], None]) -> None:
    """Output, loss, every gradient, and every second derivative of the whole compositional agent."""
    agent = small(dropout=0.0).train(training)
    x = windows().requires_grad_()
    wanted = [x, *agent.parameters()]
    found = []
    for modules in (False, True):
        by_modules(modules)
        with sdpa_kernel(SDPBackend.MATH):  # the one of PyTorch's that has second derivatives
            output, loss = agent(x[0], x[1])
            first = torch.autograd.grad(output.sin().sum() + loss, wanted, create_graph=True)
            second = torch.autograd.grad(sum(g.sin().sum() for g in first), wanted, allow_unused=True)
        found.append([output, loss, *first, *(g for g in second if g is not None)])
    assert len(found[0]) == len(found[1])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


PIECES: dict[str, tuple[Callable[..., Any], list[tuple[int, ...]]]] = {
    "norm_linear": (lambda r, g, b, w, c: lean._NormLinear.apply((1e-5, w.dtype), r, g, b, w, c),
                    [(2, 3, 4), (4,), (4,), (5, 4), (5,)]),
    "gelu_dropout_linear": (lambda h, w, b: lean._GeluDropoutLinear.apply(dropout.draw(h, 0.3), h, w, b),
                            [(2, 3, 4), (5, 4), (5,)]),
    "weighted_linear": (lambda c, s, w, b: lean._WeightedLinear.apply(None, c, s, w, b),
                        [(2, 6, 2, 3), (2, 6, 3), (5, 12), (5,)]),
    "add_dropped": (lambda x, o: lean.add_dropped(x, o, 0.3), [(2, 3, 4), (2, 3, 4)]),
    "leaky_relu, output": (lambda x: lean.leaky_relu(x, 0.2), [(2, 3, 4)]),
    "leaky_relu, signs": (lambda x: lean.leaky_relu(x, 0.2, "signs"), [(2, 3, 4)]),
}  # fmt: skip


@pytest.mark.parametrize("name", PIECES)
def test_gradients_are_finite_differences(name: str) -> None:
    """With dropout that drops the same at every evaluation; and each subset of what may need a gradient."""
    piece, shapes = PIECES[name]

    def same_draws(*tensors: Tensor) -> Any:
        torch.manual_seed(5)
        return piece(*tensors)

    torch.manual_seed(1)
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(same_draws, inputs)
    assert torch.autograd.gradgradcheck(same_draws, inputs)
    outputs = same_draws(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    everything = torch.autograd.grad(sum(o.sin().sum() for o in outputs), inputs)
    for k in range(len(inputs)):
        alone = [t.detach().requires_grad_(i == k) for i, t in enumerate(inputs)]
        outputs = same_draws(*alone)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        (grad,) = torch.autograd.grad(sum(o.sin().sum() for o in outputs), [alone[k]])
        torch.testing.assert_close(grad, everything[k], rtol=0, atol=1e-12)


def test_dropout_drops_the_share_asked_for_and_the_same_twice() -> None:
    x = torch.ones(3, 100_003)
    torch.manual_seed(3)
    mask, drawn = dropout.draw(x, 0.1)
    assert mask is not None
    assert drawn is not None
    assert torch.equal(mask.of(x), drawn)
    share = 1 - drawn.double().mean().item()
    assert abs(share - 0.1) < 5 * (0.09 / x.numel()) ** 0.5  # five standard deviations
    assert abs((drawn * mask.factor).double().mean().item() - 1) < 5 * (0.11 / x.numel()) ** 0.5
    _, other = dropout.draw(x, 0.1)
    assert other is not None
    both = (~drawn & ~other).double().mean().item()
    assert abs(both - 0.01) < 5 * (0.01 / x.numel()) ** 0.5  # independent
    torch.manual_seed(3)
    again = dropout.draw(x, 0.1)[1]
    assert again is not None
    assert torch.equal(again, drawn)
    assert dropout.draw(x, 0.0) == (None, None)
    torch.library.opcheck(dropout.seeded_mask, (x, torch.tensor(5), 9))


def test_dropout_in_the_encoder_is_pytorchs_in_distribution(by_modules: Callable[[bool], None]) -> None:
    """Mean and spread over many draws, of outputs and of a gradient, against the modules'."""
    torch.manual_seed(0)
    encoder = Encoder(8, 2, 16, 1, 0.3).double()
    x = torch.randn(1, 3, 8, dtype=torch.float64).expand(4000, -1, -1)
    found = []
    for modules in (False, True):
        by_modules(modules)
        start = x.clone().requires_grad_()
        out = encoder(start)
        (grad,) = torch.autograd.grad((out * torch.arange(8)).sum(), start)
        found.append((out.detach(), grad))
    for ours, theirs in zip(*found, strict=True):
        spread = (ours.std(0) + theirs.std(0)) / 2
        assert (ours.mean(0) - theirs.mean(0)).abs().max() < 6 * (2 / 4000) ** 0.5 * spread.max()
        torch.testing.assert_close(ours.std(0), theirs.std(0), rtol=0.2, atol=0.0)


@pytest.mark.parametrize("lean_wanted", [True, False])
def test_checkpointing_draws_the_same_again(lean_wanted: bool, by_modules: Callable[[bool], None]) -> None:
    by_modules(not lean_wanted)
    encoder = Encoder(16, 2, 32, 2, 0.2).double()
    x = torch.randn(2, 5, 16, dtype=torch.float64, requires_grad=True)
    found = []
    for wrapped in (False, True):
        torch.manual_seed(4)
        out = checkpoint(encoder, x, use_reentrant=False) if wrapped else encoder(x)
        found.append(torch.autograd.grad(out.sin().sum(), [x, *encoder.parameters()]))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)


@pytest.mark.parametrize("lean_wanted", [True, False])
def test_recompute_is_exact_and_keeps_less(lean_wanted: bool, by_modules: Callable[[bool], None]) -> None:
    """Bit-equal gradients, with dropout; what is kept in the encoder are its layers' inputs."""
    by_modules(not lean_wanted)
    agent, x = small(dropout=0.2), windows()
    found, sizes = [], []
    for again in (False, True):
        agent.composer.composer.recompute = again
        torch.manual_seed(4)
        output, loss = agent(*x)
        found.append(torch.autograd.grad(output.sin().sum() + loss, agent.parameters()))
        sizes.append(kept(agent.composer.composer, torch.randn(2, 40, 16, dtype=torch.float64)))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))
    assert sizes[1] < 0.3 * sizes[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_autocast_is_no_less_exact(dtype: torch.dtype, by_modules: Callable[[bool], None]) -> None:
    """Errors of gradients under autocast, and of 32-bit weights, against float64: at most those of the modules."""
    agent, x = small(dropout=0.0), windows()

    def grads() -> list[Tensor]:
        output, loss = agent(*x.to(next(agent.parameters()).dtype))
        return [g.double() for g in torch.autograd.grad(output.float().square().mean() + loss, agent.parameters())]

    exact = grads()
    agent.float()
    errors = []
    for modules in (False, True):
        by_modules(modules)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            found = grads()
        scale = max(g.abs().max() for g in exact)
        errors.append(sum((a - b).square().sum() for a, b in zip(found, exact, strict=True)).sqrt() / scale)
    assert errors[0] <= 1.3 * errors[1], errors  # both round at random: 30 % is their scatter


def test_16_bit_weights() -> None:
    agent = small().bfloat16()
    output, loss = agent(*windows(torch.bfloat16))
    (output.square().mean() + loss).backward()
    assert output.dtype == torch.bfloat16
    assert all(p.grad is not None and p.grad.isfinite().all() for p in agent.parameters())


def test_frozen_layers_get_no_gradients() -> None:
    agent = small(dropout=0.0)
    expected = torch.autograd.grad(agent(*windows())[1], agent.input_extractor.rhythm_conv1.weight)
    agent.composer.requires_grad_(False)
    _output, loss = agent(*windows())
    loss.backward()
    assert all(p.grad is None for p in agent.composer.parameters())
    torch.testing.assert_close(agent.input_extractor.rhythm_conv1.weight.grad, expected[0], rtol=0, atol=1e-13)


def kept(agent: nn.Module, *inputs: Tensor) -> int:
    own = {p.untyped_storage().data_ptr() for p in (*agent.parameters(), *agent.buffers(), *inputs)}
    storages: dict[int, int] = {}
    alive = []

    def pack(tensor: Tensor) -> Tensor:
        alive.append(tensor)
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        agent(*inputs)
    return sum(size for place, size in storages.items() if place not in own)


def test_what_a_layer_keeps(by_modules: Callable[[bool], None]) -> None:
    """Of an encoder layer [N, S, d] on a CPU, in units of its input: q, k, v, attention's output (twice: heads and
    frames change places on a CPU), both sums and the hidden layer of 4; attention's mask is apart."""
    encoder, x = Encoder(64, 1, 256, 2, 0.1), torch.randn(4, 8, 64)
    unit, masks, small_ones = x.nbytes, 2 * 4 * 8 * 8, 4 * 2 * 2 * 4 * 8
    by_modules(False)
    assert kept(encoder, x) - masks <= (3 + 2 + 2 + 4) * unit * 2 + small_ones
    by_modules(True)
    assert kept(encoder, x) - masks > 18 * unit * 2


def test_the_whole_step_keeps_what_the_benchmark_says() -> None:
    """On a CPU, where nothing stands in for anything, a hook of one's own counts less than the modules keep."""
    agent = AdaptiveWindowCreativeAgent(16, 2, window_frames=40, component_dim=8, composer_layers=2, composer_dim=64)
    x, y = torch.randn(2, 2, 16, 60).unbind(0)
    lean_bytes = kept(agent, x, y)
    agent.creative_agent.composer.composer.layers[0].linear1.register_forward_hook(lambda *ignored: None)
    hooked_bytes = kept(agent, x, y)
    assert lean_bytes < 0.85 * hooked_bytes


def test_what_is_compiled_or_transformed_is_left_to_modules() -> None:
    x = torch.zeros(1)
    assert lean.can_be_lean(x)
    with torch.no_grad():
        assert not lean.can_be_lean(x)
    seen = []
    torch.func.grad(lambda t: seen.append(lean.can_be_lean(t)) or t.sum())(x)
    with torch.autograd.forward_ad.dual_level():
        seen.append(lean.can_be_lean(torch.autograd.forward_ad.make_dual(x, x)))
    assert seen == [False, False]
    assert F.leaky_relu(torch.tensor(-1.0), 0.2) == lean.leaky_relu(torch.tensor(-1.0), 0.2)
