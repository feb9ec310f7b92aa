"""`adaptive-window train`: from a configuration to a finished run folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..audio.cache import LatentCache
from ..audio.codec import Codec, load_codec
from ..audio.dataset import ClipDataset, find_examples
from ..config import TrainConfig, UsageError, cache_folder, to_plain
from ..plots import save_figure, trajectory_figure
from .checkpoint import LAST, PREVIOUS
from .evaluation import Evaluation
from .logging import RunLog, note
from .loop import Trainer, choose_device, write_summary
from .signals import StopSignals


@dataclass
class RunResult:
    """What a finished run leaves: its folder holds checkpoints, config, metrics, pictures and audio."""

    out: Path
    codec: Codec
    final: Evaluation
    summary: dict[str, Any]


def prepare_folder(out: Path, *, resume: bool) -> None:
    """Makes the run's folder, and finds out now, not at the first checkpoint, that it cannot be written.

    Raises:
        UsageError: not a folder, not writable, holds a run already, or holds none to resume.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; name a folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".probe-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise UsageError(f"--out {out} cannot be written: {error}") from error
    holds_run = any((out / name).exists() for name in (LAST, PREVIOUS))
    if resume and not holds_run:
        raise UsageError(f"--resume: {out} holds no {LAST} to go on from")
    if holds_run and not resume:
        raise UsageError(f"{out} holds a run already: add --resume to go on with it, or name another --out")


def run_training(config: TrainConfig) -> RunResult:
    """Trains as configured; see `TrainConfig` for every option.

    Raises:
        UsageError, and the errors of codecs, audio and data: what the user has to change, named.
        TrainingError: the loss stayed non-finite.
        KeyboardInterrupt, Terminated: SIGINT or SIGTERM came; what was trained is saved.
    """
    with StopSignals() as stop, stop.immediate():  # the trainer alone defers signals, where its state is not whole
        return _run(config, stop)


def _run(config: TrainConfig, stop: StopSignals) -> RunResult:
    prepare_folder(config.out, resume=config.resume)
    device = choose_device(config.device)
    if config.clip_seconds < config.window_seconds:
        raise UsageError(
            f"--clip-seconds {config.clip_seconds:g} is shorter than --window-seconds {config.window_seconds:g}"
        )
    codec = load_codec(config.codec, weights=config.weights, random=config.random_codec, device=str(device))
    train, held_out = find_examples(
        config.data, shuffle_targets=config.shuffle_targets, unity_test=config.unity_test, seed=config.seed
    )
    cache = LatentCache(cache_folder(config.cache), codec)
    shared: dict[str, Any] = {
        "clip_frames": codec.frames(config.clip_seconds),
        "seed": config.seed,
        "max_bad": config.max_bad,
        "progress": True,
    }
    train_set = ClipDataset(train, cache, clips_per_example=config.clips_per_song, **shared)
    held_out_set = ClipDataset(held_out, cache, random_crops=False, **shared)
    note(
        f"{len(train)} training and {len(held_out)} held-out songs, codec {codec.name} "
        f"({codec.frame_rate:g} frames/s), {device}"
    )
    (config.out / "config.yaml").write_text(yaml.safe_dump(to_plain(config), sort_keys=False), encoding="utf-8")
    trainer = Trainer(config, codec, train_set, held_out_set, stop)
    log = RunLog(
        config.out,
        to_plain(config),
        tensorboard=config.tensorboard,
        mlflow=config.mlflow,
        resumed=trainer.logged_until() if config.resume else None,
    )
    try:
        final = trainer.run(log)
    finally:
        log.close()
    draw_trajectory(trainer.evaluations, config.out / "trajectory.png")
    summary = write_summary(trainer, final, config.out / "summary.json")
    return RunResult(config.out, codec, final, summary)


def draw_trajectory(evaluations: list[Evaluation], path: Path) -> None:
    """Starts, ratios and strengths over the evaluations of the run."""
    labels = {
        "start in (s)": "start_input",
        "start out (s)": "start_target",
        "ratio in": "ratio_input",
        "ratio out": "ratio_target",
        "strength": "strength",
    }
    series = {label: np.stack([e.windows.mean(name) for e in evaluations]) for label, name in labels.items()}
    save_figure(trajectory_figure([e.step for e in evaluations], series, title="windows in training"), path)
