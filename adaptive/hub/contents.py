"""The files of a published agent, and what is checked of them.

    config.json          how the agent is built, and what it was trained on: one object, `FIELDS`
    model.safetensors    its state dict, under its own names
    README.md            the model card

`config.json` says of agent, codec and clips what a checkpoint of a training run says of them, in the same words, and is
read into the same `Checkpoint`: building the agent and fitting the weights are `build_agent`'s for both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors.torch import save

from .. import __version__
from ..model.agent import AdaptiveWindowCreativeAgent
from ..storage import strict_json
from ..training.checkpoint import (
    Checkpoint,
    CheckpointError,
    build_agent,
    checkpoint_in,
    codec_info,
    load_checkpoint,
    read_tensors,
)
from .card import model_card

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
FORMAT = 1
ARCHITECTURE = AdaptiveWindowCreativeAgent.__name__
DTYPES = {
    str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)
}
CODEC_FIELDS = {"name": str, "fingerprint": str, "random": bool, "frame_rate": (int, float)}
ABOUT = {"codec": (dict, type(None)), "clip_frames": (int, type(None)), "license": (str, type(None))}
FIELDS: dict[str, Any] = {"format": int, "version": str, "architecture": str, "agent": dict, "dtype": str, **ABOUT}
HERE = "here"  # where build_agent's messages are of the agent at hand
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")


def contents(agent: AdaptiveWindowCreativeAgent, given: Mapping[str, Any]) -> dict[str, bytes]:
    """The files by name. `given`: `codec`, `clip_frames` and `license` where they are not None, else as the agent says.

    Raises:
        CheckpointError: what was written could not be read again: weights of several kinds, not finite, or not those of
            a plain agent.
        TypeError, ValueError: a codec, number of frames or licence that is none.
    """
    weights = {name: value.detach().cpu().contiguous() for name, value in agent.state_dict().items()}
    dtypes = {str(value.dtype).removeprefix("torch.") for value in weights.values() if value.is_floating_point()}
    if len(dtypes) != 1 or not dtypes <= DTYPES.keys():
        raise CheckpointError(f"the agent's weights must be of one dtype of {', '.join(DTYPES)}, got {sorted(dtypes)}")
    config = {
        "format": FORMAT,
        "version": __version__,
        "architecture": ARCHITECTURE,
        "agent": {name: value for name, value in agent.arguments.items() if name != "backend"},
        "dtype": dtypes.pop(),
        **_about(agent.about, given),
    }
    _check_config(config, "the agent")
    build(Checkpoint(weights, config), Path(HERE))
    text = strict_json.dumps(config, indent=2) + "\n"
    parameters = sum(parameter.numel() for parameter in agent.parameters())
    return {
        CONFIG: text.encode(),
        WEIGHTS: save(weights, metadata={"format": "pt"}),
        CARD: model_card(config, parameters).encode(),
    }


def read(folder: Path) -> Checkpoint:
    """The agent of a folder, its weights on the CPU.

    Raises:
        CheckpointError: a file that is missing, or not what it should be; the message says what was got and wanted.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise CheckpointError(f"{folder} holds no {CONFIG}, which says how its agent is built")
    try:
        config = json.loads(path.read_text(encoding="utf-8"), parse_constant=_not_json)
    except (ValueError, RecursionError, OSError) as error:
        raise CheckpointError(f"{path} is no JSON: {error}") from error
    _check_config(config, str(path))
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise CheckpointError(f"{folder} holds no {WEIGHTS}{pickles_in(folder)}")
    return Checkpoint(read_tensors(weights)[0], config)


def read_any(path: Path) -> Checkpoint:
    """What `save_pretrained` wrote into a folder, a run's checkpoint in it (its best), or a checkpoint's file.

    Raises:
        CheckpointError: as `read` and `load_checkpoint`, or there is neither.
    """
    if any((path / name).exists() for name in (CONFIG, WEIGHTS)):
        return read(path)
    try:
        path = checkpoint_in(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}, and no {CONFIG} with {WEIGHTS}{pickles_in(path)}") from error
    return load_checkpoint(path)


def build(
    checkpoint: Checkpoint,
    path: Path,
    kind: type[AdaptiveWindowCreativeAgent] = AdaptiveWindowCreativeAgent,
    backend: str = "auto",
) -> AdaptiveWindowCreativeAgent:
    """`build_agent` in the weights' own precision, with what is known `about` them."""
    dtype = DTYPES[checkpoint.info.get("dtype", "float32")]
    agent = build_agent(checkpoint, path, kind, dtype, backend=backend)
    agent.about = {name: checkpoint.info.get(name) for name in ABOUT}
    return agent


def pickles_in(folder: Path) -> str:
    """Words for weights in the form that is never opened, where there are any."""
    found = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"))
    return f"; {', '.join(found)}: reading a pickle can run code, so it is never opened here" if found else ""


def _about(known: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    about = {name: known.get(name) if given.get(name) is None else given[name] for name in ABOUT}
    if given.get("codec") is not None:
        about["codec"] = codec_info(given["codec"])
    return about


def _not_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON's")


def _check_config(config: Any, where: str) -> None:
    """Raises `CheckpointError` for anything but what this version writes."""
    if not isinstance(config, dict):
        raise CheckpointError(f"{where} must hold an object, got {type(config).__name__}")
    if config.get("architecture") != ARCHITECTURE:
        theirs = next((config[key] for key in ("architecture", "architectures", "model_type") if key in config), None)
        raise CheckpointError(f"{where}: architecture must be {ARCHITECTURE}, got {theirs!r}: of another model")
    if isinstance(config.get("format"), int) and config["format"] > FORMAT:
        raise CheckpointError(
            f"{where} has format {config['format']}, this version reads up to {FORMAT}: upgrade adaptive-window"
        )
    _check_fields(config, FIELDS, where)
    if config["codec"] is not None:
        _check_fields(config["codec"], CODEC_FIELDS, f"{where}: codec")
    if config["dtype"] not in DTYPES:
        raise CheckpointError(f"{where}: dtype must be one of {', '.join(DTYPES)}, got {config['dtype']!r}")
    if config["clip_frames"] is not None and config["clip_frames"] < 1:
        raise CheckpointError(f"{where}: clip_frames must be at least 1, got {config['clip_frames']}")
    if config["license"] is not None and not _LICENSE.fullmatch(config["license"]):
        raise CheckpointError(
            f"{where}: license must be an identifier as the hub has it, such as mit or cc-by-nc-4.0, "
            f"got {config['license']!r}"
        )


def _check_fields(found: Mapping[str, Any], wanted: Mapping[str, Any], where: str) -> None:
    if unknown := sorted(found.keys() - wanted.keys()):
        raise CheckpointError(f"{where} has unknown fields: {', '.join(unknown)} (known: {', '.join(wanted)})")
    if missing := sorted(wanted.keys() - found.keys()):
        raise CheckpointError(f"{where} lacks {', '.join(missing)}")
    for name, kind in wanted.items():
        value = found[name]
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            names = " or ".join("null" if k is type(None) else k.__name__ for k in kinds)
            raise CheckpointError(f"{where}: {name} must be {names}, got {value!r}")
