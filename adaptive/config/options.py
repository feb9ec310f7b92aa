"""What the commands can be told: one dataclass a command, one field a flag, defaults and help beside it.

Options that several commands have are groups, which those inherit: a name means one thing and has one bound everywhere.
What options must fulfil together is in `checks`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .bounds import (
    AtLeastOne,
    ClipCount,
    ClosedUnitInterval,
    CodecName,
    DemoCodecName,
    Device,
    DropoutRate,
    Duration,
    NonNegativeFloat,
    NonNegativeInt,
    PairCount,
    Place,
    Port,
    PositiveFloat,
    PositiveInt,
    RunCount,
    Seed,
    Song,
    SongCount,
    WorkerCount,
)
from .flags import flag, inherited, positional

DEMO_CODEC: CodecName = "encodec-24khz"  # the smaller of the two: the demo has to stay within minutes on a CPU


@dataclass(kw_only=True)
class CommandOptions:
    """What every command can be told."""

    config: tuple[Path, ...] = flag((), "YAML file of any of these options", config_file=True, reads=True)
    device: Device = flag("auto", "where to compute; auto takes CUDA where there is one")


@dataclass(kw_only=True)
class WeightsOptions:
    """Where the codec's weights are."""

    weights: Path | None = flag(
        None, "file or folder with the codec's weights (default: hub caches, then a download)", reads=True
    )
    random_codec: bool = flag(False, "randomly initialized codec: only for trying the plumbing, marked everywhere")


@dataclass(kw_only=True)
class CodecOptions(WeightsOptions):
    """Which codec turns audio into latents and back."""

    codec: CodecName = flag("mel", "codec of the latents; mel needs no weights")


@dataclass(kw_only=True)
class CacheOptions:
    """Where latents are kept."""

    cache: Path | None = flag(None, "folder of the latent cache (default: adaptive-window in the user's cache folder)")


@dataclass(kw_only=True)
class DataOptions:
    """Which of the songs found are used."""

    max_bad: ClosedUnitInterval = flag(0.05, "share of unreadable or too short files that ends the run")


@dataclass(kw_only=True)
class ClipOptions:
    """Lengths, and what windows may be."""

    clip_seconds: Duration = flag(24.0, "length of the clips that windows are chosen from")
    window_seconds: Duration = flag(16.0, "length of the composed pattern")
    max_ratio: AtLeastOne = flag(1.5, "strongest compression in time")


@dataclass(kw_only=True)
class RunOptions(CommandOptions):
    """A folder in which something is trained."""

    out: Path = flag(text="folder of the run: checkpoints, logs, pictures, audio, config")
    resume: bool = flag(False, "go on from the last checkpoint in --out", once=True)
    force: bool = flag(False, "resume also with another batch size, world size, seed or data set", once=True)
    seed: Seed = flag(0, "seed of the split, the crops, the initialization and the dropout")
    max_steps: PositiveInt = flag(2000, "optimizer steps in all")
    batch_size: PositiveInt = flag(4, "pairs of clips a step, over all processes together")


@dataclass(kw_only=True)
class StepOptions:
    """How a run takes its steps: what `train` and `ablate` share."""

    workers: WorkerCount = flag(0, "data loader processes")
    num_pairs: PairCount = flag(3, "pairs of windows")
    clips_per_song: ClipCount = flag(8, "random clips of every song an epoch")
    learning_rate: PositiveFloat = flag(3e-4, "peak learning rate of AdamW")
    warmup_steps: NonNegativeInt = flag(0, "steps of linear warm-up")


@dataclass(kw_only=True)
class AgentOptions:
    """Which windows the agent can choose, and what its transform leaves: what `train` and `ablate` share."""

    selector: Literal["content", "mlp", "correlation"] = flag(
        "content",
        "what chooses windows: tempos and likeness of the two songs, a network over both clips, or the input's best "
        "match with learned target windows",
    )
    strength: Literal["auto", "harmony", "constant"] = flag(
        "auto",
        "how the content selector sets it: by how much the two windows clash, or alike for all songs; auto takes "
        "harmony where latents are a spectrum",
    )
    restore: Literal["none", "frame"] = flag(
        "none", "what the transform gives back: none, as the original, or each frame's loudness (mean and spread)"
    )
    dropout: DropoutRate = flag(0.1, "dropout in the agent")
    selector_rate: PositiveFloat = flag(1.0, "the selector's learning rate, as a share of --learning-rate")


