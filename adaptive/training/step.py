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
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config import TrainConfig
from ..console import note
from . import distributed
from .compiling import Forward, Loss
from .objective import Objective
from .state import random_state, restore_random


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then constant or half a cosine down to zero at `max_steps`. Steps count from 0."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    done = (step - config.warmup_steps) / max(1, config.max_steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def parameter_groups(agent: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """The selector's parameters, at `selector_rate` of the learning rate, and the others; all as one group at 1."""
    if config.selector_rate == 1.0:
        return [{"params": list(agent.parameters()), "share": 1.0}]
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


class Statistics:
    """BatchNorm's running statistics, which a forward pass in training changes, copied and put back in few launches."""

    def __init__(self, agent: nn.Module) -> None:
        norms = [module for module in agent.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]
        flat = [buffer.view(-1) for norm in norms for buffer in norm.buffers(recurse=False)]  # the same memory
        groups = [[b for b in flat if b.is_floating_point()], [b for b in flat if not b.is_floating_point()]]
        self._groups = [group for group in groups if group]  # counts of batches are integers

    def kept(self) -> list[Tensor]:
        return [torch.cat(group) for group in self._groups]

    @torch.no_grad()
    def put_back(self, before: list[Tensor], bad: Tensor) -> None:
        """Where `bad` (0-dim) is not 0; nothing else changes."""
        for group, old in zip(self._groups, before, strict=True):
            now = torch.where(bad.bool(), old, torch.cat(group))
            torch._foreach_copy_(group, now.split([buffer.numel() for buffer in group]))


def _together(figures: list[Tensor]) -> Tensor:
    """0-dim tensors as one `[len(figures)]`, float64; of one dtype, as they are outside of tests, in two launches."""
    detached = [value.detach() for value in figures]
    if len({value.dtype for value in detached}) > 1:
        detached = [value.double() for value in detached]
    return torch.stack(detached).double()


class Stepper:
    """Callable: a batch and the number of steps before it -> `StepRecord`; see the module for what it refuses.

    `forward` is the agent, or what wraps it; the parameters and buffers are the agent's. `compiling.Forward` compiles
    it with the objective, as `--compile` says.
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
        self.agent, self.optimizer = agent, optimizer
        self.config, self.device = config, device
        objective.listen.to(device)
        self.compute = Forward(forward, objective, config.compile, device, self._autocast, config.keep)
        self._statistics = Statistics(agent)

    @property
    def objective(self) -> Objective:
        return self.compute.objective

    @objective.setter
    def objective(self, objective: Objective) -> None:
        self.compute.objective = objective

    def __call__(self, batch: dict[str, Any], taken: int) -> StepRecord:
        began = time.perf_counter()
        rate = learning_rate(self.config, taken)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("share", 1.0)
        self.agent.train()
        before = self._statistics.kept()
        dtype = next(self.agent.parameters()).dtype
        x, y = (batch[key].to(self.device, dtype, non_blocking=True) for key in ("input", "target"))
        loss, parts, pairs = self._differentiated(x, y, taken, before)
        norm = nn.utils.clip_grad_norm_(self.agent.parameters(), self.config.clip_gradient)
        windows = {f"pair{k}/{name}": mean for k, pair in enumerate(pairs) for name, mean in pair.items()}
        figures = {"loss": loss, "gradient_norm": norm, **parts, **windows}
        told = _together(list(figures.values()))
        refused = ~told[:2].isfinite().all(0, keepdim=True)
        on_device = distributed.mean(torch.cat([told, refused]))
        bad = (on_device[-1] > 0).float()  # on any rank: a step is taken by all or by none
        self._take(bad)
        self._statistics.put_back(before, bad)
        on_host, done = self._send(on_device)
        files = tuple(sorted({*batch["input_file"], *batch["target_file"]}))
        return StepRecord(taken + 1, rate, files, began, (*figures, "refused"), on_host, done)

    def _differentiated(self, x: Tensor, y: Tensor, taken: int, before: list[Tensor]) -> Loss:
        """Loss and figures, with the gradients in place. Where compiling fails in the first step, it is begun anew."""
        if not self.compute.first:
            found = self.compute(x, y, taken)
            found.loss.backward()
            return found
        random = random_state(self.device)

        def timed(compute: Callable[[Tensor, Tensor, int], Loss]) -> tuple[Loss, float]:
            restore_random(random, self.device)  # every try begins where the first did
            self._statistics.put_back(before, torch.ones((), device=self.device))
            self.optimizer.zero_grad(set_to_none=True)
            began = time.perf_counter()
            found = compute(x, y, taken)
            found.loss.backward()
            return found, time.perf_counter() - began

        compare = self.device.type == "cpu"  # where it is not known to gain
        eager = timed(self.compute.eagerly)[1] if compare else None
        while self.compute.first:
            self.compute.begin()
            try:
                found, seconds = timed(self.compute)
                if compare:
                    found, seconds = timed(self.compute)
            except Exception as error:  # whatever a compiler raises
                self.compute.settle(error)
                continue
            self.compute.settle()
            if eager is not None:
                gain = "gains" if seconds < 0.97 * eager else "gains nothing, --compile off does as well"
                note(f"on this CPU a compiled step takes {seconds:.2f} s, an eager one {eager:.2f}: compiling {gain}")
            return found
        return timed(self.compute)[0]

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

    def _send(self, figures: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
        if self.device.type != "cuda":
            return figures, None
        on_host = torch.empty(figures.shape, dtype=figures.dtype, pin_memory=True)
        on_host.copy_(figures, non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        return on_host, done
