"""`adaptive-window demo`: music, training, patterns and a picture in a few minutes, with no data and no network.

Everything it writes is under `--out`:

    songs/                        synthesized pieces, as train/ and val/ pairs
    input.wav, target.wav         the held-out pair
    first_mean.wav, first_pair0.wav, ...          composed at once, by the package's default weights (mel codec)
    composed_mean.wav, composed_pair0.wav, ...    the same after a little training that begins with them
    windows_first.png, windows.png                which windows were heard in those
    trajectory.png                how the windows moved in training
    metrics.json, config.yaml     figures of the run and its effective configuration
    run/                          the training run itself (checkpoints, logs)
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from .audio.codec import CodecUnavailable, load_codec
from .audio.synthesis import demo_piece, write_demo_set
from .config import ComposeConfig, DemoConfig, TrainConfig, check, reads
from .config.options import DEMO_CODEC
from .console import note
from .errors import UsageError
from .inference.compose import compose_clips, draw_windows, open_session, parse_pick, write_composition
from .storage import outputs, strict_json
from .storage.lock import FolderLock
from .training.folder import CONFIG, holds_run, prepare_folder
from .training.initial import DEFAULT
from .training.run import run_training

TRAINING_SONGS = 4
PRETRAINED = DEMO_CODEC
FILES = (CONFIG, "input.wav", "target.wav", "windows.png", "windows_first.png", "trajectory.png", "metrics.json")
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


@outputs.acting("demo")
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


@outputs.acting("demo")
def run_demo(config: DemoConfig) -> dict[str, Any]:
    """Runs the demo and returns what `metrics.json` holds."""
    check(config)
    with FolderLock(config.out) as lock:
        made = [f"{prefix}_{name}" for prefix in ("first", "composed") for name in PICKS.values()]
        files = [*FILES, *(f"{name}{suffix}" for name in made for suffix in (".wav", ".json"))]
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
    for half in ("input", "target"):
        copy(next((songs / "val").glob(f"*_{half}.wav")), config.out / f"{half}.wav")
    begins = codec == "mel" and not config.resume  # what the package brings was trained on its latents
    first = None
    if begins:
        first = compose_all(config, None, "first", "windows_first.png")
        note(f"composed at once, by the default weights, {time.perf_counter() - began:.0f} s after the start")
    result = run_training(
        TrainConfig(
            data=songs,
            out=run,
            init=Path(DEFAULT) if begins else None,
            codec=codec,  # type: ignore[arg-type]  # choose_codec returns one of the names
            weights=config.weights,
            random_codec=config.random_codec,
            cache=config.out / "latents",
            max_steps=config.max_steps,
            batch_size=config.batch_size,
            learning_rate=3e-4,
            warmup_steps=min(10, config.max_steps // 2),
            spectral="decoded" if codec == "mel" else "latent",  # decoding EnCodec in each step takes a GPU
            dropout=0.0,
            device=config.device,
            seed=config.seed,
            resume=config.resume,
            force=config.force,
        )
    )
    composed = compose_all(config, run / "best.safetensors", "composed", "windows.png")
    for name in ("trajectory.png", CONFIG):
        copy(run / name, config.out / name, reads=config.config)
    metrics = {**result.summary, "first": first, "patterns": composed, "seconds": time.perf_counter() - began}
    outputs.write_text(config.out / "metrics.json", strict_json.dumps(metrics, indent=2) + "\n")
    print_tables(config, metrics)
    print(result.final.windows.table())
    print(f"  {result.final.windows.summary()}")
    return metrics


def compose_all(config: DemoConfig, checkpoint: Path | None, prefix: str, picture: str) -> list[dict[str, Any]]:
    """Every pick from the held-out pair, and a picture of the windows that were heard: one session, one call a pick."""
    options = ComposeConfig(
        input=config.out / "input.wav",
        target=config.out / "target.wav",
        checkpoint=checkpoint,
        weights=config.weights,
        random_codec=config.random_codec,
        device=config.device,
        output=config.out / f"{prefix}_mean.wav",
    )
    session = open_session(options)
    reports = []
    for pick, name in PICKS.items():
        composition = compose_clips(session, parse_pick(pick, session.agent.num_pairs))
        placed = replace(options, output=config.out / f"{prefix}_{name}.wav", pick=pick)
        reports.append(write_composition(placed, session, composition))
        if pick == "mean":
            truth = demo_piece(TRAINING_SONGS, seed=config.seed)  # the held-out pair: its sections are known
            draw_windows(
                session,
                composition.pairs,
                config.out / picture,
                title=f"windows of {prefix}_*.wav",
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


def print_tables(config: DemoConfig, metrics: dict[str, Any]) -> None:
    """What was composed, before and after training, what to listen for, and how the windows moved."""
    titles = ("seconds", "peak", "RMS", "fluct.", "onsets", "harmony", "copies")
    print(f"\n{'pattern':<22} " + " ".join(f"{title:>7}" for title in titles))
    both = [*(metrics["first"] or []), *metrics["patterns"]]
    for report in both:
        heard = report["heard"]
        print(
            f"{Path(report['output']).name:<22} {report['seconds']:>7.2f} {report['peak']:>7.3f} {report['rms']:>7.3f} "
            f"{heard['fluctuation']:>7.2f} {heard['onsets_input']:>7.2f} {heard['harmony_target']:>7.2f} "
            f"{heard['copies']:>7.2f}"
        )
    print(
        "\nfluct.: of the pattern over that of its target window; onsets: how far they follow the input's; harmony: "
        "how far pitches follow the target's; copies: likeness to the nearer window, 1 for a copy"
    )
    if metrics["first"]:
        moved = zip(metrics["first"][0]["pairs"], metrics["patterns"][0]["pairs"], strict=True)
        for number, (before, after) in enumerate(moved):
            shifts = ", ".join(
                f"{name} {before[f'start_{name}_s']:.2f} → {after[f'start_{name}_s']:.2f} s "
                f"×{before[f'ratio_{name}']:.2f} → ×{after[f'ratio_{name}']:.2f}"
                for name in ("input", "target")
            )
            print(f"pair {number}: {shifts}")
    if tempo := metrics["patterns"][0]["tempo"]:
        found = "so the windows differ by it" if tempo["found"] else "too little to go by"
        print(f"the input is {tempo['ratio']:.2f} times as slow as the target (beat {tempo['beat']:.2f}: {found})")
    print(LISTEN if metrics["first"] else "")
    seconds = metrics["seconds_per_step"]  # none where a demo was resumed and no step was left
    pace = "" if seconds is None else f" of {seconds:.2f} s"
    print(
        f"{metrics['steps']} steps{pace}, codec {metrics['codec']}, "
        f"held-out loss {metrics['best_held_out_loss']:.4f}; {metrics['seconds']:.0f} s in all; see {config.out}\n"
    )


LISTEN = """
listen to   input.wav, target.wav      the two songs; the input's groove and the target's chords are asked for
            first_pair0.wav            by the weights of the package, before any training; windows_first.png shows where
            composed_pair0.wav         after training on four songs of this kind; windows.png shows where
            composed_mean.wav          all three pairs averaged: what moves in one of them is blurred
"""
