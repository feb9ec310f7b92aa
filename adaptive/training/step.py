"""One optimizer step that nonsense cannot take, decided on the device.

    bad = not finite(loss) or not finite(norm of all gradients)        on any rank
    parameters, optimizer:  AdamW's fused kernel does nothing where `found_inf` is set (it is what GradScaler sets)
    BatchNorm statistics:   torch.where(bad, before, after)

The host does not wait to learn of it. Every step's figures travel to it behind the step's own kernels; the loop reads
them when the next step has been queued, so that the device always has work.
"""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config import TrainConfig
from . import distributed
from .objective import Objective


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then constant or half a cosine down to zero at `max_steps`. Steps count from 0."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    done = (step - config.warmup_steps) / max(1, config.max_steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def parameter_groups(agent: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """The selector's parameters, at `selector_rate` of the learning rate, and the others."""
    groups: dict[bool, list[nn.Parameter]] = {False: [], True: []}
    for name, parameter in agent.named_parameters():
        groups[name.startswith("window_selector.")].append(parameter)
    shares = {False: 1.0, True: config.selector_rate}
    return [{"params": found, "share": shares[kind]} for kind, found in groups.items() if found]


@dataclass
class StepRecord:
    """What is known of a step: at once its number, and once the device is through with it, its figures."""

    step: int  # from 1
    learning_rate: float
    files: tuple[str, ...]  # of this rank's share of the batch
    began: float  # time.perf_counter()
    names: tuple[str, ...]
    on_host: Tensor  # [len(names)] float64, filled when `done` has been reached
    done: torch.cuda.Event | None = None

    def figures(self) -> dict[str, float]:
        """`loss`, `gradient_norm`, the loss's parts, and `pairK/...`, every pair's mean windows (starts in frames).

        Waits for the device to be through with this step.
        """
        if self.done is not None:
            self.done.synchronize()
        return dict(zip(self.names, self.on_host.tolist(), strict=True))


def problem_of(figures: dict[str, float]) -> str | None:
    """What was not finite, so that the step was refused; None for a step that was taken."""
    if not figures["refused"]:
        return None
    return next(name for name in ("loss", "gradient_norm") if not math.isfinite(figures[name]))


class Stepper:
    """Callable: a batch and the number of steps before it -> `StepRecord`; see the module for what it refuses.

    `forward` is the agent, or what wraps or compiles it; the parameters and buffers are the agent's.
    """

    def __init__(
        self,
        agent: nn.Module,
        forward: nn.Module,
        optimizer: torch.optim.AdamW,
        objective: Objective,
        config: TrainConfig,
        device: torch.device,
    ) -> None:
        self.agent, self.forward, self.optimizer, self.objective = agent, forward, optimizer, objective
        self.config, self.device = config, device

    def __call__(self, batch: dict[str, Any], taken: int) -> StepRecord:
        began = time.perf_counter()
        rate = learning_rate(self.config, taken)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        self.agent.train()
        before = [buffer.clone() for buffer in self.agent.buffers()]
        dtype = next(self.agent.parameters()).dtype
        x, y = (batch[key].to(self.device, dtype, non_blocking=True) for key in ("input", "target"))
        with self._autocast():
            outputs, losses, metadata = self.forward(x, y)
        loss, parts = self.objective(outputs, losses, metadata["windows"], x, y, step=taken)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.agent.parameters(), self.config.clip_gradient)
        windows = {f"pair{k}/{name}": mean for k, pair in enumerate(metadata["pairs"]) for name, mean in pair.items()}
        figures = {"loss": loss, "gradient_norm": norm, **parts, **windows}
        figures["refused"] = ~(loss.isfinite() & norm.isfinite())
        on_device = distributed.mean(torch.stack([value.detach().double() for value in figures.values()]))
        bad = (on_device[-1] > 0).float()  # on any rank: a step is taken by all or by none
        self._take(bad)
        self._put_back(before, bad)
        on_host, done = self._send(on_device)
        files = tuple(sorted({*batch["input_file"], *batch["target_file"]}))
        return StepRecord(taken + 1, rate, files, began, tuple(figures), on_host, done)

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        wanted = self.config.precision
        if wanted == "auto":
            wanted = "bf16" if self.device.type == "cuda" else "float32"
        if wanted == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def _take(self, bad: Tensor) -> None:
        # the attributes by which PyTorch's GradScaler tells a fused optimizer to skip (torch/optim/adam.py)
        self.optimizer.grad_scale, self.optimizer.found_inf = None, bad  # type: ignore[attr-defined]  # as above
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def _put_back(self, before: list[Tensor], bad: Tensor) -> None:
        for buffer, value in zip(self.agent.buffers(), before, strict=True):
            buffer.copy_(torch.where(bad.bool(), value, buffer))

    def _send(self, figures: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
        if self.device.type != "cuda":
            return figures, None
        on_host = torch.empty(figures.shape, dtype=figures.dtype, pin_memory=True)
        on_host.copy_(figures, non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        return on_host, done
