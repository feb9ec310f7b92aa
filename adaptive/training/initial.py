"""Weights to begin with: another run's, or those that the package brings (`default`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from ..config import TrainConfig
from ..errors import UsageError
from ..model.agent import AdaptiveWindowCreativeAgent
from .checkpoint import Checkpoint, load_checkpoint, load_weights


class Listened(Protocol):
    differentiable: bool


DEFAULT = "default"
DEFAULT_WEIGHTS = Path(__file__).resolve().parents[1] / "weights" / "default.safetensors"
HARMONY = ("window_selector.classes", "window_selector.pull")  # what `strength="harmony"` adds to a selector
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


def strength_of(config: TrainConfig, codec: Listened) -> str:
    """The agent's `strength` for `--strength` and a codec.

    Raises:
        UsageError: harmony was asked for where no selector, or no latent, tells of it.
    """
    can = config.selector == "content" and not codec.differentiable  # a codec that decodes has no spectrum as latents
    if config.strength == "harmony" and not can:
        raise UsageError(
            "--strength harmony needs --selector content and latents that are a spectrum (--codec mel), got "
            f"--selector {config.selector} and --codec {config.codec}: take auto or constant"
        )
    return "harmony" if can and config.strength != "constant" else "constant"


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
    weights = initial.model
    had, ours = (of.get("strength", "constant") for of in (theirs, arguments))
    if had == "harmony" and ours == "constant":
        raise UsageError(
            f"--init {name}: its strength follows harmony, this run's is constant: set --strength as it was"
        )
    if had == "constant" and ours == "harmony":
        fresh = agent.state_dict()
        weights = {key: fresh[key] for key in HARMONY} | dict(weights)
    load_weights(agent, weights, checkpoint_at(name))
