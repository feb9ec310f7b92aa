"""Composing batch after batch of one shape: on CUDA one graph, whose replay is all that the host does."""

from __future__ import annotations

import torch
from torch import Tensor

from ..model.agent import AdaptiveWindowCreativeAgent


class GraphedCompose:
    """Callable: two batches of clips `[B, C, T]` to `agent.compose(x, y, pick)`, `[B, C, W]`.

    On CUDA the whole of it (selector, windows, composer, choice of the pair) is captured once as a CUDA graph and
    replayed, so that a small batch does not wait for its launches; elsewhere the agent is called. Weights are read
    where they are: changed in place they count at the next call, replaced they do not. The agent is put into eval mode.

    Args:
        agent: on its device.
        batch, frames: B and T of every call.
        pick: as `AdaptiveWindowCreativeAgent.compose`. "best" composes all pairs once; a pair's number that one alone.
    """

    def __init__(
        self, agent: AdaptiveWindowCreativeAgent, batch: int, frames: int, pick: str | int = "mean", warmups: int = 3
    ) -> None:
        weight = next(agent.parameters())
        self.agent, self.pick = agent.eval(), pick
        self.x, self.y = (weight.new_zeros(batch, agent.encoding_dim, frames) for _ in range(2))
        self._graph: torch.cuda.CUDAGraph | None = None
        if weight.is_cuda:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(warmups):  # libraries choose and allocate what they will use
                    agent.compose(self.x, self.y, pick)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._out = agent.compose(self.x, self.y, pick)
            self._graph = graph

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Raises ValueError for other shapes than those captured."""
        for name, value in (("x", x), ("y", y)):
            if value.shape != self.x.shape:
                raise ValueError(f"{name} must have shape {list(self.x.shape)}, got {list(value.shape)}")
        if self._graph is None:
            return self.agent.compose(x, y, self.pick)
        self.x.copy_(x, non_blocking=True)
        self.y.copy_(y, non_blocking=True)
        self._graph.replay()
        return self._out.clone()
