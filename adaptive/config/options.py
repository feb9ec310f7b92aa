"""What the commands can be told: one dataclass a command, one field a flag, defaults and help beside it.

`add_flags` turns a dataclass into command-line flags (`max_steps` becomes `--max-steps`); the same names are the keys
of a `--config` YAML file and of the effective config that a run saves.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .bounds import (
    AtLeastOne,
    ClosedUnitInterval,
    CodecName,
    Device,
    DropoutRate,
    NonNegativeFloat,
    NonNegativeInt,
    PairCount,
    PositiveFloat,
    PositiveInt,
    Seed,
    Song,
    WorkerCount,
)
from .flags import flag, positional


@dataclass(kw_only=True)
class CodecOptions:
    """Which codec turns audio into latents and back, and where its weights are."""

    codec: CodecName = flag("mel", "codec of the latents; mel needs no weights")
    weights: Path | None = flag(None, "file or folder with the codec's weights (default: hub caches, then a download)")
    random_codec: bool = flag(False, "randomly initialized codec: only for trying the plumbing, marked everywhere")
    cache: Path | None = flag(None, "folder of the latent cache (default: adaptive-window in the user's cache folder)")


@dataclass(kw_only=True)
class DataOptions:
    """Where songs come from, and how they become pairs of clips."""

    data: Path = flag(text="folder of songs, or of NAME_input.* with NAME_target.* in train/ and val/")
    unity_test: bool = flag(False, "sanity mode: the target is the input itself")
    shuffle_targets: bool = flag(False, "sanity mode: targets are exchanged among songs")
    max_bad: ClosedUnitInterval = flag(0.05, "share of unreadable or too short files that ends the run")
    seed: Seed = flag(0, "seed of the split, the crops, the initialization and the dropout")


@dataclass(kw_only=True)
class TrainConfig(CodecOptions, DataOptions):
    """Everything that `adaptive-window train` can be told."""

    out: Path = flag(text="folder of the run: checkpoints, logs, pictures, audio, config")
    init: Path | None = flag(
        None, "checkpoint whose weights to begin with, or `default`: those that the package brings"
    )
    resume: bool = flag(False, "go on from the last checkpoint in --out")
    force: bool = flag(False, "resume also with another batch size, world size, seed or data set")
    device: Device = flag("auto", "where to train; auto takes CUDA where there is one")
    workers: WorkerCount = flag(0, "data loader processes")
    worker_start: Literal["fork", "spawn"] = flag("fork", "how they start: quickly, or as fresh interpreters")

    num_pairs: PairCount = flag(3, "pairs of windows")
    selector: Literal["content", "mlp", "correlation"] = flag(
        "content",
        "what chooses windows: tempos and likeness of the two songs, a network over both clips, or the input's best "
        "match with learned target windows",
    )
    clip_seconds: PositiveFloat = flag(24.0, "length of the clips that windows are chosen from")
    window_seconds: PositiveFloat = flag(16.0, "length of the composed pattern")
    max_ratio: AtLeastOne = flag(1.5, "strongest compression in time")
    max_strength: ClosedUnitInterval = flag(1.0, "strongest transform of the tonality; 0 switches it off")

    dropout: DropoutRate = flag(0.1, "dropout in the agent")

    max_steps: PositiveInt = flag(2000, "optimizer steps in all")
    batch_size: PositiveInt = flag(4, "pairs of clips a step, over all processes together")
    clips_per_song: PositiveInt = flag(8, "random clips of every song an epoch")
    learning_rate: PositiveFloat = flag(1e-3, "peak learning rate of AdamW")
    selector_rate: PositiveFloat = flag(0.05, "the selector's learning rate, as a share of that")
    weight_decay: NonNegativeFloat = flag(0.01, "weight decay of AdamW")
    schedule: Literal["cosine", "constant"] = flag("cosine", "learning rate after the warm-up")
    warmup_steps: NonNegativeInt = flag(50, "steps of linear warm-up")
    clip_gradient: PositiveFloat = flag(1.0, "gradient norm to clip to")
    precision: Literal["auto", "float32", "bf16", "float64"] = flag(
        "auto", "bf16 is autocast, float64 for checks (weights too); auto is bf16 on CUDA, float32 on CPU"
    )
    sync_batchnorm: bool = flag(False, "under torchrun: BatchNorm statistics of the whole batch, not of each process")
    compile: bool = flag(False, "torch.compile the agent")
    patience: NonNegativeInt = flag(0, "epochs without a better held-out loss that end the run; 0 never does")
    max_refused: PositiveInt = flag(10, "steps in a row with a non-finite loss or gradient that end the run")

    spectral: Literal["decoded", "latent"] = flag(
        "decoded", "spectral loss: STFT of decoded audio (log-mel distance for the mel codec), or distance of latents"
    )
    spectral_weight: NonNegativeFloat = flag(1.0, "weight of the spectral loss")
    decode_seconds: PositiveFloat = flag(4.0, "seconds of each pattern that the decoded loss looks at in a step")
    rhythm_from: Song = flag("input", "song whose onsets patterns follow")
    harmony_from: Song = flag("target", "song whose pitch classes and timbre patterns follow")
    onset_weight: NonNegativeFloat = flag(0.5, "weight of 1 - correlation of onsets with --rhythm-from's window")
    harmony_weight: NonNegativeFloat = flag(0.5, "weight of 1 - correlation of chroma with --harmony-from's window")
    novelty_weight: NonNegativeFloat = flag(0.1, "weight of the mean of the pairs' own losses")
    novelty_after: ClosedUnitInterval = flag(0.3, "share of the run in which that weight grows from 0 to its value")
    matching_weight: NonNegativeFloat = flag(0.0, "weight of 1 - correlation of the two windows of a pair")
    anneal_blur: NonNegativeFloat = flag(
        0.0, "frames by which both clips are blurred, at first, before the windows that matching compares are cut"
    )
    anneal_until: ClosedUnitInterval = flag(0.75, "share of the run after which nothing is blurred any more")
    novelty: Literal["original", "corrected"] = flag(
        "original", "those losses: the original's, or with likeness and balance measured so that signs cannot cancel"
    )
    reconstruction_weight: NonNegativeFloat = flag(
        0.0, "weight of the mean squared difference of each pattern and its pair's window of the target"
    )
    overlap_weight: NonNegativeFloat = flag(0.0, "weight of the penalty on pairs that choose the same region")
    ratio_diversity_weight: NonNegativeFloat = flag(0.0, "weight of the reward for ratios that differ among pairs")
    ratio_spread: PositiveFloat = flag(0.1, "difference of two ratios beyond which that reward no longer grows")
    rhythm_weight: NonNegativeFloat = flag(0.0, "weight of tempo matching between the two windows of a pair")
    envelope_copy_weight: NonNegativeFloat = flag(0.0, "weight of the penalty on copying a source's loudness envelope")

    save_every: NonNegativeInt = flag(0, "steps between checkpoints within an epoch; 0: by --save-minutes alone")
    save_minutes: NonNegativeFloat = flag(10.0, "minutes between checkpoints within an epoch; 0: by --save-every alone")
    log_every: PositiveInt = flag(10, "steps between log entries")
    examples: NonNegativeInt = flag(1, "held-out examples whose audio and picture are written at each evaluation")
    tensorboard: bool = flag(True, "write TensorBoard logs to OUT/tensorboard")
    mlflow: bool = flag(False, "log to MLflow too (sqlite store OUT/mlflow.db unless MLFLOW_TRACKING_URI is set)")


@dataclass(kw_only=True)
class EncodeConfig(CodecOptions):
    """Everything that `adaptive-window encode` can be told."""

    data: Path = flag(text="folder of audio files, searched recursively")
    device: Device = flag("auto", "where to encode")


@dataclass(kw_only=True)
class SongPairOptions:
    """Two songs, the checkpoint that chooses their windows, and which 24 s of each."""

    input: Path = positional("the input song")
    target: Path = positional("the target song")
    checkpoint: Path | None = flag(
        None, "checkpoint of a training run (OUT/best.safetensors or OUT/last.safetensors; default: the package's own)"
    )
    at: NonNegativeFloat = flag(0.0, "second at which the clip begins in the songs")
    at_target: NonNegativeFloat | None = flag(None, "the same for the target, where it differs")
    weights: Path | None = flag(None, "file or folder with the codec's weights")
    random_codec: bool = flag(False, "accept a checkpoint made with a randomly initialized codec")
    device: Device = flag("auto", "where to run")


@dataclass(kw_only=True)
class ComposeConfig(SongPairOptions):
    """Everything that `adaptive-window compose` can be told."""

    output: Path = flag(text="WAV file to write; a JSON of the windows is written beside it", short="-o")
    pick: str = flag("mean", "mean of all pairs, best (least loss), or the number of one pair from 0")


@dataclass(kw_only=True)
class PlotConfig(SongPairOptions):
    """Everything that `adaptive-window plot` can be told."""

    output: Path = flag(text="picture to write (.png, .svg or .pdf)", short="-o")


@dataclass(kw_only=True)
class RefineConfig:
    """Everything that `adaptive-window refine` can be told."""

    input: Path = positional("the input song, in which a window is sought")
    target: Path = positional("the target song, whose window is to be found")
    out: Path = flag(Path("refine-out"), "folder for refine.json, windows.png and the windows as WAV", short="-o")
    at: NonNegativeFloat = flag(0.0, "second at which the clip begins in the songs")
    at_target: NonNegativeFloat | None = flag(None, "the same for the target, where it differs")
    clip_seconds: PositiveFloat = flag(24.0, "at most so much of a song is searched")
    window_seconds: PositiveFloat = flag(16.0, "length of the matched windows, after resampling")
    max_ratio: AtLeastOne = flag(1.5, "strongest compression in time that is sought")
    move: Literal["input", "target", "both"] = flag(
        "input", "song whose window is sought; the other's is the first --window-seconds of its clip"
    )
    features: Literal["latent", "energy", "difference", "rhythm"] = flag(
        "latent",
        "what is compared; energy and difference follow the loudness, for latents that are white in time; rhythm "
        "finds one tempo and beat, whatever is played",
    )
    codec: CodecName = flag("mel", "codec of the latents; mel needs no weights")
    weights: Path | None = flag(None, "file or folder with the codec's weights")
    random_codec: bool = flag(False, "randomly initialized codec: only for trying the plumbing")
    device: Device = flag("auto", "where to run")


@dataclass(kw_only=True)
class DemoConfig:
    """Everything that `adaptive-window demo` can be told."""

    out: Path = flag(Path("demo-out"), "folder for songs, patterns, pictures and metrics")
    max_steps: PositiveInt = flag(40, "training steps")
    batch_size: PositiveInt = flag(1, "pairs of clips a step")
    codec: Literal["auto", "mel", "encodec-24khz", "encodec-32khz"] = flag(
        "auto", "auto is EnCodec 32 kHz where its weights are at hand or can be fetched, else mel"
    )
    weights: Path | None = flag(None, "file or folder with the codec's weights")
    random_codec: bool = flag(False, "randomly initialized codec: only for trying the plumbing, marked everywhere")
    seed: Seed = flag(0, "seed of the music and of the training")
    device: Device = flag("auto", "where to run")


@dataclass(kw_only=True)
class AblateConfig(CodecOptions):
    """Everything that `adaptive-window ablate` can be told."""

    out: Path = flag(text="folder for the table (CSV, Markdown), the plot and the runs' logs")
    data: Path | None = flag(None, "folder of songs, as for train (default: synthesized music)")
    songs: PositiveInt = flag(8, "synthesized training pairs, where --data is not given")
    held_out_songs: PositiveInt = flag(4, "synthesized held-out pairs, where --data is not given")
    max_bad: ClosedUnitInterval = flag(0.05, "share of unreadable or too short files that ends the run")
    device: Device = flag("auto", "where to train")
    workers: NonNegativeInt = flag(0, "data loader processes")

    seeds: PositiveInt = flag(3, "runs of every variant")
    seed: NonNegativeInt = flag(0, "seed of the first; also of the music and of the held-out clips")
    agent: Literal["small", "full"] = flag(
        "small", "composer: 16 channels a component, 2 layers of width 64; or the whole, 64 and 4 of width 512"
    )
    num_pairs: PositiveInt = flag(3, "pairs of windows, where there is more than one")
    clip_seconds: PositiveFloat = flag(6.0, "length of the clips that windows are chosen from")
    window_seconds: PositiveFloat = flag(4.0, "length of the composed pattern")
    max_ratio: AtLeastOne = flag(1.5, "strongest compression in time, where there is any")
    max_steps: PositiveInt = flag(200, "optimizer steps of every run")
    batch_size: PositiveInt = flag(4, "pairs of clips a step")
    learning_rate: PositiveFloat = flag(2e-3, "peak learning rate of AdamW, falling by a cosine to 0")
    spectral: Literal["decoded", "latent"] = flag("latent", "spectral loss, as for train")
    novelty_weight: NonNegativeFloat = flag(0.1, "weight of the mean of the pairs' own losses")


def cache_folder(chosen: Path | None) -> Path:
    """Where latents are cached: the folder chosen, else `adaptive-window` in `$XDG_CACHE_HOME` or `~/.cache`."""
    if chosen is not None:
        return chosen
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adaptive-window"
