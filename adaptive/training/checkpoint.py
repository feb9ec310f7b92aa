"""One file a checkpoint: safetensors, with weights, optimizer and random state as tensors and the rest as JSON.

    model.<name>                     the agent's state dict
    optimizer.<parameter>.<slot>     AdamW's state, by parameter name
    random.<generator>               states of the random generators
    evaluation.<k>                   windows of the k-th evaluation
    metadata["adaptive_window"]      JSON: format version, config, codec, shape of the agent, progress
    metadata["sha256"]               of the whole file, with these 64 digits read as zeros

Nothing in it can execute code when it is read. The checksum is in the file, so that both change in one move, and any
reader of safetensors can open it. `last` is kept with the one before it: a kill at any moment leaves a whole one, and
so does a disk that damages the newest.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..console import note
from ..errors import UsageError
from ..model.agent import AdaptiveWindowCreativeAgent
from ..storage import strict_json
from ..storage.durable import flush, remove_leftovers, replacing

FORMAT = 2
KEY = "adaptive_window"
UNSEALED = "0" * 64
LAST, PREVIOUS, BEST = "last.safetensors", "previous.safetensors", "best.safetensors"

_SEAL = re.compile(rb'"sha256":"([0-9a-f]{64})"')  # other values have their quotes escaped: it matches nowhere else


class CheckpointError(UsageError):
    """A checkpoint that is missing, damaged, of a newer format or of another shape; the message says which."""


class DamagedCheckpoint(CheckpointError):
    """A file that is not what was written."""


@dataclass
class Checkpoint:
    """What a file holds. `info` has `format, agent, codec, config, progress, ...` (all plain JSON values)."""

    model: dict[str, Tensor]
    info: dict[str, Any]
    optimizer: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    random: dict[str, Tensor] = field(default_factory=dict)
    evaluations: dict[str, Tensor] = field(default_factory=dict)


def save_checkpoint(path: Path, checkpoint: Checkpoint, *, previous: Path | None = None) -> None:
    """Replaces `path` in one move; what was there becomes `previous`, where that is given.

    One process at a time may save to a path: what killed ones left half written is removed first, which makes room.

    Raises:
        CheckpointError: it cannot be written (a full disk); the file before it is as it was.
    """
    tensors = {f"model.{name}": value for name, value in checkpoint.model.items()}
    for name, slots in checkpoint.optimizer.items():
        tensors |= {f"optimizer.{name}.{slot}": value for slot, value in slots.items()}
    tensors |= {f"random.{name}": value for name, value in checkpoint.random.items()}
    tensors |= {f"evaluation.{name}": value for name, value in checkpoint.evaluations.items()}
    on_cpu = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    metadata = {KEY: strict_json.dumps({"format": FORMAT, **checkpoint.info}), "sha256": UNSEALED}
    # not save_file: its temporary file has a name of its own, by which nobody would find it after a kill
    content = save(on_cpu, metadata=metadata)
    try:
        remove_leftovers(path)
        with replacing(path) as temporary:
            _write_sealed(temporary, content)
            if previous is not None and path.exists():
                flush(temporary)  # whole on the disk before the one before it loses its name
                os.replace(path, previous)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be written ({error}); the checkpoint before it is whole: make room, then --resume"
        ) from error


def checkpoint_in(path: Path) -> Path:
    """The checkpoint that a path names: a file, or the best one of a run's folder (a demo's has it in `run`)."""
    if not path.is_dir():
        return path
    for folder in (path, path / "run"):
        for name in (BEST, LAST, PREVIOUS):
            if (folder / name).is_file():
                return folder / name
    raise CheckpointError(f"no checkpoint in the folder {path} (searched for {BEST}, {LAST})")


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads a file on the CPU, whole or not at all; of a folder, `checkpoint_in` it.

    Raises:
        DamagedCheckpoint: damaged, or not a safetensors file.
        CheckpointError: no such file, not of this package, or written by a newer version.
    """
    path = checkpoint_in(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    try:
        sealed = _check_seal(path)
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError) as error:
        raise DamagedCheckpoint(
            f"{path} is not a readable checkpoint (safetensors{_foreign(path)}): {error}"
        ) from error
    if KEY not in metadata:
        raise CheckpointError(f"{path} was not written by adaptive-window train")
    info = _read_info(path, metadata[KEY])
    if info["format"] > FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {info['format']}, this version reads up to {FORMAT}: upgrade adaptive-window"
        )
    if not sealed and info["format"] > 1:  # format 1 had no checksum
        raise DamagedCheckpoint(f"{path} is not a readable checkpoint: its checksum is missing")
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
        elif kind == "evaluation":
            checkpoint.evaluations[rest] = value
    return checkpoint


def load_last(folder: Path) -> tuple[Checkpoint, Path]:
    """`last`, or the one before it where `last` is damaged or missing, which a note says.

    Raises:
        CheckpointError: neither can be read, or `last` is of a newer format.
    """
    last, previous = folder / LAST, folder / PREVIOUS
    if not last.exists() and previous.exists():
        note(f"{last} is missing: the run was killed while it saved; going on from {previous.name}")
        return load_checkpoint(previous), previous
    try:
        return load_checkpoint(last), last
    except DamagedCheckpoint as damage:
        if not previous.exists():
            raise
        note(f"warning: {damage}; going on from the checkpoint before it, {previous.name}")
        return load_checkpoint(previous), previous


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


def _read_info(path: Path, text: str) -> dict[str, Any]:
    try:
        info = json.loads(text)
        if isinstance(info["format"], int):
            return dict(info)
    except (ValueError, TypeError, KeyError):
        pass
    raise DamagedCheckpoint(f"{path} is not a readable checkpoint: its metadata is not what adaptive-window writes")


def _write_sealed(path: Path, content: bytes) -> None:
    """The file, with the checksum where its header holds zeros."""
    found = _SEAL.search(content, 8, 8 + int.from_bytes(content[:8], "little"))
    if found is None or found[1] != UNSEALED.encode():
        raise RuntimeError("safetensors wrote its metadata in a form that has no place for the checksum")
    whole = memoryview(content)
    with path.open("wb") as file:
        file.write(whole[: found.start(1)])
        file.write(hashlib.sha256(content).hexdigest().encode())
        file.write(whole[found.end(1) :])


def _header(path: Path) -> bytes:
    """The first bytes of a safetensors file: the header's length, 8 bytes, and the header."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if length > size - 8:
            raise ValueError("its header is longer than the file")
        return start + file.read(length)


def _check_seal(path: Path) -> bool:
    """Whether the file has a checksum, which then is right; ValueError where it is wrong."""
    found = _SEAL.search(_header(path))
    if found is None:
        return False
    sha = hashlib.sha256()
    with path.open("rb") as file:
        sha.update(file.read(found.start(1)))
        sha.update(UNSEALED.encode())
        file.seek(found.end(1))
        while block := file.read(1 << 20):
            sha.update(block)
    if sha.hexdigest().encode() != found[1]:
        raise ValueError("its checksum differs from its content: the file is damaged")
    return True


def _foreign(path: Path) -> str:
    """Names the other format that people try; a pickle is not opened, since reading one can run code."""
    with path.open("rb") as file:
        start = file.read(4)
    pickled = start[:1] == b"\x80" or start == b"PK\x03\x04"
    return "; this is a pickle or a zip, as torch.save writes it, and never opened here" if pickled else ""
