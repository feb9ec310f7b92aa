"""Makes the weights that the package brings, and their card: `python tools/default_agent.py --work DIR`.

    songs      synthesized (`audio.songs`), seeds 100000 on to train, 200000 on held out; no recording
    short      4 s patterns of 6 s clips, where most is learned at a quarter of the cost
    long       the same weights, 16 s patterns of 24 s clips
    lively     likewise, with a weight on how much bands move, of which a distance alone leaves too little
    pack       parameters rounded to 16 bits, which load exactly; what is measured is the packed file
    measure    held-out pairs whose tempos differ by 1.05 to 1.45, white noise, and recordings where `--audio` names any

Writes adaptive/weights/default.safetensors, docs/default-agent.md and docs/default-agent.json. `--measure` leaves the
weights as they are. In the JSON, `since` says what has changed in the command since it made them; to train drops it.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import adaptive_window
from adaptive_window.audio.files import find_audio, read_audio
from adaptive_window.audio.mel import MelCodec
from adaptive_window.audio.songs import synthesize_song, write_songs
from adaptive_window.config import TrainConfig
from adaptive_window.kernels import resample_windows
from adaptive_window.model.tempo import FOUND
from adaptive_window.training.ablation import REDUCED
from adaptive_window.training.checkpoint import Checkpoint, build_agent, load_checkpoint, save_checkpoint
from adaptive_window.training.initial import DEFAULT_WEIGHTS
from adaptive_window.training.listening import Listener
from adaptive_window.training.measures import MEASURES, music_measures
from adaptive_window.training.report import COLUMNS, WindowReport
from adaptive_window.training.run import run_training

ROOT = Path(__file__).resolve().parents[1]
TRAINED_FROM, HELD_OUT_FROM = 100_000, 200_000
MADE = ("songs", "song_seconds", "seed", "short_steps", "long_steps", "lively_steps", "made_with", "since")
BARS = (  # name, least, most
    ("fluctuation", 0.6, 1.3),
    ("onsets_input", 0.5, None),
    ("harmony_target", 0.7, None),
    ("copies", None, 0.9),
    ("within_1s", None, 0.1),
    ("at_bounds", None, 0.05),
    ("song_spread_s", 1.0, None),
    ("tempo_correlation", 0.7, None),
)
AVERAGED = ("fluctuation", "onsets_input", "harmony_target")  # of the mean of all pairs, `compose --pick mean`


def train(options: argparse.Namespace) -> Path:
    """Both stages; returns the last checkpoint."""
    songs = options.work / "songs"
    if not songs.exists():
        write_songs(songs / "train", options.songs, seed=TRAINED_FROM, seconds=options.seconds)
        write_songs(songs / "val", options.held_out, seed=HELD_OUT_FROM, seconds=options.seconds)
    shared: dict[str, Any] = {
        "data": songs,
        "cache": options.work / "latents",
        "dropout": 0.0,
        "selector_rate": 0.05,
        "examples": 0,
        "tensorboard": False,
        "device": options.device,
        "seed": options.seed,
    }
    short = TrainConfig(
        out=options.work / "short",
        clip_seconds=6.0,
        window_seconds=4.0,
        learning_rate=2e-3,
        warmup_steps=50,
        novelty_after=0.3,
        max_steps=options.short_steps,
        batch_size=4,
        clips_per_song=max(1, options.short_steps * 4 // (4 * options.songs)),  # four evaluations
        **shared,
    )
    long = TrainConfig(
        out=options.work / "long",
        init=short.out / "last.safetensors",
        learning_rate=5e-4,
        warmup_steps=50,
        max_steps=options.long_steps,
        novelty_after=0.0,
        batch_size=2,
        clips_per_song=1,
        **shared,
    )
    lively = replace(
        long,
        out=options.work / "lively",
        init=long.out / "last.safetensors",
        max_steps=options.lively_steps,
        spread_weight=0.5,
        warmup_steps=5,
        seed=options.seed + 1,
    )
    for config, sizes in ((short, REDUCED), (long, {}), (lively, {})):
        if not (config.out / "summary.json").exists():
            run_training(config, **sizes)
    return lively.out / "last.safetensors"


def curve(work: Path) -> list[dict[str, float]]:
    """What both stages found on their held-out songs, evaluation by evaluation."""
    rows: list[dict[str, float]] = []
    before = 0
    for stage in ("short", "long", "lively"):
        logged = [json.loads(line) for line in (work / stage / "metrics.jsonl").read_text().splitlines()]
        found = [row for row in logged if "held_out/loss" in row]
        kept = ("held_out/", "heard/", "windows/within", "windows/song_spread", "windows/at_bounds")
        rows += [
            {"step": before + row["step"], **{k: round(v, 4) for k, v in row.items() if k.startswith(kept)}}
            for row in found
        ]
        before += found[-1]["step"]
    return rows


def pack(path: Path) -> None:
    """The weights alone, in 16 bits where they are parameters, and what says how they were made."""
    trained = load_checkpoint(path)
    parameters = {name for name, _ in build_agent(trained, path).named_parameters()}
    model = {name: value.half() if name in parameters else value for name, value in trained.model.items()}
    assert all(value.float().isfinite().all() for value in model.values()), "a weight does not fit into 16 bits"
    info = {key: trained.info[key] for key in ("agent", "codec", "clip_frames")}
    kept = ("seed", "rhythm_from", "harmony_from", "max_steps")
    info["config"] = {key: trained.info["config"][key] for key in kept}
    DEFAULT_WEIGHTS.parent.mkdir(exist_ok=True)
    save_checkpoint(DEFAULT_WEIGHTS, Checkpoint(model=model, info=info))


def held_out_pairs(count: int) -> tuple[Tensor, Tensor, np.ndarray]:
    """Latents `[N, 128, 1200]` of inputs and targets, and log of how much slower the input is."""
    codec, rng = MelCodec(), np.random.default_rng(HELD_OUT_FROM)
    clips: list[tuple[Tensor, Tensor]] = []
    tempos = []
    for k in range(count):
        slow, ratio = float(rng.uniform(72, 108)), float(rng.uniform(1.05, 1.45))
        pair = [
            synthesize_song(HELD_OUT_FROM + 10_000 + 2 * k + j, sample_rate=codec.sample_rate, bpm=bpm)
            for j, bpm in enumerate((slow, slow * ratio))
        ]
        x, y = (codec.encode(torch.from_numpy(song.audio)[None, None])[0] for song in pair)
        clips.append((x, y) if k % 2 == 0 else (y, x))
        tempos.append(np.log(ratio) if k % 2 == 0 else -np.log(ratio))
    return torch.stack([x for x, _ in clips]), torch.stack([y for _, y in clips]), np.array(tempos)


def recordings(folder: Path) -> tuple[list[str], Tensor, Tensor]:
    """Every ordered couple of recordings, 24 s each from second 10 on."""
    codec = MelCodec()
    files = find_audio(folder)
    clips = [
        codec.encode(
            read_audio(f, codec.sample_rate, start=10 * codec.sample_rate, length=24 * codec.sample_rate)[None]
        )
        for f in files
    ]
    couples = [(a, b) for a in range(len(files)) for b in range(len(files)) if a != b]
    names = [f"{files[a].stem} + {files[b].stem}" for a, b in couples]
    return names, torch.cat([clips[a] for a, _ in couples]), torch.cat([clips[b] for _, b in couples])


@torch.no_grad()
def measure(x: Tensor, y: Tensor, tempos: np.ndarray | None = None) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Means over songs and pairs of windows, and every song's own."""
    agent = build_agent(load_checkpoint(DEFAULT_WEIGHTS), DEFAULT_WEIGHTS).eval()
    codec = MelCodec()
    listen = Listener(codec)
    rows: list[dict[str, float]] = []
    averaged: list[dict[str, float]] = []
    windows: dict[str, list[np.ndarray]] = {name: [] for name in COLUMNS}
    for a, b in zip(x.split(1), y.split(1), strict=True):
        outputs, _, metadata = agent(a, b)
        chosen = metadata["windows"]
        patterns = torch.stack(outputs, 1)
        cuts = [
            resample_windows(clip, chosen[f"start_{name}"], chosen[f"ratio_{name}"], patterns.shape[-1])
            for clip, name in ((a, "input"), (b, "target"))
        ]
        found = music_measures(patterns, cuts[0], cuts[1], listen.classes, listen.slow)
        rows.append({name: float(value.mean()) for name, value in found.items()})
        found = music_measures(
            patterns.mean(1, True).expand_as(patterns), cuts[0], cuts[1], listen.classes, listen.slow
        )
        averaged.append({name: float(found[name].mean()) for name in AVERAGED})
        for name in COLUMNS:
            windows[name].append(chosen[name].numpy())
    report = WindowReport(
        {name: np.concatenate(values).astype(float) for name, values in windows.items()}, codec.frame_rate, 16.0, 24.0
    )
    means = {name: float(np.mean([row[name] for row in rows])) for name in MEASURES}
    means |= {f"mean_{name}": float(np.mean([row[name] for row in averaged])) for name in AVERAGED}
    means |= {
        "within_1s": report.near_share(),
        "at_bounds": report.at_bounds(),
        "song_spread_s": report.song_spread(),
        "pair_distance_s": report.pair_distance(),
    }
    if tempos is not None:
        ratio = np.log(report.values["ratio_input"] / report.values["ratio_target"]).mean(1)
        means["tempo_correlation"] = float(np.corrcoef(ratio, tempos)[0, 1])
        means["tempo_within_3_percent"] = float((np.abs(ratio - tempos) < 0.03).mean())
    return means, rows


