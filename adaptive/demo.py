"""`adaptive-window demo`: music, training, patterns and a picture in a few minutes, with no data and no network.

Everything it writes is under `--out`:

    songs/                        synthesized pieces, as train/ and val/ pairs
    input.wav, target.wav         the held-out pair
    composed_mean.wav, composed_pair0.wav, ...    16 s patterns composed from it
    windows.png, trajectory.png   which windows, and how they moved in training
    metrics.json, config.yaml     figures of the run and its effective configuration
    run/                          the training run itself (checkpoints, logs)
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from .audio.codec import CodecUnavailable, load_codec
from .audio.synthesis import demo_piece, write_demo_set
from .config import ComposeConfig, DemoConfig, PlotConfig, TrainConfig, check, reads
from .config.options import DEMO_CODEC
from .console import note
from .errors import UsageError
from .inference.compose import compose_file, plot_file
from .storage import outputs, strict_json
from .storage.lock import FolderLock
from .training.folder import CONFIG, holds_run, prepare_folder
from .training.run import run_training

TRAINING_SONGS = 4
PRETRAINED = DEMO_CODEC
FILES = (CONFIG, "input.wav", "target.wav", "windows.png", "trajectory.png", "metrics.json")
PICKS = {"mean": "mean", **{str(pair): f"pair{pair}" for pair in range(3)}}  # --pick -> what its file is called


def choose_codec(config: DemoConfig) -> str:
    """The codec asked for; for `auto`, EnCodec where its weights can be had within seconds, else mel, saying so."""
    if config.codec != "auto":
        return config.codec
    try:
        load_codec(PRETRAINED, weights=config.weights, device="cpu")
    except CodecUnavailable:
        if config.weights is not None:
            raise
        note("EnCodec's weights are not here and cannot be fetched: using the embedded mel codec, which needs none")
        return "mel"
    return PRETRAINED


def prepare(out: Path, *, resume: bool = False) -> Path:
    """The run's folder: to go on in with `--resume`; else a finished demo's is replaced, an unfinished one's refused.

    Raises:
        UsageError: nothing to resume, or something in the way that adaptive-window did not write.
    """
    run, finished = out / "run", out / "metrics.json"
    if resume:
        if not holds_run(run):
            raise UsageError(f"--resume: {run} holds no checkpoint to go on from")
        return run
    if holds_run(run) and not finished.exists():
        raise UsageError(f"{out} holds a demo that did not finish: add --resume to go on, or name another --out")
    if os.path.lexists(run):
        try:
            outputs.remove_folder(run, "name another --out")
        except UsageError as error:
            raise UsageError(f"{run} exists and is no finished demo's: {error}") from error
    return run


def run_demo(config: DemoConfig) -> dict[str, Any]:
    """Runs the demo and returns what `metrics.json` holds."""
    check(config)
    with FolderLock(config.out) as lock:
        files = [*FILES, *(f"composed_{name}{suffix}" for name in PICKS.values() for suffix in (".wav", ".json"))]
        folders = ("songs", "latents", "run")
        prepare_folder(config.out, lock, resume=False, files=files, folders=folders, reads=reads(config))
        return _run_demo(config)


def _run_demo(config: DemoConfig) -> dict[str, Any]:
    began = time.perf_counter()
    codec = choose_codec(config)
    run = prepare(config.out, resume=config.resume)
    outputs.remove(config.out / "metrics.json")  # a demo that is interrupted now has not finished
    songs = config.out / "songs"
    note(f"synthesizing {TRAINING_SONGS + 1} pairs of 24 s pieces (seed {config.seed})")
    write_demo_set(songs, pairs=TRAINING_SONGS, val=1, seed=config.seed)
    result = run_training(
        TrainConfig(
            data=songs,
            out=run,
            codec=codec,  # type: ignore[arg-type]  # choose_codec returns one of the names
            weights=config.weights,
            random_codec=config.random_codec,
            cache=config.out / "latents",
            max_steps=config.max_steps,
            batch_size=config.batch_size,
            spectral="decoded" if codec == "mel" else "latent",  # decoding EnCodec in each step takes a GPU
            device=config.device,
            seed=config.seed,
            resume=config.resume,
            force=config.force,
        )
    )
    composed = write_patterns(config, run, songs)
    for name in ("trajectory.png", CONFIG):
        copy(run / name, config.out / name, reads=config.config)
    metrics = {**result.summary, "patterns": composed, "seconds": time.perf_counter() - began}
    outputs.write_text(config.out / "metrics.json", strict_json.dumps(metrics, indent=2) + "\n")
    print_table(config, metrics)
    print(result.final.windows.table())
    return metrics


def write_patterns(config: DemoConfig, run: Path, songs: Path) -> list[dict[str, Any]]:
    """Composes every pick from the held-out pair, draws its windows, and puts the pair itself beside them."""
    held_out = songs / "val"
    source = next(held_out.glob("*_input.wav"))
    target = next(held_out.glob("*_target.wav"))
    copy(source, config.out / "input.wav")
    copy(target, config.out / "target.wav")
    shared: dict[str, Any] = {
        "input": config.out / "input.wav",
        "target": config.out / "target.wav",
        "checkpoint": run / "best.safetensors",
        "weights": config.weights,
        "random_codec": config.random_codec,
        "device": config.device,
    }
    reports = [
        compose_file(ComposeConfig(output=config.out / f"composed_{name}.wav", pick=pick, **shared))
        for pick, name in PICKS.items()
    ]
    truth = demo_piece(TRAINING_SONGS, seed=config.seed)  # the held-out pair: its sections are known
    plot_file(
        PlotConfig(output=config.out / "windows.png", **shared),
        sections_input=truth.input_sections,
        sections_target=truth.target_sections,
    )
    return reports


def copy(source: Path, path: Path, reads: Collection[Path] = ()) -> None:
    """Puts a copy at `path`, unless that is a file that the command reads."""
    if any(path.exists() and path.samefile(read) for read in reads):
        note(f"{path} is what --config reads: it stays as it is")
        return
    with outputs.writing(path) as temporary:
        shutil.copyfile(source, temporary)


def print_table(config: DemoConfig, metrics: dict[str, Any]) -> None:
    print(f"\n{'pattern':<22} {'seconds':>8} {'peak':>6} {'RMS':>6}")
    for report in metrics["patterns"]:
        name = Path(report["output"]).name
        print(f"{name:<22} {report['seconds']:>8.2f} {report['peak']:>6.3f} {report['rms']:>6.3f}")
    print(
        f"\n{metrics['steps']} steps of {metrics['seconds_per_step']:.2f} s, codec {metrics['codec']}, "
        f"held-out loss {metrics['best_held_out_loss']:.4f}; {metrics['seconds']:.0f} s in all; see {config.out}\n"
    )
