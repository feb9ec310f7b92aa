"""Parameters, keys and shapes are a promise: checkpoints of the original load key by key and compute the same."""

import pytest
import torch
from original_agent import OriginalAgent

from adaptive_window import AdaptiveWindowCreativeAgent, CompositionalCreativeAgent
from adaptive_window.model.composer import agent_loss

BRANCHES = {"rhythm": (3, 5), "harmony": (7, 9), "timbre": (15, 21)}


def linear(key: str, *weight: int) -> dict[str, tuple[int, ...]]:
    return {f"{key}.weight": weight, f"{key}.bias": weight[:1]}


def compositional_keys() -> dict[str, tuple[int, ...]]:
    keys = {}
    for stream in ("input_extractor", "target_extractor"):
        for branch, (first, second) in BRANCHES.items():
            keys |= linear(f"{stream}.{branch}_conv1", 128, 128, first)
            keys |= linear(f"{stream}.{branch}_conv2", 64, 128, second)
            keys |= linear(f"{stream}.{branch}_skip", 64, 128, 1)
            keys |= linear(f"{stream}.{branch}_norm", 64)
            keys |= {f"{stream}.{branch}_norm.{name}": (64,) for name in ("running_mean", "running_var")}
            keys |= {f"{stream}.{branch}_norm.num_batches_tracked": ()}
    keys |= linear("component_selector.0", 256, 384, 1) | linear("component_selector.2", 6, 256, 1)
    keys |= linear("composer.component_projection", 512, 384)
    keys |= {"composer.pos_encoder.pe": (1, 2000, 512)}
    for i in range(4):
        layer = f"composer.composer.layers.{i}"
        keys |= {f"{layer}.self_attn.in_proj_weight": (1536, 512), f"{layer}.self_attn.in_proj_bias": (1536,)}
        keys |= linear(f"{layer}.self_attn.out_proj", 512, 512)
        keys |= linear(f"{layer}.linear1", 2048, 512) | linear(f"{layer}.linear2", 512, 2048)
        keys |= linear(f"{layer}.norm1", 512) | linear(f"{layer}.norm2", 512)
    return keys | linear("composer.output_projection.0", 256, 512) | linear("composer.output_projection.3", 128, 256)


def agent_keys() -> dict[str, tuple[int, ...]]:
    keys = {}
    for index, shape in ((0, (512, 12800)), (1, (512,)), (4, (256, 512)), (5, (256,)), (8, (15, 256))):
        keys |= linear(f"window_selector.mlp.{index}", *shape)
    for stream in ("input", "target"):
        keys |= linear(f"tonality_reducer_{stream}.depthwise", 128, 1, 7)
        keys |= linear(f"tonality_reducer_{stream}.pointwise", 128, 128, 1)
        keys |= linear(f"tonality_reducer_{stream}.norm", 128)
    return keys | {f"creative_agent.{key}": shape for key, shape in compositional_keys().items()}


def shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


def test_keys_and_shapes() -> None:
    assert shapes(CompositionalCreativeAgent()) == compositional_keys()
    assert shapes(AdaptiveWindowCreativeAgent()) == agent_keys()


def test_parameter_counts() -> None:
    agent = AdaptiveWindowCreativeAgent()
    count = {name: sum(p.numel() for p in child.parameters()) for name, child in agent.named_children()}
    assert count == {
        "window_selector": 6_690_831,  # 12800·512 + 512 + 2·512 + 512·256 + 256 + 2·256 + 256·15 + 15
        "tonality_reducer_input": 17_792,
        "tonality_reducer_target": 17_792,
        "creative_agent": 14_515_078,
    }


@pytest.fixture(scope="module")
def both() -> tuple[AdaptiveWindowCreativeAgent, OriginalAgent]:
    """The original with random weights and running statistics, and ours with its checkpoint; eval mode, float64."""
    torch.manual_seed(0)
    original = OriginalAgent(window_frames=40).eval()
    for key, value in original.state_dict().items():
        if key.endswith("running_var"):
            value.uniform_(0.5, 2.0)
        elif key.endswith("running_mean"):
            value.normal_()
    agent = AdaptiveWindowCreativeAgent(window_frames=40).eval()
    agent.load_state_dict(original.state_dict(), strict=True)
    return agent.double(), original.double()


def test_a_checkpoint_of_the_original_computes_the_same(both) -> None:
    agent, original = both
    x, y = torch.randn(2, 2, 128, 60, dtype=torch.float64)
    torch.testing.assert_close(agent.window_selector.logits(x, y), original.window_selector(x, y), rtol=0, atol=1e-12)
    strength = torch.rand(2, dtype=torch.float64)
    ours, theirs = agent.tonality_reducer_input(x, strength), original.tonality_reducer_input(x, strength)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    for ours, theirs in zip(agent.creative_agent(x, y), original.creative_agent(x, y), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_whole_windows_pass_the_agent_as_they_pass_the_original(both) -> None:
    """Where start and ratio·W are whole frames, truncation loses nothing and both agents agree."""
    agent, original = both
    x, y = torch.randn(2, 2, 128, 60, dtype=torch.float64)
    whole = {name: torch.randint(0, 10, (2, 3)).double() for name in ("start_input", "start_target")}
    # eighths: 40, 45 or 50 frames, exactly, as int(...) needs it
    ratios = {name: 1 + torch.randint(0, 3, (2, 3)).double() / 8 for name in ("ratio_input", "ratio_target")}
    windows = whole | ratios | {"strength": torch.rand(2, 3, dtype=torch.float64)}
    outputs, terms = agent.compose_windows(x, y, windows)
    theirs, losses, _ = original.compose_windows(x, y, windows)
    torch.testing.assert_close(outputs, torch.stack(theirs, dim=1), rtol=0, atol=1e-10)
    torch.testing.assert_close(agent_loss(terms.mean(0)), torch.stack(losses), rtol=0, atol=1e-10)
