"""`adaptive-window train`: from a configuration to a finished run folder."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..audio.cache import LatentCache
from ..audio.codec import Codec, load_codec
from ..audio.dataset import ClipDataset, DataError, Example, SongsTooShort, files_of, find_bad, find_examples
from ..config import TrainConfig, cache_folder, check, command_line, reads, to_plain
from ..console import note
from ..device import choose_device
from ..errors import UsageError
from ..plots import save_figure, trajectory_figure
from ..storage import outputs
from ..storage.lock import FolderLock
from . import distributed
from .folder import CONFIG, holds_run, prepare_folder, save_config
from .logging import RunLog
from .loop import Trainer, write_summary
from .report import Evaluation
from .signals import StopSignals


@dataclass
class RunResult:
    """What a finished run leaves: its folder holds checkpoints, config, metrics, pictures and audio."""

    out: Path
    codec: Codec
    final: Evaluation
    summary: dict[str, Any]


@outputs.acting("train")
def run_training(config: TrainConfig, **agent_options: Any) -> RunResult:
    """Trains as configured; see `TrainConfig` for every option, `Trainer` for `agent_options`.

    Under torchrun the run is that of all processes together, and each of them returns its result. A run that torchrun
    restarts after a failure (`--max-restarts`) goes on from its last checkpoint, as with `--resume`.

    Raises:
        UsageError, and the errors of codecs, audio and data: what the user has to change, named.
        TrainingError: the loss stayed non-finite.
        KeyboardInterrupt, Terminated: SIGINT or SIGTERM came; what was trained is saved.
    """
    device = choose_device(config.device)
    # the trainer alone defers signals, where its state is not whole
    with StopSignals() as stop, stop.immediate(), distributed.process_group(device), FolderLock(config.out) as lock:
        return _run(config, device, stop, agent_options, lock)


def _run(
    config: TrainConfig, device: torch.device, stop: StopSignals, agent_options: dict[str, Any], lock: FolderLock
) -> RunResult:
    distributed.on_main(lambda: check_options(config))
    name = str(config.out.resolve())
    if distributed.begun_before(name):
        config = replace(config, resume=distributed.on_main(lambda: holds_run(config.out)))
    distributed.on_main(lambda: prepare_folder(config.out, lock, resume=config.resume, reads=reads(config)))
    distributed.mark_begun(name)
    codec, train_set, held_out_set = prepare_data(config, device)
    note(
        f"{len(train_set.examples)} training and {len(held_out_set.examples)} held-out songs, codec {codec.name} "
        f"({codec.frame_rate:g} frames/s), {device}{f', {distributed.size()} processes' * distributed.launched()}"
    )
    if distributed.is_main():
        save_config(config, config.out / CONFIG)
    trainer = Trainer(config, codec, train_set, held_out_set, stop, **agent_options)
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
    return RunResult(config.out, codec, final, distributed.on_main(lambda: finish(trainer, final)))


def prepare_data(
    config: TrainConfig,
    device: torch.device,
    held_out_clips: int = 1,
    retry: Callable[..., str] | None = None,
) -> tuple[Codec, ClipDataset, ClipDataset]:
    """Codec, training set and held-out set; what is not in the latent cache is encoded by all processes together.

    Of every held-out song there are `held_out_clips` clips, at fixed places. `retry` says what to call instead, given
    other lengths, where songs are too short (default: `train`).

    What is wrong is found by rank 0 first, which then says it alone.
    """
    codec = distributed.main_first(
        lambda: load_codec(config.codec, weights=config.weights, random=config.random_codec, device=str(device))
    )
    distributed.on_main(lambda: check_frames(config, codec))

    def find(skip: Collection[Path] = ()) -> tuple[list[Example], list[Example]]:
        modes = {"shuffle_targets": config.shuffle_targets, "unity_test": config.unity_test}
        return find_examples(config.data, seed=config.seed, skip=skip, **modes)

    train, held_out = distributed.main_first(find)
    cache, frames = LatentCache(cache_folder(config.cache), codec), codec.frames(config.clip_seconds)
    files = files_of(*train, *held_out)
    if distributed.size() > 1:
        cache.encode_all(distributed.share_of_node(files), progress=distributed.is_main())
        distributed.wait_for_all()
    bad = distributed.main_first(lambda: find_usable(config, retry, files, cache, frames))
    if bad:  # before the split: held-out songs that cannot be used would be missed
        train, held_out = distributed.main_first(lambda: find(bad))
    per_song, seed = config.clips_per_song, config.seed
    train_set = ClipDataset(train, cache, clip_frames=frames, clips_per_example=per_song, seed=seed)
    held_out_set = ClipDataset(
        held_out, cache, clip_frames=frames, clips_per_example=held_out_clips, seed=seed, random_crops=False
    )
    return codec, train_set, held_out_set


def find_usable(
    config: TrainConfig, retry: Callable[..., str] | None, files: list[Path], cache: LatentCache, frames: int
) -> dict[Path, str]:
    """`find_bad`, which says what to do where songs are too short."""
    try:
        return find_bad(files, cache, frames, max_bad=config.max_bad, progress=distributed.is_main())
    except SongsTooShort as error:
        clip = math.floor(error.usable_seconds * 100) / 100
        window = math.floor(config.window_seconds * clip / config.clip_seconds * 100) / 100
        if window < 0.1:
            raise
        lengths = {"clip_seconds": clip, "window_seconds": window}
        call = command_line("train", config, **lengths) if retry is None else retry(**lengths)
        raise DataError(
            f"--clip-seconds {config.clip_seconds:g} is longer than the songs. Shorter clips serve:\n  "
            f"{call}\n{error}\nOr add longer songs, or raise --max-bad"
        ) from error


def check_options(config: TrainConfig) -> None:
    """Raises `UsageError` where options do not go together, or not with this number of processes."""
    check(config)
    distributed.check_batch_size(config.batch_size)


def check_frames(config: TrainConfig, codec: Codec) -> None:
    """Raises `UsageError` where a length is none in the codec's frames."""
    for name, seconds in (("--clip-seconds", config.clip_seconds), ("--window-seconds", config.window_seconds)):
        if codec.frames(seconds) < 1:
            raise UsageError(f"{name} {seconds:g} is less than one frame of the {codec.name} codec")