def noise_control(y: Tensor) -> dict[str, float]:
    """White noise as the input: how often a tempo is found in it, and how clear it is."""
    codec, rng = MelCodec(), np.random.default_rng(5)
    noise = torch.from_numpy(0.1 * rng.standard_normal((len(y), 1, 24 * codec.sample_rate))).float()
    x = codec.encode(noise)
    selector: Any = build_agent(load_checkpoint(DEFAULT_WEIGHTS), DEFAULT_WEIGHTS).window_selector
    with torch.no_grad():
        tempo, beat = selector.tempo(x, y)
    means, _ = measure(x, y)
    return {
        "tempo_found": float((beat > FOUND).float().mean()),
        "largest_beat": float(beat.max()),
        "largest_ratio_off_1": float((tempo.exp() - 1).abs().max()),
        "harmony_input": means["harmony_input"],
    }


def verdict(name: str, value: float) -> str:
    least, most = next((low, high) for bar, low, high in BARS if bar == name)
    ok = (least is None or value >= least) and (most is None or value <= most)
    return "met" if ok else "missed"


def bar_text(least: float | None, most: float | None) -> str:
    if least is not None and most is not None:
        return f"{least:g} to {most:g}"
    return f"≥ {least:g}" if least is not None else f"≤ {most:g}"


