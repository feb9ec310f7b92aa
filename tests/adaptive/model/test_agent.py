"""The drop-in contract of AdaptiveWindowCreativeAgent, its gradients, and that nothing waits for the device."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from adaptive_window import AdaptiveWindowCreativeAgent
from adaptive_window.model.composer import agent_loss

SMALL = {
    "encoding_dim": 8,
    "window_frames": 40,
    "component_dim": 4,
    "composer_heads": 2,
    "composer_layers": 1,
    "composer_dim": 16,
}
SELECTOR_ROWS = ("start_input", "start_target", "ratio_input", "ratio_target", "strength")


def small_agent(**changes: Any) -> AdaptiveWindowCreativeAgent:
    torch.manual_seed(0)
    return AdaptiveWindowCreativeAgent(**(SMALL | changes))


def clips(batch: int = 2, frames: int = 60, channels: int = 8, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(batch, channels, frames, generator=generator, dtype=dtype) for _ in range(2)]


def test_drop_in() -> None:
    """The loop of somebody who swapped one import, at full size."""
    agent = AdaptiveWindowCreativeAgent(encoding_dim=128, num_pairs=3)
    encoded_input, encoded_target = torch.randn(1, 128, 1200), torch.randn(1, 128, 1200)
    outputs, losses, metadata = agent(encoded_input, encoded_target)
    assert isinstance(outputs, list)
    assert [tuple(o.shape) for o in outputs] == [(1, 128, 800)] * 3
    assert isinstance(losses, list)
    assert [loss.shape for loss in losses] == [()] * 3
    loss = sum(o.square().mean() for o in outputs) + 0.1 * torch.mean(torch.stack(losses))
    loss.backward()
    assert metadata["num_pairs"] == 3
    assert len(metadata["pairs"]) == 3
    for i, pair in enumerate(metadata["pairs"]):
        assert set(pair) == {
            "start_input_mean",
            "start_target_mean",
            "ratio_input_mean",
            "ratio_target_mean",
            "tonality_strength_mean",
        }
        assert all(value.shape == () and not value.requires_grad for value in pair.values())
        text = f"Start: {pair['start_input_mean']:.1f} frames ({pair['start_input_mean'] / 50:.2f} s)"
        assert text.startswith("Start: ")
        for name in SELECTOR_ROWS:
            live = metadata["windows"][name]
            assert live.shape == (1, 3)
            assert live.requires_grad
            key = "tonality_strength_mean" if name == "strength" else f"{name}_mean"
            assert float(pair[key]) == pytest.approx(live[:, i].mean().item(), rel=1e-6)
    # every selector output moves, hence every parameter behind it
    gradient = agent.window_selector.mlp[8].bias.grad
    assert (gradient != 0).all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in agent.parameters())


def test_gradients_to_every_selector_output_are_those_of_finite_differences() -> None:
    agent, (x, y) = small_agent(encoding_dim=128).double().eval(), clips(channels=128, dtype=torch.float64)
    logits = agent.window_selector.logits(x, y).detach().requires_grad_()  # a fresh selector's, [2, 15]
    weight = [torch.randn(2, 128, 40, dtype=torch.float64) for _ in range(3)]

    def objective(raw: Tensor) -> Tensor:
        agent.window_selector.logits = lambda *_: raw  # type: ignore[method-assign]  # raw outputs as the variable
        outputs, losses, _ = agent(x, y)
        return torch.stack(losses).mean() + sum((o * w).mean() for o, w in zip(outputs, weight, strict=True))

    (exact,) = torch.autograd.grad(objective(logits), logits)
    assert (exact != 0).all()
    h = 1e-5
    with torch.no_grad():
        for index in range(logits.numel()):
            step = torch.zeros_like(logits)
            step.view(-1)[index] = h
            numeric = (objective(logits + step) - objective(logits - step)).item() / (2 * h)
            # rounding: objective of order 0.1, error about 1e-16/h = 1e-11; truncation h²/6 times a third derivative
            # that is at most some hundred times the first (positions move by up to 10 frames per unit of logit)
            assert numeric == pytest.approx(exact.view(-1)[index].item(), rel=1e-5, abs=1e-10)


def test_gradients_of_a_fresh_agent_in_training() -> None:
    agent, (x, y) = small_agent(), clips()
    _, losses, _ = agent(x, y)
    torch.stack(losses).mean().backward()
    assert (agent.window_selector.mlp[8].bias.grad != 0).all()


@pytest.mark.parametrize("pairs", [1, 2, 5])
def test_any_number_of_pairs(pairs: int) -> None:
    outputs, losses, metadata = small_agent(num_pairs=pairs)(*clips())
    assert len(outputs) == len(losses) == len(metadata["pairs"]) == pairs


@pytest.mark.parametrize(("frames", "window"), [(1200, 800), (1800, 1200), (61, 61), (1000, 7)])
def test_any_frame_rate_and_length(frames: int, window: int) -> None:
    agent = small_agent(window_frames=window)
    outputs, losses, metadata = agent(*clips(1, frames))
    assert [tuple(o.shape) for o in outputs] == [(1, 8, window)] * 3
    windows = metadata["windows"]
    end = windows["start_input"] + windows["ratio_input"] * window
    assert (end <= frames * (1 + 2**-22)).all()
    torch.stack(losses).mean().backward()


def test_one_pair_alone_is_the_pair_among_others() -> None:
    """Eval mode: pairs share a batch and nothing else."""
    agent, (x, y) = small_agent().eval(), clips(3)
    outputs, losses, metadata = agent(x, y)
    for i in range(3):
        alone = {name: value[:, i : i + 1] for name, value in metadata["windows"].items()}
        output, terms = agent.compose_windows(x, y, alone)
        torch.testing.assert_close(output[:, 0], outputs[i])
        torch.testing.assert_close(agent_loss(terms.mean(0))[0], losses[i])


def test_statistics_of_batch_norm_are_joint_over_pairs() -> None:
    agent = small_agent()
    norm, seen = agent.creative_agent.input_extractor.rhythm_norm, []
    norm.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    agent(*clips(2))
    assert seen == [(2 * 3, 4, 40)]
    assert norm.num_batches_tracked == 1


class ForbidWaiting(TorchDispatchMode):
    """Raises where Python or a shape would depend on a tensor's value."""

    names = ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select", "equal", "unique", "_unique2")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in self.names:
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("selector", ["mlp", "correlation"])
@pytest.mark.parametrize("training", [False, True])
def test_nothing_waits_for_the_device(training: bool, selector: str) -> None:
    agent, (x, y) = small_agent(selector=selector).train(training), clips()
    with pytest.raises(AssertionError, match="waits"), ForbidWaiting():
        float(x.sum())
    with ForbidWaiting():
        outputs, losses, _ = agent(x, y)
        (torch.stack(losses).mean() + outputs[0].mean()).backward()
        agent.compose(x, y, "best")


