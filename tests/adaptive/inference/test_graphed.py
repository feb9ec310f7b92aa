"""Composing batch after batch: the agent's own result, and on a GPU one graph."""

import pytest
import torch

from adaptive_window import AdaptiveWindowCreativeAgent
from adaptive_window.inference.graphed import GraphedCompose

SMALL = {"window_frames": 40, "component_dim": 4, "composer_heads": 2, "composer_layers": 1, "composer_dim": 16}


@pytest.mark.parametrize("pick", ["mean", "best", 1])
def test_it_is_the_agents(pick: str | int, device: torch.device) -> None:
    torch.manual_seed(0)
    agent = AdaptiveWindowCreativeAgent(16, 2, **SMALL).to(device)
    compose = GraphedCompose(agent, 3, 60, pick)
    for _ in range(2):
        x, y = torch.randn(2, 3, 16, 60, device=device).unbind(0)
        torch.testing.assert_close(compose(x, y), agent.compose(x, y, pick))
    with torch.no_grad():  # weights are read where they are
        for parameter in agent.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    torch.testing.assert_close(compose(x, y), agent.compose(x, y, pick))
    assert not compose(x, y).requires_grad


def test_shapes_are_those_of_the_graph(device: torch.device) -> None:
    compose = GraphedCompose(AdaptiveWindowCreativeAgent(16, 2, **SMALL).to(device), 2, 60)
    with pytest.raises(ValueError, match=r"y must have shape \[2, 16, 60\], got \[1, 16, 60\]"):
        compose(torch.zeros(2, 16, 60, device=device), torch.zeros(1, 16, 60, device=device))