@dataclass(kw_only=True)
class ObjectiveOptions:
    """What is minimized: what `train` and `ablate` share."""

    spectral: Literal["decoded", "latent"] = flag(
        "decoded", "spectral loss: STFT of decoded audio (log-mel distance for the mel codec), or distance of latents"
    )
    novelty_weight: NonNegativeFloat = flag(0.1, "weight of the mean of the pairs' own losses")
    spectral_weight: NonNegativeFloat = flag(1.0, "weight of the spectral loss")
    decode_seconds: Duration = flag(4.0, "seconds of each pattern that the decoded loss looks at in a step")
    rhythm_from: Song = flag("input", "song whose onsets patterns follow")
    harmony_from: Song = flag("target", "song whose pitch classes and timbre patterns follow")
    onset_weight: NonNegativeFloat = flag(0.5, "weight of 1 - correlation of onsets with --rhythm-from's window")
    harmony_weight: NonNegativeFloat = flag(
        0.5, "weight of 1 - correlation of chroma with --harmony-from's window, and of the conflict of the two windows"
    )
    conflict_weight: NonNegativeFloat | None = flag(
        None, "weight of the harmonic conflict of a pair's transformed windows alone; null is --harmony-weight"
    )
    spread_weight: NonNegativeFloat = flag(
        0.0, "weight of the difference in how much bands move, of patterns and windows"
    )
    novelty_after: ClosedUnitInterval = flag(0.0, "share of the run in which --novelty-weight grows from 0")
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


@dataclass(kw_only=True)
class PlaceOptions:
    """Two songs, and which part of each."""

    input: Path = positional("the input song", reads=True)
    target: Path = positional("the target song", reads=True)
    at: Place = flag(0.0, "where the clip begins in the songs: seconds, or minutes and seconds as 1:30")
    at_target: Place | None = flag(None, "the same for the target, where it differs")


@dataclass(kw_only=True)
class OutputOptions:
    """Files that are written where the user says."""

    overwrite: bool = flag(
        False, "replace also what adaptive-window did not write; never a file that is read", once=True
    )


@dataclass(kw_only=True)
class TrainConfig(
    RunOptions, StepOptions, AgentOptions, ObjectiveOptions, ClipOptions, CodecOptions, CacheOptions, DataOptions
):
    """Everything that `adaptive-window train` can be told."""

    data: Path = flag(text="folder of songs, or of NAME_input.* with NAME_target.* in train/ and val/", reads=True)
    unity_test: bool = flag(False, "sanity mode: the target is the input itself")
    shuffle_targets: bool = flag(False, "sanity mode: targets are exchanged among songs")
    worker_start: Literal["fork", "spawn"] = flag("fork", "how they start: quickly, or as fresh interpreters")

    init: Path | None = flag(
        None,
        "checkpoint whose weights to begin with, or `default`: those that the package brings",
        reads=True,
        word="default",
    )
    max_strength: ClosedUnitInterval = flag(1.0, "strongest transform of the tonality; 0 switches it off")

    weight_decay: NonNegativeFloat = flag(0.01, "weight decay of AdamW")
    schedule: Literal["cosine", "constant"] = flag("cosine", "learning rate after the warm-up")
    clip_gradient: PositiveFloat = flag(1.0, "gradient norm to clip to")
    precision: Literal["auto", "float32", "bf16", "float64"] = flag(
        "auto", "bf16 is autocast, float64 for checks (weights too); auto is bf16 on CUDA, float32 on CPU"
    )
    sync_batchnorm: bool = flag(False, "under torchrun: BatchNorm statistics of the whole batch, not of each process")
    compile: Literal["auto", "on", "off"] | bool = flag(  # YAML reads on and off as booleans
        "auto", "auto, on or off: compile agent, losses and backward pass by TorchInductor; auto does so on CUDA"
    )
    keep: Literal["little", "all"] = flag(
        "little", "for the backward pass of a compiled step; all: what PyTorch chooses, little: nothing that is cheap"
    )
    recompute: bool = flag(False, "less memory for more time: the composer's layers are computed again for gradients")
    patience: NonNegativeInt = flag(0, "epochs without a better held-out loss that end the run; 0 never does")
    max_refused: PositiveInt = flag(10, "steps in a row with a non-finite loss or gradient that end the run")

    save_every: NonNegativeInt = flag(0, "steps between checkpoints within an epoch; 0: by --save-minutes alone")
    save_minutes: NonNegativeFloat = flag(10.0, "minutes between checkpoints within an epoch; 0: by --save-every alone")
    log_every: PositiveInt = flag(10, "steps between log entries")
    examples: NonNegativeInt = flag(1, "held-out examples whose audio and picture are written at each evaluation")
    tensorboard: bool = flag(True, "write TensorBoard logs to OUT/tensorboard")
    mlflow: bool = flag(False, "log to MLflow too (sqlite store OUT/mlflow.db unless MLFLOW_TRACKING_URI is set)")


@dataclass(kw_only=True)
class EncodeConfig(CommandOptions, CodecOptions, CacheOptions):
    """Everything that `adaptive-window encode` can be told."""

    data: Path = flag(text="folder of audio files, searched recursively", reads=True)


@dataclass(kw_only=True)
class SongPairOptions(CommandOptions, PlaceOptions, WeightsOptions):
    """Two songs, the checkpoint that chooses their windows, and which 24 s of each."""

    checkpoint: Path | None = flag(
        None,
        "checkpoint of a training run, or its folder, for its best, or the folder of a published agent (default: the "
        "package's weights)",
        reads=True,
    )