@pytest.mark.parametrize("training", [False, True])
def test_one_graph_for_the_compiler(training: bool) -> None:
    """Forward and backward trace without a break; `aot_eager` runs the traced graphs as they are."""
    agent, (x, y) = small_agent().train(training), clips()
    torch._dynamo.reset()
    compiled = torch.compile(agent, fullgraph=True, backend="aot_eager")

    def step(run: Any) -> tuple[Tensor, Tensor, Any]:
        agent.zero_grad()
        torch.manual_seed(5)
        outputs, losses, metadata = run(x, y)
        torch.stack(losses).mean().backward()
        return torch.stack(outputs), agent.window_selector.mlp[8].bias.grad.clone(), metadata

    output, gradient, metadata = step(compiled)
    assert (gradient != 0).all()
    assert metadata["pairs"][1]["start_input_mean"].shape == ()
    expected, expected_gradient, _ = step(agent)
    if not training:  # dropout draws in another order when traced
        torch.testing.assert_close(output, expected)
        torch.testing.assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("pick", ["mean", "best", 0, 2])
def test_compose(pick: str | int) -> None:
    agent, (x, y) = small_agent(), clips(4)
    agent.train()
    agent.tonality_reducer_input.eval()  # a mode of its own, to be restored
    before = [(m, m.training) for m in agent.modules()]
    state = copy.deepcopy(agent.state_dict())
    samples: list[int] = []
    hook = agent.creative_agent.composer.register_forward_pre_hook(lambda _, args: samples.append(len(args[0])))
    output, metadata = agent.compose_with_metadata(x, y, pick)
    hook.remove()
    assert torch.equal(agent.compose(x, y, pick), output)
    assert all(m.training == training for m, training in before)
    assert all(torch.equal(value, agent.state_dict()[key]) for key, value in state.items())
    assert not output.requires_grad
    assert samples == [4 if isinstance(pick, int) else 12]

    agent.eval()
    outputs, _, everything = agent(x, y)
    losses = torch.stack([
        torch.stack([
            agent_loss(agent.compose_windows(x[b : b + 1], y[b : b + 1], one(everything["windows"], b, p))[1][0, 0])
            for p in range(3)
        ])
        for b in range(4)
    ])  # fmt: skip
    if pick == "mean":
        expected, picked = torch.stack(outputs).mean(0), None
    elif pick == "best":
        picked = losses.argmin(1)
        assert len(picked.unique()) > 1  # else "per sample" goes untested
        expected = torch.stack([outputs[p][b] for b, p in enumerate(picked)])
    else:
        expected, picked = outputs[pick], torch.full((4,), pick)
        losses = losses[:, pick : pick + 1]
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(metadata["losses"], losses)
    assert metadata["num_pairs"] == losses.shape[1] == len(metadata["pairs"])
    assert metadata["windows"]["strength"].shape == losses.shape
    assert metadata["picked"] is None if picked is None else torch.equal(metadata["picked"], picked)


