"""A training step's loss, compiled: the agent and the objective in one graph, and their backward pass in another.

`Forward` is called as `loss_of(forward, objective, autocast)(x, y, taken)` is, and decides at the first step what of it
TorchInductor compiles:

    agent and losses    where the losses are the same computation in every step (`Objective.why_not_traced`)
    agent               else; the losses stay eager
    nothing             with `--compile off`, or where the compiler fails: `auto` says why and goes on eagerly

Where it fails with `keep` "little", it is first asked again without all that this adds (`partition`, `choices`).

Everything is compiled without a graph break and for one shape: batches of a run are equally large, and evaluation runs
the agent itself, eagerly. On CUDA, in one process, the compiled parts are replayed as CUDA graphs. With `keep` "little"
the backward pass computes cheap things again (`partition`), with "all" it has what PyTorch's partition keeps for it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..console import note
from ..errors import UsageError
from .objective import Objective

EAGER = "eager"


class Loss(NamedTuple):
    """Of one step, differentiable but for the last."""

    loss: Tensor
    parts: dict[str, Tensor]
    pairs: list[dict[str, Tensor]]


Autocast = Callable[[], contextlib.AbstractContextManager[object]]


def loss_of(forward: Callable[..., Any], objective: Objective, autocast: Autocast) -> Callable[..., Loss]:
    """`(x, y, taken)`, two batches of clips and the number of steps before, to `Loss`."""

    def loss(x: Tensor, y: Tensor, taken: int | None) -> Loss:
        with autocast():
            outputs, losses, metadata = forward(x, y, **objective.agent_options)
        total, parts = objective(
            outputs, losses, metadata["windows"], x, y, step=taken, transformed=metadata.get("transformed")
        )
        return Loss(total, parts, metadata["pairs"])

    return loss


class CompileError(UsageError):
    """`--compile on` where the compiler cannot; the message says why."""


class Forward:
    """Callable: `(x, y, taken)` -> `Loss`, and `backward(loss)`.

    Args:
        forward: the agent, or what wraps it for several processes.
        objective: the losses.
        wanted: "auto" (compiles on CUDA), "on" or True, "off" or False.
        device: where the step runs.
        autocast: makes the context of the agent's precision.
        keep: for the backward pass of what is compiled, "little" or "all".
    """

    def __init__(
        self,
        forward: nn.Module,
        objective: Objective,
        wanted: str | bool,
        device: torch.device,
        autocast: Autocast,
        keep: str = "little",
    ) -> None:
        self.forward, self.objective, self.autocast, self.keep = forward, objective, autocast, keep
        self.device, self.must = device, wanted in ("on", True)
        self.mode = EAGER
        self.graphs = False  # whether compiled parts are replayed as CUDA graphs
        self._compiled: Callable[..., Loss] | None = None
        self.first = False  # whether the next step is the one that compiles
        self._began = 0.0
        self._breaks = 0
        if self.must or (wanted == "auto" and device.type == "cuda"):
            self._prepare()

    def __call__(self, x: Tensor, y: Tensor, taken: int) -> Loss:
        if self._compiled is None:
            return self.eagerly(x, y, taken)
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()
        return self._compiled(x, y, taken)

    def eagerly(self, x: Tensor, y: Tensor, taken: int) -> Loss:
        return loss_of(self.forward, self.objective, self.autocast)(x, y, taken)

    def begin(self) -> None:
        """Before the first compiled call."""
        self._began = time.perf_counter()

    def settle(self, error: Exception | None = None) -> None:
        """After the first step, which took or raised `error`: says what was compiled, or why it was not.

        Where `first` is still true then, that step is to be tried again.

        Raises:
            CompileError: it was not, and `--compile on` asked for it.
        """
        seconds, self.first = time.perf_counter() - self._began, False
        if error is None:
            graphs = ", replayed as CUDA graphs" if self.graphs else ""
            note(f"compiled: {self.mode}, with the backward pass, in {seconds:.0f} s ({self._made()}{graphs})")
            return
        self._compiled, compiled, self.mode = None, self.mode, EAGER
        reason = str(error).strip().splitlines() or [""]
        message = f"compiling the {compiled} failed after {seconds:.0f} s ({type(error).__name__}: {reason[0][:300]})"
        if self.keep == "little":
            note(f"{message}: trying with --keep all, PyTorch's own way")
            self.keep = "all"
            torch.compiler.reset()
            self._prepare()
            return
        if self.must:
            raise CompileError(f"--compile on: {message}; --compile off trains without") from error
        note(f"{message}: going on eagerly, in about twice the time")

    def _prepare(self) -> None:
        self.first = True
        from torch._inductor import metrics

        metrics.reset()
        self._breaks = _graph_breaks()
        self.distributed = isinstance(self.forward, nn.parallel.DistributedDataParallel)
        self.graphs = self.device.type == "cuda" and not self.distributed
        options: dict[str, Any] = {"triton.cudagraphs": True} if self.graphs else {}
        if self.keep == "little":
            from .partition import lean_options  # imports PyTorch's compiler

            options |= lean_options(self.device.type)
        settings: dict[str, Any] = {"dynamic": False, "options": options or None}
        reason = "gradients are averaged over processes" if self.distributed else self.objective.why_not_traced()
        if reason is None:
            self.mode = self._mode("agent and losses")
            whole = torch.compile(loss_of(self.forward, self.objective, self.autocast), fullgraph=True, **settings)
            self._compiled = lambda x, y, taken: whole(x, y, None)  # the same in every step
            return
        self.mode = self._mode("agent")
        note(f"compiling the agent alone, losses stay eager: {reason}")
        # DistributedDataParallel breaks the graph by its buckets, so that gradients travel while others are computed
        agent = torch.compile(self.forward, fullgraph=not self.distributed, **settings)
        self._compiled = loss_of(agent, self.objective, self.autocast)

    def _mode(self, compiled: str) -> str:
        return f"{compiled} (keeping little)" if self.keep == "little" else compiled

    def _made(self) -> str:
        from torch._inductor import metrics

        breaks = _graph_breaks() - self._breaks  # the counter is the process's
        return f"{metrics.generated_kernel_count} kernels of TorchInductor's, {breaks} graph breaks"


def _graph_breaks() -> int:
    from torch._dynamo.utils import counters

    return sum(counters["graph_break"].values())
