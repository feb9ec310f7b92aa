"""What options must fulfil together: one function a group of options, all of which `check` calls for every command."""

from __future__ import annotations

from typing import Any

from ..errors import UsageError
from .bounds import SEEDS
from .options import AblateConfig, ClipOptions, DemoConfig, RefineConfig, TrainConfig


def check(config: Any) -> None:
    """Raises `UsageError` where options do not go together."""
    for kind, function in CHECKS:
        if isinstance(config, kind):
            function(config)


def check_clip(config: ClipOptions) -> None:
    clip, window = config.clip_seconds, config.window_seconds
    if clip < window:
        raise UsageError(f"--clip-seconds {clip:g} is shorter than --window-seconds {window:g}")


def check_longest_window(config: TrainConfig | AblateConfig) -> None:
    clip, window = config.clip_seconds, config.window_seconds
    longest = config.max_ratio * window
    if longest > clip * (1 + 1e-9):
        raise UsageError(
            f"--max-ratio {config.max_ratio:g} makes windows of up to {longest:g} s, longer than --clip-seconds "
            f"{clip:g}: clips of {longest:g} s, or a --max-ratio of at most {clip / window:g}"
        )


def check_objective(config: TrainConfig | AblateConfig) -> None:
    if config.anneal_blur and not config.matching_weight:
        raise UsageError("--anneal-blur blurs what matching compares: add --matching-weight, or leave it away")
    reach = (config.num_pairs - 1) * config.ratio_spread
    if config.ratio_diversity_weight and reach > config.max_ratio - 1 + 1e-9:
        raise UsageError(
            f"--ratio-spread {config.ratio_spread:g} for {config.num_pairs} pairs needs ratios up to "
            f"{1 + reach:g}, above --max-ratio {config.max_ratio:g}: all would end at the range's ends"
        )


def check_seeds(config: AblateConfig) -> None:
    if config.seed + config.seeds > SEEDS:
        raise UsageError(f"--seed {config.seed} and --seeds {config.seeds} go beyond the last seed, {SEEDS - 1}")


def check_search(config: RefineConfig) -> None:
    if config.features == "rhythm" and config.move != "input":
        raise UsageError(f"--features rhythm searches the input's window only, not --move {config.move}")


def check_demo_codec(config: DemoConfig) -> None:
    if config.random_codec and config.codec == "auto":
        raise UsageError("--random-codec: name the codec to initialize randomly with --codec")


CHECKS: tuple[tuple[Any, Any], ...] = (
    (ClipOptions, check_clip),
    ((TrainConfig, AblateConfig), check_longest_window),
    ((TrainConfig, AblateConfig), check_objective),
    (AblateConfig, check_seeds),
    (RefineConfig, check_search),
    (DemoConfig, check_demo_codec),
)