def one(windows: dict[str, Tensor], sample: int, pair: int) -> dict[str, Tensor]:
    return {name: value[sample : sample + 1, pair : pair + 1] for name, value in windows.items()}


@pytest.mark.parametrize(
    ("pick", "error"), [("worst", ValueError), (3, ValueError), (-1, ValueError), (True, TypeError), (1.0, TypeError)]
)
def test_compose_refuses(pick: Any, error: type[Exception]) -> None:
    agent = small_agent()
    with pytest.raises(error, match="pick must be 'mean', 'best' or a pair's number, 0 to 2, got"):
        agent.compose(*clips(), pick)
    assert agent.training


def test_modes_are_restored_after_an_error() -> None:
    agent = small_agent()
    with pytest.raises(ValueError, match="x_input must have at least 40 frames, got 39"):
        agent.compose(*clips(frames=39))
    assert all(m.training for m in agent.modules())


def test_statistics_are_the_shared_agents() -> None:
    agent, (x, y) = small_agent(), clips()
    assert agent.get_component_statistics(x, y) == agent.creative_agent.get_component_statistics(x, y)


@pytest.mark.parametrize("way", ["pickle", "deepcopy", "torch.save"])
def test_copies(way: str) -> None:
    agent, (x, y) = small_agent().eval(), clips()
    agent(x, y)
    if way == "pickle":
        other = pickle.loads(pickle.dumps(agent))
    elif way == "deepcopy":
        other = copy.deepcopy(agent)
    else:
        buffer = io.BytesIO()
        torch.save(agent, buffer)
        buffer.seek(0)
        other = torch.load(buffer, weights_only=False)
    torch.testing.assert_close(other(x, y)[0], agent(x, y)[0], rtol=0, atol=0)
    assert "num_pairs=3, window_frames=40, max_ratio=1.5" in repr(other)


def test_16_bits() -> None:
    agent, (x, y) = small_agent(), clips()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, losses, metadata = agent(x, y)
        assert all(loss.dtype == torch.float32 for loss in losses)
        assert all(value.dtype == torch.float32 for value in metadata["windows"].values())
    torch.stack(losses).mean().backward()
    outputs, losses, _ = agent.to(torch.bfloat16)(x.bfloat16(), y.bfloat16())
    assert outputs[0].dtype == torch.bfloat16
    assert losses[0].dtype == torch.float32


def test_wrong_inputs() -> None:
    agent, (x, y) = small_agent(), clips()
    with pytest.raises(ValueError, match=r"x_input must have shape \[B, C, T\]"):
        agent(x[0], y[0])
    with pytest.raises(ValueError, match=r"x_input must have 8 channels \(encoding_dim\), got 9"):
        agent(*clips(channels=9))
    with pytest.raises(ValueError, match=r"x_target must have shape \[2, 8, 60\].*got \[2, 8, 59\]"):
        agent(x, y[..., 1:])
    with pytest.raises(TypeError, match=r"x_input must have a floating dtype .*got int64"):
        agent(x.long(), y)
    with pytest.raises(ValueError, match="window_frames must be at most 2000"):
        AdaptiveWindowCreativeAgent(window_frames=2001)
    with pytest.raises(ValueError, match="selector must be 'mlp', 'correlation' or 'content', got 'best'"):
        AdaptiveWindowCreativeAgent(selector="best")


def test_transformed_windows_are_the_composers_own_at_places_that_are_data() -> None:
    agent, (x, y) = small_agent(dropout=0.0), clips()
    outputs, _, metadata = agent(x, y, transformed=True)
    cuts = agent.transform_windows(x, y, metadata["windows"])
    for name in ("input", "target"):
        assert torch.equal(metadata["transformed"][name], cuts[name])
    assert torch.equal(agent.compose_windows(x, y, metadata["windows"])[0][:, 1], outputs[1])
    assert "transformed" not in agent(x, y)[2]
    windows = metadata["windows"]
    asked = [
        windows["strength"],
        windows["start_input"],
        windows["ratio_target"],
        agent.tonality_reducer_input.norm.bias,
    ]
    total = sum(cut.square().sum() for cut in metadata["transformed"].values())
    gradients = torch.autograd.grad(total, asked, allow_unused=True)
    assert [g is None for g in gradients] == [False, True, True, False]


def test_strength_belongs_to_the_content_selector() -> None:
    with pytest.raises(ValueError, match="strength must be 'constant' for selector 'mlp', got 'harmony'"):
        small_agent(strength="harmony")