def finish(trainer: Trainer, final: Evaluation) -> dict[str, Any]:
    """The run's picture and summary."""
    out = trainer.config.out
    draw_trajectory(trainer.evaluations, out / "metrics.jsonl", out / "trajectory.png")
    return write_summary(trainer, final, out / "summary.json")


TRAJECTORY = {  # axis label -> the evaluation's name, the step's name
    "start in (s)": ("start_input", "start_input_mean"),
    "start out (s)": ("start_target", "start_target_mean"),
    "ratio in": ("ratio_input", "ratio_input_mean"),
    "ratio out": ("ratio_target", "ratio_target_mean"),
    "strength": ("strength", "tonality_strength_mean"),
}


def draw_trajectory(evaluations: list[Evaluation], metrics: Path, path: Path) -> None:
    """Starts, ratios and strengths: the logged training steps as lines, the held-out evaluations as marks on top."""
    held_out = {label: np.stack([e.windows.mean(name) for e in evaluations]) for label, (name, _) in TRAJECTORY.items()}
    steps, batches = training_windows(metrics, evaluations[0].windows.frame_rate)
    figure = trajectory_figure(
        [e.step for e in evaluations], held_out, title="windows in training", line_steps=steps, lines=batches
    )
    save_figure(figure, path, into=outputs.writing)


def training_windows(metrics: Path, frame_rate: float) -> tuple[list[int], dict[str, NDArray[np.float64]]]:
    """The logged steps of a run, and every pair's mean windows in their batches, `[steps, P]` by axis label."""
    logged = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    logged = [entry for entry in logged if "train/pair0/start_input_mean" in entry]
    pairs = sum(key.endswith("/start_input_mean") for key in logged[0]) if logged else 0
    series = {}
    for label, (_, name) in TRAJECTORY.items():
        scale = frame_rate if name.startswith("start") else 1.0
        rows = [[entry[f"train/pair{pair}/{name}"] / scale for pair in range(pairs)] for entry in logged]
        series[label] = np.array(rows).reshape(len(logged), pairs)
    return [entry["step"] for entry in logged], series
