"""An agent small enough for the interpreter."""

from __future__ import annotations

import torch

from adaptive_window.model.agent import AdaptiveWindowCreativeAgent

CHANNELS, FRAMES, WINDOW = 8, 60, 24


def small_agent(backend: str, device: torch.device) -> AdaptiveWindowCreativeAgent:
    torch.manual_seed(0)
    agent = AdaptiveWindowCreativeAgent(
        CHANNELS,
        2,
        window_frames=WINDOW,
        kernel_size=3,
        component_dim=4,
        composer_heads=2,
        composer_layers=1,
        composer_dim=16,
        dropout=0.0,  # random numbers differ between compiled and plain code
        backend=backend,
    )
    with torch.no_grad():
        agent.window_selector.mlp[8].weight.normal_(std=0.05)  # gradients reach the first layer
    return agent.to(device).train()
