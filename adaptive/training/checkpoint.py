"""One file a checkpoint: safetensors, with weights, optimizer and random state as tensors and the rest as JSON.

    model.<name>                     the agent's state dict
    optimizer.<parameter>.<slot>     AdamW's state, by parameter name
    random.cpu, random.cuda          states of PyTorch's generators
    metadata["adaptive_window"]      JSON: format version, config, codec, shape of the agent, progress

Nothing in it can execute code when it is read. It is written beside its place, flushed to the disk and moved there, so
that a run killed while it saves leaves the previous checkpoint whole.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..config import UsageError
from ..model.agent import AdaptiveWindowCreativeAgent

FORMAT = 1
KEY = "adaptive_window"


class CheckpointError(UsageError):
    """A checkpoint that is missing, damaged, of a newer format or of another shape; the message says which."""


@dataclass
class Checkpoint:
    """What a file holds. `info` has `format, agent, codec, config, progress` (all plain JSON values)."""

    model: dict[str, Tensor]
    info: dict[str, Any]
    optimizer: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    random: dict[str, Tensor] = field(default_factory=dict)


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Writes the file atomically: temporary file, fsync, rename, fsync of the folder."""
    tensors = {f"model.{name}": value for name, value in checkpoint.model.items()}
    for name, slots in checkpoint.optimizer.items():
        tensors |= {f"optimizer.{name}.{slot}": value for slot, value in slots.items()}
    tensors |= {f"random.{name}": value for name, value in checkpoint.random.items()}
    on_cpu = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(on_cpu, temporary, metadata={KEY: json.dumps({"format": FORMAT, **checkpoint.info})})
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads a file on the CPU.

    Raises:
        CheckpointError: no such file, not a checkpoint of this package, damaged, or written by a newer version.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not a readable checkpoint (safetensors): {error}") from error
    if KEY not in metadata:
        raise CheckpointError(f"{path} was not written by adaptive-window train")
    info = json.loads(metadata[KEY])
    if info["format"] > FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {info['format']}, this version reads up to {FORMAT}: upgrade adaptive-window"
        )
    checkpoint = Checkpoint(model={}, info=info)
    for name, value in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "model":
            checkpoint.model[rest] = value
        elif kind == "optimizer":
            parameter, _, slot = rest.rpartition(".")
            checkpoint.optimizer.setdefault(parameter, {})[slot] = value
        elif kind == "random":
            checkpoint.random[rest] = value
    return checkpoint


def build_agent(checkpoint: Checkpoint, path: Path) -> AdaptiveWindowCreativeAgent:
    """The agent of a checkpoint with its weights, on the CPU; `path` only for the message."""
    agent = AdaptiveWindowCreativeAgent(**checkpoint.info["agent"])
    load_weights(agent, checkpoint.model, path)
    return agent


def load_weights(agent: AdaptiveWindowCreativeAgent, weights: Mapping[str, Tensor], path: Path) -> None:
    try:
        agent.load_state_dict(dict(weights), strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"the weights in {path} do not fit the agent: {error}") from error


def optimizer_state(optimizer: torch.optim.Optimizer, agent: torch.nn.Module) -> dict[str, dict[str, Tensor]]:
    """AdamW's state by parameter name (PyTorch numbers parameters; names survive a change of order)."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in agent.named_parameters()}
    return {names[parameter]: dict(slots) for parameter, slots in optimizer.state.items()}


def restore_optimizer(
    optimizer: torch.optim.Optimizer, agent: torch.nn.Module, state: Mapping[str, Mapping[str, Tensor]]
) -> None:
    for name, parameter in agent.named_parameters():
        if name in state:
            slots = state[name]
            # `step` stays on the CPU, where AdamW keeps it unless it is fused or capturable
            moved = {k: v.clone() if k == "step" else v.to(parameter.device).clone() for k, v in slots.items()}
            optimizer.state[parameter] = moved


def random_state() -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random(state: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        with contextlib.suppress(RuntimeError, AssertionError):  # a CUDA run resumed on a CPU
            torch.cuda.set_rng_state(state["cuda"])