@dataclass(kw_only=True)
class ComposeConfig(SongPairOptions, OutputOptions):
    """Everything that `adaptive-window compose` can be told."""

    output: Path = flag(text="WAV file to write; a JSON of the windows is written beside it", short="-o")
    pick: str = flag("best", "the pair of least loss, the number of one from 0, or mean: all averaged, which blurs")


@dataclass(kw_only=True)
class PlotConfig(SongPairOptions, OutputOptions):
    """Everything that `adaptive-window plot` can be told."""

    output: Path = flag(text="picture to write (.png, .svg or .pdf)", short="-o")


@dataclass(kw_only=True)
class RefineConfig(CommandOptions, PlaceOptions, ClipOptions, CodecOptions, OutputOptions):
    """Everything that `adaptive-window refine` can be told."""

    out: Path = flag(Path("refine-out"), "folder for refine.json, windows.png and the windows as WAV", short="-o")
    move: Literal["input", "target", "both"] = flag(
        "input", "song whose window is sought; the other's is the first --window-seconds of its clip"
    )
    features: Literal["latent", "energy", "difference", "rhythm"] = flag(
        "latent",
        "what is compared; energy and difference follow the loudness, for latents that are white in time; rhythm "
        "finds one tempo and beat, whatever is played",
    )


@dataclass(kw_only=True)
class ServeConfig(CommandOptions, WeightsOptions):
    """Everything that `adaptive-window serve` can be told."""

    checkpoint: Path | None = flag(
        None, "checkpoint of a training run, OUT/best.safetensors (default: the package's weights)", reads=True
    )
    host: str = flag("127.0.0.1", "address to listen on; 0.0.0.0 for every network, best behind a proxy with TLS")
    port: Port = flag(7860, "port to listen on; 0 for any free one")
    auth: str | None = flag(None, "USER:PASSWORD-FILE: ask for this name, and the password in the file's first line")
    uploads: Path | None = flag(None, "folder in which a folder for uploads and results is made (default: temporary)")
    keep_minutes: PositiveFloat = flag(60.0, "minutes after which unused uploads and results are removed")
    jobs: PositiveInt | None = flag(None, "compositions and searches at a time (default: one a core)")
    waiting: PositiveInt = flag(60, "jobs that may wait; further ones are refused")


@dataclass(kw_only=True)
class DemoConfig(RunOptions, WeightsOptions):
    """Everything that `adaptive-window demo` can be told."""

    out: Path = flag(Path("demo-out"), "folder for songs, patterns, pictures and metrics")
    max_steps: PositiveInt = inherited(RunOptions, "max_steps", 40)
    batch_size: PositiveInt = inherited(RunOptions, "batch_size", 1)
    codec: DemoCodecName = flag(
        "auto", f"auto is {DEMO_CODEC} where its weights are at hand or can be fetched, else mel"
    )


@dataclass(kw_only=True)
class AblateConfig(
    RunOptions, StepOptions, AgentOptions, ObjectiveOptions, ClipOptions, CodecOptions, CacheOptions, DataOptions
):
    """Everything that `adaptive-window ablate` can be told."""

    out: Path = flag(text="folder for the table (CSV, Markdown), the plot and the runs' logs")
    data: Path | None = flag(None, "folder of songs, as for train (default: synthesized music)", reads=True)
    songs: SongCount = flag(48, "synthesized training pairs, where --data is not given")
    held_out_songs: SongCount = flag(8, "synthesized held-out pairs, where --data is not given")
    seeds: RunCount = flag(3, "runs of every variant; --seed is the first one's, the music's and the held-out clips'")
    agent: Literal["reduced", "small", "full"] = flag(
        "reduced",
        "composer: 32 channels a component and 2 layers of width 128, as the package's weights; 16 and 2 of 64; or the "
        "whole, 64 and 4 of 512",
    )
    clip_seconds: Duration = inherited(ClipOptions, "clip_seconds", 6.0)
    window_seconds: Duration = inherited(ClipOptions, "window_seconds", 4.0)
    max_steps: PositiveInt = inherited(RunOptions, "max_steps", 400)
    batch_size: PositiveInt = inherited(RunOptions, "batch_size", 2)
    learning_rate: PositiveFloat = inherited(StepOptions, "learning_rate", 2e-3)
    warmup_steps: NonNegativeInt = inherited(StepOptions, "warmup_steps", 50)
    dropout: DropoutRate = inherited(AgentOptions, "dropout", 0.0)
    # skill is how near patterns come to the target's windows: by default that is what is trained, as in the original
    spectral: Literal["decoded", "latent"] = inherited(ObjectiveOptions, "spectral", "latent")
    rhythm_from: Song = inherited(ObjectiveOptions, "rhythm_from", "none")
    harmony_from: Song = inherited(ObjectiveOptions, "harmony_from", "none")
    conflict_weight: NonNegativeFloat | None = inherited(ObjectiveOptions, "conflict_weight", 0.0)


def cache_folder(chosen: Path | None) -> Path:
    """Where latents are cached: the folder chosen, else `adaptive-window` in `$XDG_CACHE_HOME` or `~/.cache`."""
    if chosen is not None:
        return chosen
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adaptive-window"
