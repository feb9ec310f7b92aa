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
import inspect
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
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


def codec_info(codec: Any) -> dict[str, Any]:
    """What `info["codec"]` says of an `audio.codec.Codec`."""
    return {
        "name": codec.name,
        "fingerprint": codec.fingerprint,
        "random": codec.random,
        "frame_rate": codec.frame_rate,
    }


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
    tensors, metadata = read_tensors(path)
    if KEY not in metadata:
        raise CheckpointError(f"{path} was not written by adaptive-window train")
    info = _read_info(path, metadata[KEY])
    if info["format"] > FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {info['format']}, this version reads up to {FORMAT}: upgrade adaptive-window"
        )
    if "sha256" not in metadata and info["format"] > 1:  # format 1 had no checksum
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


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file, on the CPU; a checksum that it has is right.

    It is opened more than once, and a run may replace it in between: then it is read anew.

    Raises:
        DamagedCheckpoint: damaged, or not a safetensors file.
        CheckpointError: no such file.
    """
    while True:
        which = _which(path)
        try:
            found = _read_tensors(path)
        # torch opens the file for itself after safetensors has, and says RuntimeError where it has gone since.
        except (SafetensorError, OSError, RuntimeError, ValueError) as error:
            if which == _which(path):
                raise DamagedCheckpoint(
                    f"{path} is not a readable checkpoint (safetensors{_foreign(path)}): {error}"
                ) from error
        else:
            if which == _which(path):
                return found


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


def build_agent(
    checkpoint: Checkpoint,
    path: Path,
    kind: type[AdaptiveWindowCreativeAgent] = AdaptiveWindowCreativeAgent,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> AdaptiveWindowCreativeAgent:
    """The agent of a checkpoint with its weights, on the CPU.

    Args:
        path: what the checkpoint was read from, for the message alone.
        kind: the class to build, in `dtype`.
        options: arguments of the agent that are not the checkpoint's to say, such as `backend`.

    Raises:
        CheckpointError: arguments that make no agent, or weights that do not fit it.
    """
    arguments = checkpoint.info.get("agent")
    if not isinstance(arguments, dict):
        raise CheckpointError(f"{path} does not say how its agent is built: agent must be an object, got {arguments!r}")
    known = inspect.signature(AdaptiveWindowCreativeAgent).parameters
    if unknown := sorted(arguments.keys() - known.keys()):
        raise CheckpointError(
            f"{path}: the agent has no argument {', '.join(unknown)}: written by a newer version, or for another "
            f"model (known: {', '.join(known)})"
        )
    _check_sizes(arguments, checkpoint.model, path)
    try:
        agent = kind(**{**arguments, **options}).to(dtype)
    except (TypeError, ValueError, AssertionError, RuntimeError, MemoryError) as error:
        raise CheckpointError(f"{path}: no agent can be built from {arguments}: {error}") from error
    load_weights(agent, checkpoint.model, path)
    return agent


def load_weights(agent: AdaptiveWindowCreativeAgent, weights: Mapping[str, Tensor], path: Path) -> None:
    """Puts the weights into the agent: all of them or, where they do not fit, none.

    Raises:
        CheckpointError: other names, shapes or kinds of numbers, or numbers that are not finite; each is told.
    """
    wanted = agent.state_dict()
    both = [name for name in wanted if name in weights]
    shapes = [
        f"{name}: got {list(weights[name].shape)}, wanted {list(wanted[name].shape)}"
        for name in both
        if weights[name].shape != wanted[name].shape
    ]
    kinds = [
        f"{name}: got {weights[name].dtype}, wanted {wanted[name].dtype}"
        for name in both
        if weights[name].is_floating_point() != wanted[name].is_floating_point()
    ]
    wrong = {
        "missing": [name for name in wanted if name not in weights],
        "unknown": [name for name in weights if name not in wanted],
        "of another shape": shapes,
        "of another kind": kinds,
        "not finite": [name for name in both if not weights[name].isfinite().all()],
    }
    if found := [_some(what, names) for what, names in wrong.items() if names]:
        raise CheckpointError(f"the weights in {path} do not fit the agent: {'; '.join(found)}")
    agent.load_state_dict(dict(weights), strict=True)


def _some(what: str, names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{len(names)} {what} ({', '.join(names[:most])}{more})"


def _check_sizes(arguments: Mapping[str, Any], weights: Mapping[str, Tensor], path: Path) -> None:
    """Refuses, before memory is taken for them, sizes that these weights cannot have."""
    numbers = sum(value.numel() for value in weights.values())
    for name, value in arguments.items():
        most = len(weights) if name == "composer_layers" else numbers
        if name != "window_frames" and isinstance(value, int) and value > most:
            raise CheckpointError(f"{path}: {name} is {value}, which weights of {numbers} numbers cannot have")


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


def _which(path: Path) -> tuple[int, int, int]:
    """Differs once the file has been replaced. Raises `CheckpointError` where there is none."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        found = None
    if found is None or not stat.S_ISREG(found.st_mode):
        raise CheckpointError(f"no checkpoint at {path}")
    return found.st_ino, found.st_size, found.st_mtime_ns


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    sealed = _check_seal(path)
    with safe_open(path, framework="pt", device="cpu") as file:
        metadata = file.metadata() or {}
        if sealed != ("sha256" in metadata):
            raise ValueError("its checksum is not in the form in which adaptive-window writes it")
        return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 - not a dict


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
