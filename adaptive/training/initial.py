"""Weights to begin with: another run's, or those that the package brings (`default`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..model.agent import AdaptiveWindowCreativeAgent
from .checkpoint import Checkpoint, load_checkpoint, load_weights

DEFAULT = "default"
DEFAULT_WEIGHTS = Path(__file__).resolve().parents[1] / "weights" / "default.safetensors"
SIZES = ("component_dim", "composer_heads", "composer_layers", "composer_dim", "kernel_size")


def checkpoint_at(name: Path | None) -> Path:
    """The file that a name stands for: the package's weights for none and for `default`."""
    return DEFAULT_WEIGHTS if name is None or str(name) == DEFAULT else name


def described(path: Path) -> str:
    """What a command says of the weights it used."""
    return "the default weights of the package (docs/default-agent.md)" if path == DEFAULT_WEIGHTS else str(path)


def load_initial(name: Path) -> Checkpoint:
    return load_checkpoint(checkpoint_at(name))


def sizes_of(initial: Checkpoint) -> dict[str, Any]:
    """The composer's sizes, which a run that begins with these weights has to share."""
    return {key: value for key, value in initial.info["agent"].items() if key in SIZES}


def begin_with(agent: AdaptiveWindowCreativeAgent, arguments: dict[str, Any], initial: Checkpoint, name: Path) -> None:
    """Puts the weights into a fresh agent; lengths of clips and windows may differ from those they were trained at.

    Raises:
        UsageError: another codec's channels, selector, number of pairs or tonality transform.
    """
    theirs = initial.info["agent"]
    flags = {"encoding_dim": "codec", "selector": "selector", "num_pairs": "num-pairs", "restore": "restore"}
    older = {"selector": "mlp", "restore": "none"}  # what checkpoints without the key are
    for key, flag in flags.items():
        had = theirs.get(key, older.get(key))
        ours = arguments.get(key, older.get(key))
        if had is not None and had != ours:
            raise UsageError(f"--init {name}: its {key} is {had}, this run's {ours}: set --{flag} as it was")
    load_weights(agent, initial.model, checkpoint_at(name))