def write_card(options: argparse.Namespace, found: dict[str, Any]) -> None:
    synthesized, recorded = found["synthesized"], found.get("recordings")
    lines = [
        "# The default agent",
        "",
        "Written by `python tools/default_agent.py`; the same figures are in `default-agent.json`.",
        "",
        f"Weights: `adaptive/weights/default.safetensors`, {found['bytes'] / 1e6:.2f} MB, {found['parameters']:,} "
        "parameters (16 bits each), for the mel codec. Sizes: "
        + ", ".join(f"{key} {value}" for key, value in REDUCED.items())
        + ". Selector: content. Licence: as the project's.",
        "",
        f"Trained on {found['songs']} songs of {found['song_seconds']:g} s that the project synthesizes (seeds "
        f"{TRAINED_FROM} on), seed {found['seed']}: {found['short_steps']} steps of 4 clips of 6 s, then "
        f"{found['long_steps']} and {found['lively_steps']} of 2 clips of 24 s; {found['made_with']}. "
        "Rhythm from the input, harmony and timbre from the target.",
        "",
        *([f"{found['since']}", ""] if "since" in found else []),
        f"Held out: {found['pairs']} pairs of synthesized songs, seeds never trained on, tempos apart by 1.05 to "
        "1.45. Recordings: every ordered couple of those in `--audio`, never trained on. All figures are of latents, "
        "means over pairs of songs and pairs of windows.",
        "",
        "| measure | bar | synthesized | | recordings | |",
        "|---|---|---|---|---|---|",
    ]
    for name, least, most in BARS:
        cells = []
        for means in (synthesized, recorded):
            value = None if means is None else means.get(name)
            cells += ["", ""] if value is None else [f"{value:.3f}", verdict(name, value)]
        lines.append(f"| {name.replace('_', ' ')} | {bar_text(least, most)} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"Chosen ratios are within 3 % of the songs' own in {synthesized['tempo_within_3_percent']:.0%} of the pairs; "
        "most others are its double or half. White noise for an input: a tempo is found in "
        f"{found['noise']['tempo_found']:.0%} of {found['pairs']} (a beat of at most "
        f"{found['noise']['largest_beat']:.3f}, where {FOUND} counts half), "
        f"ratios stay within {found['noise']['largest_ratio_off_1']:.3f} of what they are without one.",
    ]
    means = [synthesized, *([recorded] if recorded else [])]
    lines += [
        "",
        "`compose` takes the pair of least loss. The mean of all (`--pick mean`) blurs what moves in one of them: "
        + ", ".join(
            f"{name.replace('_', ' ')} " + " and ".join(f"{m[f'mean_{name}']:.2f}" for m in means) for name in AVERAGED
        )
        + " (synthesized and recordings).",
    ]
    if found.get("curve"):
        shown = ("heard/fluctuation", "heard/onsets_input", "heard/harmony_target", "heard/copies", "held_out/spectral")
        lines += ["", "In training, on its held-out songs (4 s patterns up to step 320, then 16 s):", ""]
        lines += ["| step | " + " | ".join(name.split("/")[1].replace("_", " ") for name in shown) + " |"]
        lines += ["|" + "---|" * (len(shown) + 1)]
        for row in found["curve"]:
            lines.append(f"| {row['step']} | " + " | ".join(f"{row[name]:.2f}" for name in shown) + " |")
    if recorded:
        lines += ["", "| input + target | " + " | ".join(name.replace("_", " ") for name in MEASURES) + " |"]
        lines += ["|" + "---|" * (len(MEASURES) + 1)]
        for name, row in found["each_recording"].items():
            lines.append(f"| {name} | " + " | ".join(f"{row[key]:.2f}" for key in MEASURES) + " |")
    (options.docs / "default-agent.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    text = json.dumps(found, indent=1) + "\n"
    (options.docs / "default-agent.json").write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for songs, latents and both runs")
    parser.add_argument("--songs", type=int, default=160)
    parser.add_argument("--held-out", type=int, default=8, help="songs that the runs evaluate on")
    parser.add_argument("--seconds", type=float, default=30.0, help="length of a song")
    parser.add_argument("--short-steps", type=int, default=320)
    parser.add_argument("--long-steps", type=int, default=40)
    parser.add_argument("--lively-steps", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pairs", type=int, default=120, help="held-out pairs that are measured")
    parser.add_argument("--audio", type=Path, help="folder of recordings to measure on")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--measure", action="store_true", help="only measure the weights there are")
    parser.add_argument(
        "--card",
        action="store_true",
        help="only write the card anew, from its JSON, and the runs' logs where there are",
    )
    options = parser.parse_args()
    began = time.perf_counter()
    kept = options.docs / "default-agent.json"
    old = json.loads(kept.read_text(encoding="utf-8")) if options.measure or options.card else {}
    if options.card:
        logged = (options.work / "short" / "metrics.jsonl").exists()
        write_card(options, {**old, "curve": curve(options.work) if logged else old["curve"]})
        return
    if not options.measure:
        pack(train(options))
    made = f"torch {torch.__version__}, Python {platform.python_version()}, version {adaptive_window.__version__}"
    agent = build_agent(load_checkpoint(DEFAULT_WEIGHTS), DEFAULT_WEIGHTS)
    x, y, tempos = held_out_pairs(options.pairs)
    found: dict[str, Any] = {
        "songs": options.songs,
        "song_seconds": options.seconds,
        "seed": options.seed,
        "short_steps": options.short_steps,
        "long_steps": options.long_steps,
        "lively_steps": options.lively_steps,
        "made_with": made,
        "bytes": DEFAULT_WEIGHTS.stat().st_size,
        "parameters": sum(p.numel() for p in agent.parameters()),
        "pairs": options.pairs,
        **{key: old[key] for key in MADE if key in old},
        "synthesized": measure(x, y, tempos)[0],
        "noise": noise_control(y),
    }
    found["curve"] = old.get("curve") if options.measure else curve(options.work)
    if options.audio:
        names, a, b = recordings(options.audio)
        found["recordings"], rows = measure(a, b)
        found["each_recording"] = dict(zip(names, rows, strict=True))
    write_card(options, found)
    print((options.docs / "default-agent.md").read_text())
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
