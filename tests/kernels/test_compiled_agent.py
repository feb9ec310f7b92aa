"""torch.compile(fullgraph=True) of the whole agent in training, forward and backward, on every backend."""

from __future__ import annotations

import shutil

import pytest
import torch
from agent_cases import CHANNELS, FRAMES, small_agent
from torch import Tensor

from adaptive_window.kernels.native import library


def step(agent: torch.nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and every gradient of one training step."""
    outputs, losses, metadata = agent(x, y)
    loss = torch.stack(outputs).square().mean() + torch.stack(losses).mean() + metadata["windows"]["start_input"].mean()
    loss.backward()
    grads = {name.removeprefix("_orig_mod."): p.grad for name, p in agent.named_parameters()}
    return loss.detach(), {name: g for name, g in grads.items() if g is not None}


def compare(backend: str, compiler: str, device: torch.device, tolerance: float) -> None:
    x, y = torch.randn(2, 2, CHANNELS, FRAMES, device=device).unbind(0)
    wanted, wanted_grads = step(small_agent(backend, device), x, y)
    torch.compiler.reset()
    compiled = torch.compile(small_agent(backend, device), fullgraph=True, backend=compiler)
    got, grads = step(compiled, x, y)
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)
    assert grads.keys() == wanted_grads.keys()
    assert any(name.startswith("window_selector.mlp.0") for name in grads)
    scale = max(float(g.abs().max()) for g in wanted_grads.values())
    for name, grad in grads.items():
        assert float((grad - wanted_grads[name]).abs().max()) <= tolerance * scale, name


@pytest.mark.proof
@pytest.mark.parametrize("backend", ["triton", "native", "reference"])
def test_one_graph(backend: str, device: torch.device) -> None:
    if backend == "triton":
        pytest.importorskip("triton")
    if backend == "native" and library.why_not() is not None:
        pytest.skip(f"no compiled CPU kernels: {library.why_not()}")
    compare(backend, "aot_eager", torch.device("cpu") if backend == "native" else device, 1e-5)


@pytest.mark.proof
@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")
def test_inductor(device: torch.device) -> None:
    pytest.importorskip("triton")
    compare("triton", "inductor", device, 1e-4)
